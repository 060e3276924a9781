"""Reading back: by number, in order, in worker processes, by webdataset; and what is refused."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch.utils.data import DataLoader

from ssdd.tokenization import LatentDataset, TokenizedDataError, tokenize
from tests.tokenization.conftest import Job


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "latents"))


def as_tensor(items: list[Any]) -> torch.Tensor:
    return torch.stack([item["mean"] for item in items])


def test_map_style_and_stream_agree(whole: Path) -> None:
    data = LatentDataset(whole)
    streamed = list(data.stream())
    assert len(streamed) == len(data) == data.manifest["latents"]
    for i in reversed(range(len(data))):
        item = data[i]
        assert (item["key"], item["label"]) == (streamed[i]["key"], streamed[i]["label"])
        assert int(item["label"]) == data.label(i)
        assert item["mean"].equal(streamed[i]["mean"])
        assert item["logvar"].equal(streamed[i]["logvar"])
    for wrong in (-1, len(data)):
        with pytest.raises(IndexError):
            data[wrong]


def test_worker_processes(whole: Path) -> None:
    data = LatentDataset(whole)
    data[0]  # a file is open before the worker begins
    loader = DataLoader(data, batch_size=5, collate_fn=as_tensor, num_workers=1, multiprocessing_context="fork")
    assert torch.cat(list(loader)).equal(as_tensor(list(data.stream())))
    sent = pickle.dumps(data)  # what a spawned one gets
    assert len(sent) < 1 << 15
    assert pickle.loads(sent)[3]["mean"].equal(data[3]["mean"])


def test_webdataset_reads_the_shards(whole: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs the extra: pip install 'ssdd[dev]'")
    shards = [str(path) for path in sorted(whole.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    data = LatentDataset(whole)
    assert [s["__key__"] for s in samples] == [item["key"] for item in data.stream()]
    for sample, item in zip(samples, data.stream(), strict=True):
        content = sample["safetensors"]
        tensors = load(content) if isinstance(content, bytes) else content
        assert torch.as_tensor(tensors["mean"]).float().equal(item["mean"])
        assert sample["json"]["label"] == int(item["label"])


def test_a_new_set_in_the_same_place_is_read_anew(job: Job, tmp_path: Path) -> None:
    """Files stay open between reads: not beyond the set that they belong to."""
    tokenize(job(labels="none", only="ant/*"), tmp_path / "set", workers=0)
    before = LatentDataset(tmp_path / "set")[0]
    shutil.rmtree(tmp_path / "set")
    tokenize(job(labels="none", only="cow/*"), tmp_path / "set", workers=0)
    assert not LatentDataset(tmp_path / "set")[0]["mean"].equal(before["mean"])


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_folders_that_are_none(whole: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of ssdd tokenize, found none"):
        LatentDataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected a manifest, found none.*run it again"):
        LatentDataset(tmp_path)
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000001.tar: expected this shard, found none"):
        LatentDataset(copy)
    (copy / "shard-000001.tar").write_bytes((whole / "shard-000001.tar").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"expected \d+ bytes, found \d+"):
        LatentDataset(copy)


def test_shards_of_two_models_are_refused(job: Job, copy: Path, other_model: Path, tmp_path: Path) -> None:
    tokenize(job(flips=True, model=str(other_model)), tmp_path / "other", workers=0)
    for suffix in ("json", "tar"):
        shutil.copy(tmp_path / "other" / f"shard-000001.{suffix}", copy)
    data = LatentDataset(copy)
    with pytest.raises(ValueError, match="expected a shard of this set, found one of another model, data or settings"):
        data[len(data) - 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format="ssdd-latents-9"),
        lambda m: m.update(latent_shape=[4, -1, 4]),
        lambda m: m.update(latent_shape=[2**16, 2**16, 2**16]),
        lambda m: m.update(latent_shape=4),
        lambda m: m.update(store="pickle"),
        lambda m: m.update(classes=["a", 3]),
        lambda m: m.update(latents=True),
        lambda m: m.update(latents=10**6),
        lambda m: m["shards"][0].update(name="../../etc/passwd"),
        lambda m: m["shards"][0].update(latents=-1),
        lambda m: m["shards"][0].update(sha256="x"),
        lambda m: m.update(shards=m["shards"][:1]),
        lambda m: m["statistics"].update(latents_std=[1.0]),
        lambda m: m["statistics"].update(scaling_factor=float("nan")),
        lambda m: m.update(statistics=None),
    ],
)
def test_hostile_manifests(copy: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(copy / "manifest.json", change)
    with pytest.raises(TokenizedDataError) as caught:
        LatentDataset(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_what_is_no_json(copy: Path, content: bytes) -> None:
    for name in ("shard-000000.json", "manifest.json"):
        (copy / name).write_bytes(content)
        with pytest.raises(TokenizedDataError, match=name):
            LatentDataset(copy)[0]


def test_damaged_members_are_refused_where_they_are_read(copy: Path) -> None:
    with tarfile.open(copy / "shard-000000.tar") as tar:
        places = {m.name: m for m in tar}
        third = tar.getnames()[4]
    content = bytearray((copy / "shard-000000.tar").read_bytes())
    content[places[third].offset_data + 3] = 0x7F  # the length of the safetensors' header
    content[:4] = b"evil"  # the name of the first member, and with it the header's checksum
    (copy / "shard-000000.tar").write_bytes(content)
    data = LatentDataset(copy)
    with pytest.raises(TokenizedDataError, match="expected a latent where the index has one"):
        data[0]
    with pytest.raises(TokenizedDataError, match="expected safetensors"):
        data[2]
    data[1]
