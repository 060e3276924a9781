"""``verify`` finds what is not as it was written, also where checksums were made to fit."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from ssdd.tokenization import verify
from ssdd.tokenization.format import ShardIndex

Members = dict[str, bytes]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "latents"))


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / "shard-000001.tar").read_bytes())
    content[2000] ^= 1
    (folder / "shard-000001.tar").write_bytes(content)


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return edit


def test_a_whole_set_has_no_faults(whole: Path) -> None:
    assert verify(whole) == []


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (flip_byte, r"shard-000001.tar: expected sha256 \w{12}\.\.\., found"),
        (lambda f: (f / "shard-000001.tar").unlink(), "shard-000001.tar"),
        (lambda f: (f / "shard-000001.json").unlink(), "shard-000001.json: expected this file"),
        (lambda f: shutil.copy(f / "shard-000001.tar", f / "shard-000002.tar"), "found one more"),
        (lambda f: (f / "plan.json").write_text('{"format": "x"}'), "plan.json: expected Plan as JSON"),
        (edit_manifest(lambda m: m["shards"][1].update(images=4)), "expected the counts and sizes"),
        (edit_manifest(lambda m: m.update(images=7)), "expected 6 images and 1 skipped, 7 in all, found 7"),
        (edit_manifest(lambda m: m.update(skipped=[])), "expected the 1 skipped images"),
        (edit_manifest(lambda m: m.update(skipped_images=2)), "expected the 1 skipped images"),
        (edit_manifest(lambda m: m["statistics"].update(shift_factor=0.1)), "expected the statistics of all shards"),
    ],
)
def test_harm_is_found(copy: Path, harm: Callable[[Path], Any], fault: str) -> None:
    harm(copy)
    found = verify(copy)
    assert any(re.search(fault, line) for line in found), found
    assert not any("\n" in line for line in found)


def forge(folder: Path, change: Callable[[Members], Any]) -> None:
    """Other members in the first shard, and checksums and places to match."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    change(members)
    offsets = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            offsets += [tar.offset] * name.endswith(".safetensors")
            tar.addfile(info, io.BytesIO(content))
    index = json.loads((folder / "shard-000000.json").read_text())
    index |= {"offsets": offsets, "file_bytes": path.stat().st_size}
    index["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    content = ShardIndex.decode(json.dumps(index).encode(), "forged").encode()
    (folder / "shard-000000.json").write_bytes(content)
    entry = {
        "bytes": index["file_bytes"],
        "sha256": index["sha256"],
        "index_sha256": hashlib.sha256(content).hexdigest(),
    }
    edit_manifest(lambda m: m["shards"][0].update(entry))(folder)


def change_first(suffix: str, make: Callable[[bytes], bytes]) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        name = next(name for name in members if name.endswith(suffix))
        members[name] = make(members[name])

    return change


def latent(value: float = 0.0, dtype: torch.dtype = torch.float16, side: int = 4) -> bytes:
    tensor = torch.full((4, side, side), value, dtype=dtype)
    return save({"mean": tensor, "logvar": tensor.clone()})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda members: None, None),
        (change_first(".safetensors", lambda _: latent(1.0)), "expected the statistics of its index"),
        (change_first(".safetensors", lambda _: latent(float("nan"))), "expected finite numbers"),
        (
            change_first(".safetensors", lambda _: latent(dtype=torch.float32)),
            "expected a latent of [0-9]+ bytes where the index has one",
        ),
        (
            change_first(".safetensors", lambda _: latent(side=2)),
            "expected a latent of [0-9]+ bytes where the index has one",
        ),
        (change_first(".safetensors", lambda old: b"\x80" * len(old)), "expected safetensors"),
        (change_first(".json", lambda old: old.replace(b'"label":0', b'"label":1')), "expected label and image"),
        (change_first(".json", lambda _: b"{"), "expected JSON"),
        (lambda members: members.pop(next(n for n in members if n.endswith(".json"))), "expected .json after it"),
    ],
)
def test_forged_shards(copy: Path, change: Callable[[Members], Any], fault: str | None) -> None:
    forge(copy, change)
    found = verify(copy)
    assert bool(found) == (fault is not None), found
    assert fault is None or any(re.search(fault, line) for line in found), found
