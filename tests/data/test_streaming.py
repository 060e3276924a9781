"""Streamed data sets: a run that goes on gets the very batches that it would have got without a stop."""

import io
import itertools
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data import remote, streaming
from ssdd.data.images import ImageError, ImageReadError
from ssdd.data.loader import BrokenImages
from ssdd.data.sources import open_source
from ssdd.data.streaming import StreamedBatches, StreamedCrops, streaming_path

SIZE = 16
LENGTHS = (9, 4, 7, 11, 3, 8)  # rows of the shards: 42
COUNT = sum(LENGTHS)


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="needs the extra: pip install 'ssdd[data]'")


@pytest.fixture(autouse=True)
def surroundings(datasets: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fills the user's cache; windows of ten rows, so that a pass has several of them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(streaming, "_WINDOW_ROWS", 10)


def write_shards(datasets: Any, folder: Path, cells: list[Any], lengths: tuple[int, ...] = LENGTHS) -> Path:
    """Write parquet files of so many cells each, in row groups of three."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    remaining = iter(cells)
    for i, length in enumerate(lengths):
        column = list(itertools.islice(remaining, length))
        dataset = datasets.Dataset.from_dict({"image": column, "label": [0] * length}, features=features)
        dataset.to_parquet(folder / f"train-{i:05d}-of-{len(lengths):05d}.parquet", batch_size=3)
    return folder


def grey(level: int) -> dict[str, Any]:
    """A small image of one level: its crops tell which image they are of."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 18), (level, level, level)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def greys(datasets: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(datasets, tmp_path_factory.mktemp("greys"), [grey(i) for i in range(COUNT)])


@pytest.fixture(scope="module")
def photos(datasets: Any, tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    cells = []
    for i in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(picture(20 + i % 5, 30 - i % 7, i)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    return write_shards(datasets, tmp_path_factory.mktemp("photos"), cells)


def crops(folder: Path, seed: int = 0) -> StreamedCrops:
    return StreamedCrops(f"hf:{folder}:train?streaming", SIZE, 1.5, True, seed)


def take(folder: Path, count: int, batch: int = 4, workers: int = 0, **options: Any) -> torch.Tensor:
    """So many batches, one after the other."""
    seed = options.pop("seed", 0)
    return torch.cat(list(itertools.islice(StreamedBatches(crops(folder, seed), batch, workers, **options), count)))


def levels(batches: torch.Tensor) -> list[int]:
    return batches[:, 0, 5, 5].tolist()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_goes_on_where_it_stopped(photos: Path, workers: int) -> None:
    """After any number of batches, in the first pass and in later ones, whatever the workers had read ahead."""
    whole = take(photos, 26).split(4)  # two and a half passes
    assert len({crop.numpy().tobytes() for batch in whole for crop in batch}) == 26 * 4, "crops come twice"
    for stop in range(24) if workers == 0 else (0, 3, 10, 11, 21):
        batches = StreamedBatches(crops(photos), 4, workers)
        for expected in whole[:stop]:
            assert torch.equal(next(batches), expected), "the number of workers changes the batches"
        state = json.loads(json.dumps(batches.state()))
        del batches
        resumed = StreamedBatches(crops(photos), 4, workers, state=state)
        assert resumed.state() == state, "a run that takes no batch is elsewhere afterwards"
        for number in (stop, stop + 1):
            assert torch.equal(next(resumed), whole[number]), f"stopped after {stop}: batch {number} is another one"


def test_the_number_of_workers_may_change(photos: Path) -> None:
    """And the batch size: a state counts images."""
    whole = take(photos, 12)
    batches = StreamedBatches(crops(photos), 4, 2)
    for _ in range(5):
        next(batches)
    rest = take(photos, 1, batch=28, workers=1, state=batches.state())
    assert torch.equal(rest, whole[20:]), "a run that goes on with other workers sees other images"


def test_a_pass_has_each_image_once_in_an_order_of_its_own(greys: Path) -> None:
    """The order depends on the seed and the pass, and mixes the shards."""
    passes = [levels(p) for p in take(greys, 3, batch=COUNT).split(COUNT)]
    for order in passes:
        assert sorted(order) == list(range(COUNT)), "a pass leaves images out, or repeats them"
        assert len({shard_of(level) for level in order[:8]}) > 1, "the images of a shard stay together"
    assert len({tuple(p) for p in passes}) == 3, "passes are in the same order"
    assert levels(take(greys, 1, batch=COUNT, seed=1)) != passes[0], "the seed has no effect"


def shard_of(level: int) -> int:
    return int(np.searchsorted(np.cumsum(LENGTHS), level, side="right"))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_parts_of_their_own(greys: Path, processes: int) -> None:
    """Two share the six shards; four cannot, and take every fourth row of each. A pass has every image once."""
    parts = []
    for rank in range(processes):
        rows = sum(len(range(rank, n, 4)) for n in LENGTHS)
        if processes == 2:
            order = np.random.default_rng([0, 0, 6]).permutation(6)[rank::2]
            rows = sum(LENGTHS[i] for i in order)
        part = levels(take(greys, rows, batch=processes, rank=rank, processes=processes))
        assert len(part) == rows, "the global batch is not shared"
        parts += part
    assert sorted(parts) == list(range(COUNT)), "processes read the same images, or leave some out"


@pytest.mark.parametrize(("rank", "processes"), [(1, 2), (3, 4)])
def test_each_process_goes_on_where_it_stopped(photos: Path, rank: int, processes: int) -> None:
    share: dict[str, Any] = {"rank": rank, "processes": processes}
    whole = take(photos, 16, 8, **share)
    batches = StreamedBatches(crops(photos), 8, 1, **share)
    for _ in range(5):
        next(batches)
    rest = take(photos, 11, 8, state=batches.state(), **share)
    assert torch.equal(rest, whole[5 * 8 // processes :]), "a process that goes on sees other images"
    with pytest.raises(ValueError, match=f"position of process 0 of 1 .*found one of process {rank} of {processes}"):
        StreamedBatches(crops(photos), 8, 0, state=batches.state())


def test_batch_that_cannot_be_shared(greys: Path) -> None:
    with pytest.raises(ValueError, match="expected a batch size divisible by 3 processes, found 4"):
        StreamedBatches(crops(greys), 4, 0, rank=0, processes=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_named_once_and_skipped(
    datasets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """The next image takes their place, in a run that goes on as well."""
    cells: list[Any] = [grey(i) for i in range(COUNT)]
    cells[5], cells[20] = {"bytes": b"damaged", "path": None}, None
    write_shards(datasets, tmp_path, cells)
    broken = BrokenImages()
    batches = StreamedBatches(crops(tmp_path), 4, workers, broken=broken)
    whole = torch.cat(list(itertools.islice(batches, 20)))  # two passes
    assert sorted(levels(whole[: COUNT - 2])) == [i for i in range(COUNT) if i not in (5, 20)], "others are skipped"
    rows = [f"hf:{tmp_path}:train[shard 0, row 5]", f"hf:{tmp_path}:train[shard 3, row 0]"]
    assert sorted(broken.names) == rows, "the rows are not named"
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "skipped" in r.getMessage()]
    assert len(lines) == 2, f"expected one line for each unreadable image, found {lines}"
    for stop in (1, 2, 3, 4, 5, 9):
        start = StreamedBatches(crops(tmp_path), 4, workers)
        for _ in range(stop):
            next(start)
        rest = take(tmp_path, 3, workers=workers, state=start.state())
        assert torch.equal(rest, whole[4 * stop : 4 * stop + 12]), f"stopped after {stop}: other images follow"
    with pytest.raises(ImageError, match="expected at most 1 unreadable images, found 2"):
        list(itertools.islice(StreamedBatches(crops(tmp_path), 4, workers, broken=BrokenImages(1)), 20))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_at_all(datasets: Any, tmp_path: Path, workers: int) -> None:
    """Training stops with one line instead of looking for ever."""
    write_shards(datasets, tmp_path, [{"bytes": b"damaged", "path": None}] * 3, (3,))
    with pytest.raises(ImageError) as caught:
        next(StreamedBatches(crops(tmp_path), 2, workers))
    assert str(caught.value) == "expected readable images, found 100 unreadable ones in a row", "not one clear line"
    write_shards(datasets, tmp_path, [], (0,))
    with pytest.raises(ImageError, match="expected images for each process, found none"):
        next(StreamedBatches(crops(tmp_path), 2, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_shard_that_cannot_be_read(greys: Path, tmp_path: Path, workers: int) -> None:
    """It ends the run in one line: a run without it would not be the same when it is there again."""
    for path in greys.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    batches_of = crops(tmp_path)
    (tmp_path / "train-00004-of-00006.parquet").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r":train: expected shard 4 to be readable, found .*") as caught:
        list(itertools.islice(StreamedBatches(batches_of, 4, workers), 11))
    assert "\n" not in str(caught.value), "not one line"


def test_images_beside_the_data_set(datasets: Any, tmp_path: Path) -> None:
    """Cells with addresses, as a hub's data set of image files has; what is gone for good is unreadable."""
    fsspec = pytest.importorskip("fsspec")
    content = grey(50)["bytes"]
    fsspec.filesystem("memory").pipe_file("/there.png", content)
    addresses = ["memory://there.png", "memory://gone.png"]
    write_shards(datasets, tmp_path, [{"bytes": None, "path": a} for a in addresses], (2,))
    broken = BrokenImages()
    batches = StreamedBatches(crops(tmp_path), 2, 0, broken=broken)
    assert levels(next(batches)) == [50, 50], "an image at an address is not read"
    next(batches)
    assert broken.names == (f"hf:{tmp_path}:train[shard 0, row 1]",), "an image that is gone is not counted"


def test_storage_that_fails_ends_the_run(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that could not be fetched may be a good one: to skip it would change the run."""
    fsspec = pytest.importorskip("fsspec")

    def fail(*_: object) -> None:
        raise ConnectionError("reset by peer")

    write_shards(datasets, tmp_path, [{"bytes": None, "path": "memory://there.png"}], (1,))
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", fail)
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0)
    with pytest.raises(ImageError, match=r"there\.png: expected to read it, found in 4 attempts: reset by peer"):
        next(StreamedBatches(crops(tmp_path), 1, 0))
    with pytest.raises(ImageReadError):
        crops(tmp_path).identity()


def test_identity(datasets: Any, greys: Path, photos: Path, tmp_path: Path) -> None:
    """The same wherever the files lie; another for other images, shards or columns."""
    identity = crops(greys).identity()
    for path in greys.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert crops(tmp_path, seed=1).identity() == identity, "a copy counts as other data"
    assert crops(photos).identity() != identity, "other images count as the same data"
    (tmp_path / "train-00005-of-00006.parquet").unlink()
    assert crops(tmp_path).identity() != identity, "fewer shards count as the same data"


def test_streams_can_be_sent_to_another_process(photos: Path) -> None:
    sent = pickle.loads(pickle.dumps(crops(photos)))
    assert torch.equal(next(StreamedBatches(sent, 4, 0)), take(photos, 1)), "it reads other images there"


def test_memory_is_bounded_by_bytes_too(greys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of large images have fewer rows; a pass still has every image once."""
    monkeypatch.setattr(streaming, "_WINDOW_BYTES", 1)
    windows = crops(greys).windows(streaming._Position(), 0, 1)
    assert all(len(window.rows) <= 4 for window in itertools.islice(windows, 30)), "a window takes more than a round"
    assert sorted(levels(take(greys, 1, batch=COUNT))) == list(range(COUNT)), "images are lost between windows"


def test_paths(datasets: Any, greys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``?streaming`` asks for it, of a hub's data set by name and split; what cannot stream is refused in one line."""
    assert streaming_path("hf:owner/name:train?streaming"), "a data set of the hub is not streamed"
    assert streaming_path("hf:./folder?streaming"), "a folder is not streamed"
    assert not streaming_path("hf:owner/name:train"), "data that nobody asked to stream is streamed"
    assert not streaming_path("folder?streaming"), "a folder of images is streamed"
    with pytest.raises(ImageError, match=r"\?streaming: expected .*, found a stream, which only `ssdd train` takes"):
        open_source([f"hf:{greys}?streaming"])
    datasets.Dataset.from_dict({"n": [1]}).save_to_disk(tmp_path / "saved")
    for path, line in (
        (f"hf:{tmp_path}/saved?streaming", "found what save_to_disk wrote.*leave out"),
        (f"hf:{greys}:test?streaming", "expected one of the splits that are there, train; found test"),
        (f"hf:{greys}:train[:5]?streaming", "found ValueError: Bad split"),
        ("hf:./nowhere?streaming", "expected a folder"),
    ):
        with pytest.raises(ImageError, match=line):
            StreamedCrops(path, SIZE, 1.0, False, 0)
    folder = crops(greys)._split.dataset
    asked: list[tuple[object, ...]] = []

    def load_dataset(*arguments: object, **options: object) -> Any:
        asked.append((*arguments, options))
        return folder

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    StreamedCrops("hf:owner/name:validation?streaming", SIZE, 1.0, False, 0)
    assert asked == [("owner/name", {"split": "validation", "streaming": True})], "the hub is asked for something else"
