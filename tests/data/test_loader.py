"""The stream of training crops: position p is a function of (seed, p), however it is read."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data.images import ImageError
from ssdd.data.loader import BrokenImages, CropStream, crop_batches
from ssdd.data.sources import open_source
from ssdd.data.transforms import training_crop

COUNT = 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        Image.fromarray(picture(24 + i, 40 - i, i)).save(folder / f"{i}.png")
    return folder


def stream(folder: Path, seed: int = 0, scale: float = 2.0, flip: bool = True, size: int = 16) -> CropStream:
    return CropStream(open_source([folder]), size, scale, flip, seed)


def take(folder: Path, start: int, batches: int, batch: int = 4, workers: int = 0, **options: int) -> torch.Tensor:
    """So many batches, one after the other."""
    seed = options.pop("seed", 0)
    iterator = crop_batches(stream(folder, seed), start, batch, workers, **options)
    return torch.cat(list(itertools.islice(iterator, batches)))


def test_batches_are_crops(photos: Path) -> None:
    batch = next(crop_batches(stream(photos), 0, 4, 0))
    assert (batch.shape, batch.dtype) == ((4, 3, 16, 16), torch.uint8), "another shape or type"
    source = open_source([photos])
    order = np.random.default_rng([0, 0, COUNT]).permutation(COUNT)
    for position in range(4):
        random = np.random.default_rng([0, position])
        crop = training_crop(source.read(int(order[position])), 16, 2.0, True, random)
        expected = torch.from_numpy(crop).permute(2, 0, 1)
        assert torch.equal(batch[position], expected), f"position {position}: older runs cannot be resumed any more"


@pytest.mark.parametrize("start", [4, 6, 21])
def test_a_stream_goes_on_where_it_stopped(photos: Path, start: int) -> None:
    """Batches from position p are those of a run from 0, in this pass over the photographs and in later ones."""
    whole = take(photos, 0, 8)
    rest = take(photos, start, 2)
    assert torch.equal(rest, whole[start : start + 8]), "a resumed run sees other crops"


def test_the_batch_size_does_not_matter(photos: Path) -> None:
    assert torch.equal(take(photos, 0, 6, batch=2), take(photos, 0, 2, batch=6)), "crops depend on the batch size"


def test_every_pass_takes_each_photograph_once(tmp_path: Path) -> None:
    """Photographs of one colour each: a pass has every colour, each pass in another order."""
    for i in range(COUNT):
        Image.fromarray(np.full((16, 20, 3), 30 * i, np.uint8)).save(tmp_path / f"{i}.png")
    colours = take(tmp_path, 0, 3, batch=COUNT)[:, 0, 5, 5].reshape(3, COUNT).tolist()
    for colour in colours:
        assert sorted(colour) == [30 * i for i in range(COUNT)], "a pass leaves photographs out, or repeats them"
    assert len({tuple(c) for c in colours}) == 3, "passes are in the same order"


def test_the_seed_and_the_pass_change_the_crops(photos: Path) -> None:
    crops = take(photos, 0, 7)
    assert len({c.numpy().tobytes() for c in crops}) == 28, "a crop comes twice"
    assert not torch.equal(crops, take(photos, 0, 7, seed=1)), "the seed has no effect"


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch(photos: Path, processes: int) -> None:
    """Each process has its slice of the very batch that one process would have."""
    whole = take(photos, 6, 3, batch=8).reshape(3, 8, 3, 16, 16)
    local = 8 // processes
    for rank in range(processes):
        part = take(photos, 6, 3, batch=8, rank=rank, processes=processes).reshape(3, local, 3, 16, 16)
        expected = whole[:, rank * local : (rank + 1) * local]
        assert torch.equal(part, expected), f"process {rank} of {processes} sees other crops"


def test_batch_that_cannot_be_shared(photos: Path) -> None:
    with pytest.raises(ValueError, match="expected a batch size divisible by 3 processes, found 4"):
        crop_batches(stream(photos), 0, 4, 0, rank=0, processes=3)


def test_workers_change_nothing(photos: Path) -> None:
    assert torch.equal(take(photos, 5, 6, workers=2), take(photos, 5, 6)), "the number of workers changes the crops"


def skipped(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that name a skipped image."""
    return [r.getMessage() for r in caplog.records if r.name == "ssdd.data.loader" and r.levelno == logging.WARNING]


def damage(photos: Path, folder: Path, *bad: int) -> Path:
    """A copy of the photographs in which some are no images."""
    for path in photos.iterdir():
        (folder / path.name).write_bytes(b"damaged" if int(path.stem) in bad else path.read_bytes())
    return folder


def test_unreadable_photograph_is_skipped(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named in one line, the next photograph takes its place, and all other positions stay as they are."""
    bad = 3
    whole = take(photos, 0, 4, batch=COUNT)
    found = take(damage(photos, tmp_path, bad), 0, 4, batch=COUNT)
    (line,) = skipped(caplog)
    assert line.startswith(f"skipped: {tmp_path}/{bad}.png: "), f"the photograph is not named: {line}"
    source = open_source([photos])
    for position in range(4 * COUNT):
        epoch, offset = divmod(position, COUNT)
        order = np.random.default_rng([0, epoch, COUNT]).permutation(COUNT)
        expected = whole[position]
        if order[offset] == bad:
            after = source.read(int(order[(offset + 1) % COUNT]))
            crop = training_crop(after, 16, 2.0, True, np.random.default_rng([0, position]))
            expected = torch.from_numpy(crop).permute(2, 0, 1)
        assert torch.equal(found[position], expected), f"position {position} is another crop than it should be"


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_photograph_at_all(tmp_path: Path, workers: int) -> None:
    """Training stops with one line instead of looking for ever."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("damaged")
    with pytest.raises(ImageError) as caught:
        next(crop_batches(stream(tmp_path), 0, 2, workers))
    assert str(caught.value) == "expected readable images, found 3 unreadable ones in a row", "not one clear line"


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_named_once_and_counted(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """In the training process, whichever workers met them, however often."""
    broken = BrokenImages(limit=2)
    batches = crop_batches(stream(damage(photos, tmp_path, 2, 5)), 0, 2, workers, broken=broken)
    for _ in itertools.islice(batches, 2 * COUNT):
        pass
    assert sorted(broken.names) == [f"{tmp_path}/{i}.png" for i in (2, 5)], "other images count as broken"
    assert broken.count == 2, "an image that two workers met counts twice"
    assert len(skipped(caplog)) == 2, f"not one line for each broken image: {skipped(caplog)}"


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_end_the_run(photos: Path, tmp_path: Path, workers: int) -> None:
    """One line that says how many, and what to do."""
    batches = crop_batches(stream(damage(photos, tmp_path, 1, 3, 5)), 0, 2, workers, broken=BrokenImages(limit=2))
    with pytest.raises(ImageError) as caught:
        for _ in itertools.islice(batches, 2 * COUNT):
            pass
    message = str(caught.value)
    assert message.startswith("expected at most 2 unreadable images, found 3"), f"not how many: {message}"
    assert "--data.broken-limit raises the limit" in message, f"not what to do: {message}"
    assert "\n" not in message, "not one line"


def test_limit_of_nought_allows_no_broken_image() -> None:
    broken = BrokenImages(limit=0)
    assert broken.count == 0, "an image is broken before any was read"
    with pytest.raises(ImageError, match="expected at most 0 unreadable images, found 1"):
        broken.add("a.png", "a.png: expected an image, found text")


TRAINER = """
import os, signal, sys, time
import torch.utils.data._utils.worker as worker
worker.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds until a worker looks for its parent: 5, and nobody wants to wait
from ssdd.data.loader import CropStream, crop_batches
from ssdd.data.sources import open_source

signal.signal(signal.SIGTERM, lambda *_: None)  # as a training process that saves first
signal.signal(signal.SIGINT, lambda *_: None)
batches = crop_batches(CropStream(open_source(sys.argv[1:]), 16, 2.0, True, 0), 0, 4, 2)
for _ in range(2):  # one of each worker: from its first on it is ready for signals
    next(batches)
print(os.getpid(), flush=True)
for line in sys.stdin:
    for _ in range(20):
        next(batches)
    print("served", flush=True)
"""


@pytest.fixture
def trainer(photos: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that reads 20 batches for every line it is given, the leader of a group with its two workers."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(photos)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.stdin.close()
    if process.poll() is None:
        process.kill()
    process.wait()


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists processes by /proc, as Linux has it")
def test_workers_outlive_signals_but_not_their_trainer(trainer: subprocess.Popen[str]) -> None:
    """A scheduler's SIGTERM and Ctrl-C reach the whole group; a training process that is killed ends nobody itself."""
    assert trainer.stdin is not None
    assert trainer.stdout is not None
    workers = children(trainer)
    assert len(workers) == 2, "the test does not see the workers"
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(trainer.pid, number)
        print(file=trainer.stdin, flush=True)
        assert trainer.stdout.readline() == "served\n", f"no batches after {number.name}: a worker died of it"
    trainer.kill()
    assert gone(workers, 10), "workers of a killed training process stay, with their memory"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists processes by /proc, as Linux has it")
def test_workers_end_with_their_trainer(trainer: subprocess.Popen[str]) -> None:
    """It ends while batches are still open, after a signal as well: nobody waits for a worker that ignores it."""
    assert trainer.stdin is not None
    workers = children(trainer)
    os.killpg(trainer.pid, signal.SIGTERM)
    trainer.stdin.close()
    assert trainer.wait(20) == 0, "the training process fails at its end"
    assert gone(workers, 1), "workers stay behind"


HOARDER = """
import time
import numpy as np
from torch.utils.data import DataLoader
from ssdd.data.loader import start_worker
from ssdd.evaluation.protocols import _as_it_is

items = [np.zeros((400, 400, 3), np.uint8)] * 100
loader = DataLoader(items, batch_size=None, collate_fn=_as_it_is, num_workers=2, worker_init_fn=start_worker)
batches = iter(loader)
next(batches)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists processes by /proc, as Linux has it")
def test_workers_of_a_killed_process_do_not_wait_for_a_reader() -> None:
    """What a worker has ready does not fit a pipe, and nobody is left to take it: it stays for ever."""
    process = subprocess.Popen([sys.executable, "-c", HOARDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    workers = children(process)
    assert len(workers) == 2, "the test does not see the workers"
    process.kill()
    process.wait()
    assert gone(workers, 15), "workers of a killed process stay, with their memory"
