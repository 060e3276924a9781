"""However a run ends, the next one makes the same set; and no other run gets into its folder."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from ssdd import AutoencoderSSDD
from ssdd.runtime.files import LOCK, only_one
from ssdd.tokenization import CropProtocol, TokenizeStopped, tokenize
from ssdd.tokenization.run import Tokenized
from tests.tokenization.conftest import SIZE, Job

Tree = Callable[[Path], dict[str, bytes]]


def again(job: Job, out: Path, **changes: object) -> Tokenized:
    return tokenize(job(flips=True, **changes), out, workers=0)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "latents"))


@pytest.mark.slow
def test_kill_9_in_the_middle(job: Job, whole: Path, tmp_path: Path, tree: Tree) -> None:
    """The process dies while it writes the second shard, and leaves its temporary file."""
    out = tmp_path / "latents"
    code = f"""
import os, signal
from contextlib import nullcontext
from pathlib import Path
import torch
from ssdd.tokenization import TokenizeJob, CropProtocol, tokenize

torch.set_num_threads(1)

class Die:
    seen = 0

    def update(self, images):
        self.seen += images
        if self.seen > 4:
            os.kill(os.getpid(), signal.SIGKILL)

tokenize({job(flips=True)!r}, Path({str(out)!r}), workers=0, progress=lambda images: nullcontext(Die()))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    left = sorted(p.name for p in out.iterdir())
    assert [name for name in left if not name.startswith(".")] == [
        "images.index",
        "plan.json",
        "shard-000000.json",
        "shard-000000.tar",
    ]
    assert any(name.endswith("shard-000001.tar") for name in left), "no temporary file: it was killed elsewhere"
    done = again(job, out)
    assert (done.made, done.kept) == (1, 1)
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("harm", ["none", "no-shard", "no-index", "cut", "no-manifest", "damaged-index", "temporary"])
def test_only_what_is_missing_is_made(job: Job, copy: Path, whole: Path, harm: str, tree: Tree) -> None:
    shard, index = copy / "shard-000001.tar", copy / "shard-000001.json"
    if harm == "no-shard":
        shard.unlink()
    elif harm == "no-index":
        index.unlink()
    elif harm == "cut":
        os.truncate(shard, shard.stat().st_size - 512)
    elif harm == "no-manifest":
        (copy / "manifest.json").unlink()
    elif harm == "damaged-index":
        index.write_bytes(index.read_bytes()[:-40])
    elif harm == "temporary":
        (copy / ".123-0123456789ab-shard-000001.tar").write_bytes(b"half")
    untouched = (copy / "shard-000000.tar").stat().st_mtime_ns
    time.sleep(0.01)
    done = again(job, copy)
    assert done.made == (harm in ("no-shard", "no-index", "cut", "damaged-index"))
    assert tree(copy) == tree(whole)
    assert (copy / "shard-000000.tar").stat().st_mtime_ns == untouched, "a whole shard was made anew"


def test_other_settings_are_refused(job: Job, copy: Path, other_model: Path, tree: Tree) -> None:
    before = tree(copy)
    with pytest.raises(ValueError, match=f"begun with other settings: .*protocol.size is {SIZE} there, 16 here"):
        again(job, copy, size=16)
    with pytest.raises(ValueError, match=r"data.images is 7 there, 2 here"):
        again(job, copy, only="ant/*")
    with pytest.raises(ValueError, match=r"model.encoder_sha256 is \w{24}\.\.\. there, "):
        again(job, copy, model=str(other_model))
    with pytest.raises(ValueError, match="dtype is fp32 there, bf16 here"):  # 40 dB apart
        again(job, copy, dtype="bf16")
    assert tree(copy) == before


def test_the_same_data_and_encoder_elsewhere_are_the_same(
    job: Job, copy: Path, photographs: Path, tiny_model: Path, tmp_path: Path, tree: Tree
) -> None:
    before = tree(copy)
    shutil.copytree(photographs, tmp_path / "moved")
    model = AutoencoderSSDD.from_pretrained(tiny_model)
    model.decoder.conv_in.bias.data += 1  # a decoder that was trained on has the same latents
    model.save_pretrained(tmp_path / "model")
    done = again(job, copy, paths=(f"{tmp_path / 'moved'}/",), model=str(tmp_path / "model"))
    assert done.kept == 2
    assert tree(copy) == before


def test_strange_folders_are_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new folder, or one of ssdd tokenize"):
        again(job, tmp_path / "home")
    with pytest.raises(NotADirectoryError, match="found a file"):
        again(job, tmp_path / "home" / "thesis.txt")
    with pytest.raises(ValueError, match="multiple of 8"):
        again(job, tmp_path / "new", size=20)
    assert (
        sorted(p.name for p in tmp_path.rglob("*")) == [LOCK, "home", "thesis.txt"] or not (tmp_path / "new").exists()
    )


def test_two_processes_on_one_folder(job: Job, copy: Path) -> None:
    with only_one(copy), pytest.raises(ValueError, match="is being tokenized into by another process"):
        again(job, copy)


def test_nothing_but_broken_images(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected usable images, found none: 1 skipped"):
        again(job, tmp_path / "out", only="bee/broken*")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_image_that_cannot_be_read_now_is_not_skipped(
    job: Job, photographs: Path, tmp_path: Path, tree: Tree
) -> None:
    """A tar file is cut after it was listed, and put back: the run ends, and the next one has all its images."""
    data = tmp_path / "data.tar"
    with tarfile.open(data, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(photographs, "photographs")
    content = data.read_bytes()
    settings = job(paths=(str(data),), shard_images=1)
    tokenize(settings, tmp_path / "undisturbed", workers=0)

    class Cut:
        def update(self, images: int) -> None:
            os.truncate(data, 2048)

    out = tmp_path / "latents"
    with pytest.raises(OSError, match=r"data\.tar:photographs/.*the tar file has been shortened.*run the same command"):
        tokenize(settings, out, workers=0, progress=lambda images: nullcontext(Cut()))
    shards = len(list(out.glob("*.tar")))
    data.write_bytes(content)
    assert tokenize(settings, out, workers=0).kept == shards == 1
    found, expected = tree(out), tree(tmp_path / "undisturbed")
    assert found.pop("images.index/list.json") != expected.pop("images.index/list.json"), (
        "the file has another time now"
    )
    assert found == expected


def test_too_little_memory_for_an_image_is_not_its_fault(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: CropProtocol, pixels: object, numbers: object) -> None:
        raise MemoryError

    monkeypatch.setattr(CropProtocol, "cut", cut)
    with pytest.raises(OSError, match="png: expected memory for this image, found too little"):
        again(job, tmp_path / "latents")


def test_a_signal_that_was_swallowed_stops_at_the_next_report(job: Job, tmp_path: Path) -> None:
    """As where it meets a finalizer, whose exceptions Python prints and drops."""

    class Swallow:
        reports = 0

        def update(self, images: int) -> None:
            self.reports += 1
            with contextlib.suppress(TokenizeStopped):
                signal.raise_signal(signal.SIGTERM)

    bar = Swallow()
    with pytest.raises(TokenizeStopped, match="stopped by SIGTERM: 1 of 7 shards are in"):
        tokenize(job(shard_images=1), tmp_path / "out", workers=0, progress=lambda images: nullcontext(bar))
    assert bar.reports == 1
