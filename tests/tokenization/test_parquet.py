"""Parquet shards: the same latents as in tar files, as columns that others read; and files that are none."""

import gc
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ssdd.tokenization import LatentDataset, TokenizedDataError, parquet, tokenize, verify
from tests.tokenization.conftest import Job
from tests.tokenization.test_reader import as_tensor

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'ssdd[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")

Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def columns(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of ``whole`` as Parquet files, with row groups so small that a shard has several."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("parquet") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROWS", 3)
        tokenize(job(flips=True, container="parquet"), out, workers=0)
    return out


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS", 3)


@pytest.fixture
def copy(columns: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(columns, tmp_path / "latents"))


def test_the_same_latents_as_in_tar_files(whole: Path, columns: Path) -> None:
    tar, data = LatentDataset(whole), LatentDataset(columns)
    assert len(data) == len(tar)
    assert data.classes == tar.classes
    assert data.manifest["statistics"] == tar.manifest["statistics"]
    for i, (streamed, expected) in enumerate(zip(data.stream(), tar.stream(), strict=True)):
        for item in (streamed, data[i]):
            assert (item["key"], item["label"]) == (expected["key"], expected["label"])
            assert item["mean"].equal(expected["mean"])
            assert item["logvar"].equal(expected["logvar"])
        assert data.key(i) == tar.key(i) == expected["key"]
    assert verify(columns) == []


def test_columns(columns: Path, whole: Path) -> None:
    """What pyarrow, pandas or a data base sees."""
    rows = [row for path in sorted(columns.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    first, item = rows[0], LatentDataset(whole)[0]
    assert np.frombuffer(first["mean"], "<f2").reshape(4, 4, 4).astype(np.float32).tolist() == item["mean"].tolist()
    assert np.frombuffer(first["logvar"], "<f2").astype(np.float32).tolist() == item["logvar"].flatten().tolist()
    assert {name: first[name] for name in ("key", "source", "image", "label", "class", "flipped")} == {
        "key": "000000000-c0-0",
        "source": "ant/0.png",
        "image": 0,
        "label": 0,
        "class": "ant",
        "flipped": False,
    }
    assert [first[name] for name in ("height", "width", "resized_height", "resized_width")] == [40, 60, 32, 48]
    assert [first[f"crop_{name}"] for name in ("top", "left", "height", "width")] == [0, 8, 32, 32]
    assert pq.read_schema(columns / "shard-000000.parquet").metadata[b"latent_shape"] == b"4,4,4"


def test_the_bytes_are_the_same_again(job: Job, columns: Path, tmp_path: Path, tree: Tree) -> None:
    tokenize(job(flips=True, container="parquet"), tmp_path / "out", workers=1)
    assert tree(tmp_path / "out") == tree(columns)
    assert LatentDataset(columns).manifest["made_by"]["writer"] == f"pyarrow {pyarrow.__version__}"
    with pytest.raises(ValueError, match="container is parquet there, tar here"):
        tokenize(job(flips=True), tmp_path / "out", workers=0)


def test_bf16_and_a_shard_without_latents(job: Job, tmp_path: Path) -> None:
    tokenize(job(container="parquet", store="bf16", shard_images=1), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out")
    assert [entry["latents"] for entry in data.manifest["shards"]] == [1, 1, 1, 0, 1, 1, 1]
    assert data[0]["mean"].to(torch.bfloat16).float().equal(data[0]["mean"])
    assert verify(tmp_path / "out") == []


def test_worker_processes(columns: Path) -> None:
    data = LatentDataset(columns)
    data[0]  # a file is open before the worker begins
    loader = DataLoader(data, batch_size=5, collate_fn=as_tensor, num_workers=1, multiprocessing_context="fork")
    assert torch.cat(list(loader)).equal(as_tensor(list(data.stream())))


def test_a_run_that_is_stopped_says_nothing_more(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's writer would end its file when it is collected, and complain that it is closed."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    class Stop:
        def update(self, images: int) -> None:
            raise KeyboardInterrupt

    settings = job(container="parquet", shard_images=7)
    with pytest.raises(KeyboardInterrupt):
        tokenize(settings, tmp_path / "out", workers=0, progress=lambda images: nullcontext(Stop()))
    gc.collect()
    assert unraisable == []


WRITTEN = {"row_group_size": 3, "compression": "none", "use_dictionary": False}


def rewrite(change: Callable[[Any], Any], **options: Any) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path, **{**WRITTEN, **options})

    return harm


def set_first(name: str, value: Any) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        at = table.schema.get_field_index(name)
        values = [value, *table.column(name).to_pylist()[1:]]
        return table.set_column(at, table.schema.field(name), pyarrow.array(values, table.schema.field(name).type))

    return change


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (rewrite(lambda table: table), None),
        (rewrite(lambda table: table, use_dictionary=True), "columns without compression and dictionaries"),
        (rewrite(lambda table: table, compression="zstd"), "columns without compression"),
        (rewrite(lambda table: table, row_group_size=100), "latents, 3 a row group"),
        (rewrite(lambda table: table.slice(1)), "latents, 3 a row group"),
        (rewrite(lambda table: table.drop_columns(["logvar"])), "expected the columns of a shard"),
        (rewrite(set_first("key", "../evil")), "expected a latent's key, found '../evil'"),
        (rewrite(set_first("label", 1)), "expected label and image as the index has them"),
        (rewrite(set_first("mean", b"\0" * 128)), "expected the statistics of its index"),
        (rewrite(set_first("logvar", b"\xff" * 128)), "expected finite numbers"),
        (lambda path: path.write_bytes(b"PAR1" * 100), "expected a Parquet file"),
    ],
)
def test_forged_shards(copy: Path, harm: Callable[[Path], None], fault: str | None) -> None:
    """With checksums made to fit."""
    path = copy / "shard-000000.parquet"
    harm(path)
    forge_index(copy, path)
    found = verify(copy)
    assert bool(found) == (fault is not None), found
    assert fault is None or any(fault in line and "\n" not in line for line in found), found
    if fault and "expected a" in fault:
        with pytest.raises(TokenizedDataError, match="expected a"):
            LatentDataset(copy)[0]


def forge_index(folder: Path, path: Path) -> None:
    import hashlib

    from ssdd.tokenization.format import ShardIndex

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    index = json.loads((folder / "shard-000000.json").read_text())
    index |= {"file_bytes": path.stat().st_size, "sha256": sha256}
    content = ShardIndex.decode(json.dumps(index).encode(), "forged").encode()
    (folder / "shard-000000.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= {"bytes": path.stat().st_size, "sha256": sha256}
    manifest["shards"][0]["index_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
