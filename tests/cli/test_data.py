"""``ssdd data check``: counts, sizes, what is broken, and what it writes."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.data.images import read_image
from ssdd.data.report import contact_sheet, histogram
from tests.images import png

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
Picture = Callable[..., np.ndarray]


@pytest.fixture
def photos(tmp_path: Path, picture: Picture) -> Path:
    """A folder with three images, two of them the same, and a tar file with two larger ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture(100, 150)).save(folder / "a.png")
    Image.fromarray(picture(130, 100)).save(folder / "b.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        for i in range(2):
            buffer = io.BytesIO()
            Image.fromarray(picture(256, 300 + i, i)).save(buffer, "JPEG")
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return folder


def broken(result: Any) -> list[str]:
    return [line for line in result.err.splitlines() if line.startswith("broken ")]


@pytest.mark.parametrize("workers", [0, 2])
def test_good_data(ssdd: Ssdd, photos: Path, tmp_path: Path, tree: Tree, workers: int) -> None:
    before = tree(tmp_path)
    result = ssdd("data", "check", photos, tmp_path / "more.tar", "--workers", workers)
    assert result.status == 0, f"good data are refused: {result.err}"
    assert broken(result) == [], "a good image counts as broken"
    lines = result.out.splitlines()
    assert lines[0].startswith("5 images, "), f"another number: {lines[0]}"
    assert lines[0].endswith("5 readable, 0 broken, 1 duplicates of others"), f"miscounted: {lines[0]}"
    assert "shorter side    min 100, median 100, max 256 px" in lines, "not the shorter sides"
    assert "width / height  min 0.77, median 1.18, max 1.50" in lines, "not the aspect ratios"
    assert "formats         PNG RGB 3, JPEG RGB 2" in lines, "not the formats"
    assert "smaller than 128 px: 3 (60.0%)" in lines, "small images are not told"
    assert "smaller than 256 px: 3 (60.0%)" in lines, "256 is smaller than 256"
    assert [line.split() for line in lines if "#" in line] == [
        ["96-127", "3", "#" * 24],
        ["256-383", "2", "#" * 16],
    ], "another histogram"
    assert tree(tmp_path) == before, "something was written without --out"


def test_broken_images(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """Each is named in one line, the others are counted, and a script notices."""
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "letter.jpg").write_text("Dear Sir or Madam")
    result = ssdd("data", "check", photos, "--out", "out")
    as_json = ssdd("data", "check", photos, "--json")
    assert as_json.status == result.status == 3, "a script does not notice the broken images"
    lines = broken(result)
    assert len(lines) == 2, f"not one line for each: {result.err}"
    for name in ("cut.png", "letter.jpg"):
        assert sum(str(photos / name) in line for line in lines) == 1, f"{name} is not named once"
    assert "5 images, " in result.out, "broken images are not counted among the images"
    assert "3 readable, 2 broken" in result.out, "miscounted"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert json.loads(as_json.out) == report
    assert [str(photos / n) in line for n, line in zip(("cut.png", "letter.jpg"), report["broken"], strict=True)] == [
        True,
        True,
    ], "the report does not name them"


def test_results(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    result = ssdd("data", "check", photos, tmp_path / "more.tar", "--out", "out")
    assert result.status == 0, result.err
    assert "contact-sheet.jpg and report.json in out" in result.out, "the user is not told where they are"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"contact-sheet.jpg", "report.json"}, "other files"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["images"], report["readable"], report["broken"]) == (5, 5, []), "miscounted"
    assert report["shorter_side"] == {"min": 100, "median": 100.0, "max": 256}, "other sizes"
    assert report["smaller_than"] == {"128": 3, "256": 3, "512": 5}, "other limits or counts"
    assert report["duplicate_of"] == {str(photos / "copy.png"): str(photos / "a.png")}, "another pair of copies"
    assert sum(b["images"] for b in report["shorter_side_histogram"]) == 5, "the histogram loses images"


def test_contact_sheet_shows_the_images(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for colour, name in zip(colours, ("a.png", "b.png", "copy.png"), strict=True):
        Image.new("RGB", (200, 200), colour).save(photos / name)
    assert ssdd("data", "check", photos, "--out", "out").status == 0
    page = read_image(tmp_path / "out" / "contact-sheet.jpg").astype(int)
    middles = [page[8 + 80, 8 + 80 + i * 168] for i in range(3)]
    assert np.abs(np.array(middles) - colours).max() < 12, "the pictures are not in a row, in their order"


def test_contact_sheet_of_many() -> None:
    """64 pictures in eight rows; names of any length and script do not matter."""
    picture = np.zeros((40, 160, 3), np.uint8)
    page = contact_sheet([(picture, "日本/" + "x" * 300 + "\udce9.png")] * 64)
    assert page.shape == (8 + 8 * 186, 8 + 8 * 168, 3), "another size"


def test_at_most_64_are_shown(ssdd: Ssdd, tmp_path: Path) -> None:
    """Evenly spaced: the first and the last are among them."""
    (tmp_path / "many").mkdir()
    for i in range(130):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "many" / f"{i:03d}.png")
    assert ssdd("data", "check", "many", "--out", "out", "--workers", 0).status == 0
    page = read_image(tmp_path / "out" / "contact-sheet.jpg")
    assert page.shape == (8 + 8 * 186, 8 + 8 * 168, 3), "not 64 pictures"
    assert abs(int(page[88, 88, 0])) < 9, "the first image is not shown"
    assert abs(int(page[88 + 7 * 186, 88 + 7 * 168, 0]) - 129) < 9, "the last image is not shown"


def test_second_run(ssdd: Ssdd, photos: Path, tmp_path: Path, tree: Tree) -> None:
    """Results are replaced with --overwrite only, and that is said before the images are read."""
    assert ssdd("data", "check", photos, "--out", "out").status == 0
    before = tree(tmp_path / "out")
    (photos / "b.png").unlink()
    line = ssdd("data", "check", photos, "--out", "out").error_line()
    assert "exists already; pass --overwrite" in line, f"not what to do: {line}"
    assert tree(tmp_path / "out") == before, "results were changed without --overwrite"
    assert ssdd("data", "check", photos, "--out", "out", "--overwrite").status == 0, "--overwrite fails"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["images"] == 2, "--overwrite kept old results"


def test_nothing_readable(ssdd: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "letter.jpg").write_text("Dear Sir or Madam")
    result = ssdd("data", "check", "bad", "--out", "out")
    assert result.status == 1, "data without one readable image pass"
    assert "1 images, 0.0 MiB: 0 readable, 1 broken" in result.out, f"miscounted: {result.out}"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.json"}, "a sheet of nothing"


def test_data_that_cannot_be_opened(ssdd: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(b"no tar file" * 100)
    assert "cut.tar: expected an uncompressed tar file" in ssdd("data", "check", "cut.tar").error_line()
    assert "nowhere" in ssdd("data", "check", "nowhere").error_line(), "the missing path is not named"
    (tmp_path / "empty").mkdir()
    assert "found none" in ssdd("data", "check", "empty").error_line(), "a folder without images passes"


def test_help_and_wrong_usage(ssdd: Ssdd, tmp_path: Path) -> None:
    alone = ssdd("data")
    assert (alone.status, "{check}" in alone.err) == (2, True), "the user is not told what to type"
    assert ssdd("data", "--help").status == 0, "--help fails"
    for option in ("--out", "--workers", "--overwrite"):
        assert option in ssdd("data", "check", "--help").out, f"{option} is not explained"
    for arguments in (["chek", "a"], ["check"], ["check", "a", "--colour", "red"], ["check", "a", "--workers", "x"]):
        assert ssdd("data", *arguments).status == 2, f"{arguments}: wrong usage is not told from broken data"
    assert list(tmp_path.iterdir()) == [], "something was written"


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([], []),
        ([1], [(0, 31, 1)]),
        ([127, 128, 300], [(96, 127, 1), (128, 191, 1), (192, 255, 0), (256, 383, 1)]),
        ([8191, 8192, 20000], [(4096, 8191, 1), (8192, None, 2)]),
    ],
)
def test_histogram(sides: list[int], expected: list[tuple[int, int | None, int]]) -> None:
    assert histogram(np.array(sides, int)) == expected, "an image is in another bin, or in none"


def test_what_is_left_out(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """Labels do no harm; a photograph in another format is one that training would not see."""
    (photos / "a.json").write_text("{}")
    result = ssdd("data", "check", photos, "--out", tmp_path / "out", "--workers", 0)
    assert result.status == 0, "labels make data unfit"
    assert "1 other file left out: .json 1" in result.out, "not said"
    (photos / "b.heic").write_bytes(b"")
    result = ssdd("data", "check", photos, "--out", tmp_path / "out", "--overwrite", "--workers", 0)
    assert result.status == 3, "a photograph is left out, and the data are fit"
    assert "2 other files left out: .json 1, .heic 1 (read with the package pillow-heif)" in result.out, "not said"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["left_out"] == {".json": 1, ".heic": 1}, "not in the report"


@pytest.mark.parametrize("packed", [False, True])
def test_names_that_are_no_text(ssdd: Ssdd, tmp_path: Path, picture: Picture, packed: bool) -> None:
    """Bytes that are not UTF-8, in classes, files, extensions and results."""
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / "photos" / name).mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    image = png(picture(80, 90))
    (tmp_path / "photos" / name / f"{name}.png").write_bytes(image)
    (tmp_path / "photos" / name / f"copy of {name}.png").write_bytes(image)
    (tmp_path / "photos" / name / f"broken {name}.png").write_bytes(b"bad")
    (tmp_path / "photos" / f"a.{name}").touch()
    data = tmp_path / "photos"
    if packed:
        data = tmp_path / f"{name}.tar"
        with tarfile.open(data, "w") as tar:
            tar.add(tmp_path / "photos", name)
    result = ssdd("data", "check", data, "--out", tmp_path / name, "--workers", 0)
    assert result.status == 3, "a broken image counts as good"
    assert "3 images, " in result.out, f"not all are read: {result.err}"
    assert "2 readable, 1 broken, 1 duplicates" in result.out, "not all are read"
    report = json.loads((tmp_path / name / "report.json").read_text())
    (copy, first) = next(iter(report["duplicate_of"].items()))
    assert os.fsencode(copy).endswith(b"/copy of caf\xe9.png"), "the name was changed"
    assert os.fsencode(first).endswith(b"/caf\xe9.png"), "the name was changed"
