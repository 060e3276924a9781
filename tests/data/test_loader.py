"""The stream of training crops: position p is a function of (seed, p), however it is read."""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data.images import ImageError
from ssdd.data.loader import CropStream, crop_batches
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


def test_unreadable_photograph_is_skipped(photos: Path, tmp_path: Path) -> None:
    """It is named in one warning, the next photograph takes its place, and all other positions stay as they are."""
    bad = 3
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(b"damaged" if path.stem == str(bad) else path.read_bytes())
    whole = take(photos, 0, 4, batch=COUNT)
    with pytest.warns(UserWarning, match=rf"skipped: .*{bad}\.png") as caught:
        found = take(tmp_path, 0, 4, batch=COUNT)
    assert len(caught) == 1, f"expected one warning for one photograph, found {len(caught)}"
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError) as caught:
            next(crop_batches(stream(tmp_path), 0, 2, workers))
    assert str(caught.value) == "expected readable images, found 3 unreadable ones in a row", "not one clear line"
