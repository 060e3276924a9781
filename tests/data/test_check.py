"""Every image is inspected once, in order, by however many processes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ssdd.data.check import THUMBNAIL, Inspection, Summary, inspect
from ssdd.data.sources import open_source

Picture = Callable[..., np.ndarray]
COUNT = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture: Picture) -> Path:
    """40 images, of which 7 is cut, 9 is a copy of 3, 11 is turned, 12 is gray, and 30 is large."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        Image.fromarray(picture(20 + i, 30, i)).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:100])
    (folder / "09.png").write_bytes((folder / "03.png").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(20, 30)).save(folder / "11.png", exif=exif)
    Image.fromarray(picture(20, 30)).convert("L").save(folder / "12.png")
    text = PngInfo()
    text.add_text("k", "x" * (3 << 20), zip=True)  # too much of it for Pillow
    Image.fromarray(picture(20, 30, 13)).save(folder / "13.png", pnginfo=text)
    Image.fromarray(picture(400, 300)).save(folder / "30.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_inspected_once(photos: Path, workers: int) -> None:
    found = list(inspect(open_source([photos]), workers, thumbnails=[2, 30]))
    assert [f.index for f in found] == list(range(COUNT)), "images are missing, or in another order"
    broken = [f for f in found if f.broken is not None]
    assert [f.index for f in broken] == [7], "another image counts as broken"
    assert str(photos / "07.png") in str(broken[0].broken), "the broken image is not named"
    sizes = {f.index: (f.height, f.width) for f in found}
    assert (sizes[0], sizes[11], sizes[30]) == ((20, 30), (30, 20), (400, 300)), "not the sizes that a viewer shows"
    assert [f.size for f in found if f.index in (0, 30)] == [
        (photos / name).stat().st_size for name in ("00.png", "30.png")
    ], "not the sizes of the files"
    assert {f.index: f.kind for f in found}[12] == "PNG L", "another mode"
    thumbnails = {f.index: f.thumbnail.shape for f in found if f.thumbnail is not None}
    assert thumbnails == {2: (22, 30, 3), 30: (THUMBNAIL, THUMBNAIL * 3 // 4, 3)}, "other thumbnails"


def test_summary(photos: Path) -> None:
    summary = Summary()
    for found in inspect(open_source([photos])):
        summary.add(found)
    assert (summary.readable, len(summary.broken)) == (COUNT - 1, 1), "an image is not counted"
    assert summary.duplicates() == [(9, 3)], "a copy is not found, or others are taken for one"
    assert summary.kinds == {"PNG RGB": COUNT - 2, "PNG L": 1}, "modes are miscounted"
    total = sum(p.stat().st_size for p in photos.iterdir() if p.name != "07.png")
    assert summary.total_bytes == total, "another number of bytes"
    sides = summary.shorter_sides()
    assert (sides.min(), sides.max(), len(sides)) == (20, 300, COUNT - 1), "not the shorter sides"
    assert summary.aspect_ratios()[0] == 1.5, "not width / height"


def test_duplicates_are_told_by_their_first() -> None:
    """Indices are those of the source, although broken images are left out."""
    summary = Summary()
    for index, digest in enumerate([5, 2**64 - 1, 5, 0, 5, 2**64 - 1]):
        broken = "a.png: expected an image" if index == 0 else None
        summary.add(Inspection(index, 1, digest, 8, 8, "PNG RGB", broken=broken))
    assert summary.duplicates() == [(4, 2), (5, 1)], "other pairs"


def test_nothing_readable() -> None:
    assert Summary().duplicates() == [], "there is a copy of nothing"
    assert len(Summary().shorter_sides()) == 0, "nothing has a size"


def test_one_image_too_large_for_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported like a broken one, and does not end the check."""

    def too_large(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ssdd.data.check.read_image", too_large)
    found = list(inspect(open_source([photos])))
    assert all("found a larger one" in str(f.broken) for f in found), "the reason is not told"
