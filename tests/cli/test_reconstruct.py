"""``ssdd reconstruct``: files as users have them, bad ones among them, and outputs that are never lost."""

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.autoencoder.codec import decode_image, encode_image
from ssdd.data.images import read_image

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
Picture = Callable[..., np.ndarray]


@pytest.fixture
def reconstruct(ssdd: Ssdd, tiny_model: Path) -> Ssdd:
    def run(*arguments: object) -> Any:
        return ssdd("reconstruct", *arguments, "--model", tiny_model, "--device", "cpu", "--steps", 1)

    return run


def write_mixed(folder: Path, picture: Picture) -> dict[str, tuple[int, int]]:
    """Files as they come from cameras, the web and editors: name -> (width, height) as a viewer shows it."""
    folder.mkdir(parents=True)
    rgb = Image.fromarray(picture(24, 40))
    rgb.save(folder / "camera.jpg", quality=95)
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb.save(folder / f"rotated-{orientation}.jpg", quality=95, exif=exif)
    rgb.convert("L").save(folder / "gray.png")
    rgb.quantize(16).save(folder / "palette.png", transparency=3)
    rgba = np.dstack([picture(16, 16), np.arange(256, dtype=np.uint8).reshape(16, 16)])
    Image.fromarray(rgba).save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "print.JPG", quality=95)
    Image.fromarray(np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)).save(folder / "deep.png")
    frames = [Image.fromarray(picture(16, 24, seed)) for seed in (1, 2)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(picture(1, 1)).save(folder / "dot.png")
    Image.fromarray(picture(53, 37)).save(folder / "odd.webp", lossless=True)
    Image.fromarray(picture(16, 200)).save(folder / "wide.png")
    sizes = {"camera.jpg": (40, 24), "rotated-3.jpg": (40, 24), "rotated-6.jpg": (24, 40), "gray.png": (40, 24)}
    sizes |= {"palette.png": (40, 24), "alpha.png": (16, 16), "print.JPG": (40, 24), "deep.png": (24, 16)}
    return sizes | {"moving.gif": (24, 16), "dot.png": (1, 1), "odd.webp": (37, 53), "wide.png": (200, 16)}


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def test_mixed_folder(reconstruct: Ssdd, tmp_path: Path, tree: Tree, picture: Picture) -> None:
    """Every kind of file is reconstructed at the size that a viewer shows, and measured against its pixels."""
    sizes = write_mixed(tmp_path / "in", picture)
    before = tree(tmp_path)
    result = reconstruct(tmp_path / "in", "--out", tmp_path / "out")
    assert result.status == 0, f"a good file failed: {result.err}"
    assert result.skipped() == [], "a good file was skipped"
    assert f"{len(sizes)} images in" in result.out, "the summary counts other images"
    after = tree(tmp_path)
    assert {n: c for n, c in after.items() if n != "out" and not n.startswith("out/")} == before, "written elsewhere"
    expected = {f"{Path(n).stem}.png" for n in sizes}
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == expected, "images are missing, or others are there"
    assert {p.name for p in (tmp_path / "out" / "sheets").iterdir()} == expected, "a sheet is missing"
    rows = read_csv(tmp_path / "out" / "metrics.csv")
    assert rows.keys() == sizes.keys(), "metrics.csv has not one line for each image"
    for name, (width, height) in sizes.items():
        original = read_image(tmp_path / "in" / name)
        written = read_image(tmp_path / "out" / f"{Path(name).stem}.png")
        assert written.shape == (height, width, 3), f"{name} has another size than its original"
        assert float(rows[name]["psnr_db"]) == pytest.approx(psnr(original, written), abs=1e-3), f"{name}: wrong PSNR"
        assert (rows[name]["ssim_gaussian_11"] == "") == (min(width, height) < 11), f"{name}: SSIM where undefined"
        assert rows[name]["lpips"] == "", f"{name}: LPIPS without a network"


def test_pixels_are_those_of_the_library(reconstruct: Ssdd, tmp_path: Path, picture: Picture, tiny_model: Path) -> None:
    """The command decodes the mode of the image's own posterior; the sheet shows the upright original."""
    image = picture(24, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(tmp_path / "turned.png", exif=exif)
    assert reconstruct(tmp_path / "turned.png", "--out", tmp_path / "out").status == 0
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    expected = decode_image(model, encode_image(model, image), steps=1)
    assert np.array_equal(read_image(tmp_path / "out" / "turned.png"), expected), "not the library's pixels, upright"
    page = read_image(tmp_path / "out" / "sheets" / "turned.png")
    for column, panel in enumerate((image, expected)):
        left = 12 + column * (40 + 12)
        assert np.array_equal(page[40 : 40 + 24, left : left + 40], panel), f"column {column} of the sheet is wrong"


def test_bad_files_among_good_ones(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    """A cut download, a renamed text and an empty file are named, skipped and counted; the others are done."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("first.png", "last.png"):
        Image.fromarray(picture(16, 16)).save(folder / name)
    good = (folder / "first.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "letter.jpg").write_text("Dear Sir or Madam")
    (folder / "nothing.png").touch()
    result = reconstruct(folder, "--out", tmp_path / "out")
    assert result.status == 3, "a script does not notice the failures"
    skipped = result.skipped()
    assert len(skipped) == 3, f"not one line for each bad file: {skipped}"
    for name in ("cut.png", "letter.jpg", "nothing.png"):
        assert sum(str(folder / name) in line for line in skipped) == 1, f"{name} is not named once"
    assert "reconstructed 2 of 5 files; 3 failed" in result.err, "the failures are not counted"
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"first.png", "last.png"}, "a good file was left out"
    assert read_csv(tmp_path / "out" / "metrics.csv").keys() == {"first.png", "last.png"}, "the metrics are of others"


def test_all_files_bad(reconstruct: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    result = reconstruct(tmp_path / "letter.jpg", "--out", tmp_path / "out")
    assert result.status == 1, "nothing was done, and the command is content"
    assert len(result.skipped()) == 1, "the file is not named"
    assert not (tmp_path / "out").exists(), "a folder of no results is left"


def test_second_run(reconstruct: Ssdd, tmp_path: Path, tree: Tree, picture: Picture) -> None:
    """Results are replaced with --overwrite only; without it the command does what is missing."""
    out, path = tmp_path / "out", tmp_path / "a.png"
    Image.fromarray(picture(16, 16)).save(path)
    assert reconstruct(path, "--out", out).status == 0
    before = tree(out)
    Image.fromarray(picture(24, 16, 5)).save(path)
    Image.fromarray(picture(16, 16)).save(tmp_path / "b.png")
    result = reconstruct(path, tmp_path / "b.png", "--out", out)
    assert result.status == 3, "an old result of another image passes for its reconstruction"
    assert "or pass --overwrite to replace it" in result.skipped()[0], (
        f"the user does not learn what to do: {result.err}"
    )
    assert tree(out).items() >= {k: v for k, v in before.items() if k != "metrics.csv"}.items(), "results were changed"
    assert reconstruct(path, tmp_path / "b.png", "--out", out, "--overwrite").status == 0, "--overwrite fails"
    assert read_image(out / "a.png").shape == (24, 16, 3), "--overwrite kept the old result"
    assert read_csv(out / "metrics.csv").keys() == {"a.png", "b.png"}, "--overwrite kept the old metrics"


def test_goes_on_where_it_was_stopped(
    reconstruct: Ssdd, ssdd: Ssdd, tiny_model: Path, tmp_path: Path, tree: Tree, picture: Picture
) -> None:
    """What is there is measured, not made again; the table is of all."""
    for name in ("a.png", "b.png"):
        Image.fromarray(picture(16, 16, ord(name[0]))).save(tmp_path / name)
    every = (tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out")
    assert reconstruct(*every).status == 0
    before, rows = tree(tmp_path / "out"), read_csv(tmp_path / "out" / "metrics.csv")
    (tmp_path / "out" / "b.png").unlink()
    (tmp_path / "out" / "metrics.csv").unlink()
    result = reconstruct(*every)
    assert result.status == 0, result.err
    assert "2 images in" in result.out
    assert "(1 was there before)" in result.out
    told = json.loads(reconstruct(*every, "--json").out)
    assert [(row["image"], row["seconds"]) for row in told["images"]] == [("a.png", None), ("b.png", None)]
    assert f"PSNR {told['mean']['psnr']:.2f} dB" in result.out
    after, again = tree(tmp_path / "out"), read_csv(tmp_path / "out" / "metrics.csv")
    assert [name for name in before if after[name] != before[name]] == ["metrics.csv"]
    assert {name: row["psnr_db"] for name, row in again.items()} == {name: row["psnr_db"] for name, row in rows.items()}
    other = ssdd("reconstruct", *every, "--model", tiny_model, "--device", "cpu", "--steps", 2)
    assert (other.status, len(other.skipped())) == (1, 2)
    assert "noise seed 0, steps 1; choose another --out" in other.skipped()[0], "images of one step pass for two"
    assert tree(tmp_path / "out") == after
    Image.fromarray(picture(16, 16, 7)).save(tmp_path / "a.png")
    replaced = reconstruct(*every)
    assert (replaced.status, len(replaced.skipped())) == (3, 1), "it is compared with another photograph"
    assert read_csv(tmp_path / "out" / "metrics.csv").keys() == {"a.png", "b.png"}
    (tmp_path / "out" / "metrics.csv").write_text("precious")
    assert "exists already; pass --overwrite" in reconstruct(*every).error_line()


def test_another_model_of_the_same_name(ssdd: Ssdd, tiny_model: Path, tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    shutil.copytree(tiny_model, tmp_path / "model")
    command = ("reconstruct", tmp_path / "a.png", "--out", tmp_path / "out", "--model")
    assert ssdd(*command, tmp_path / "model").status == 0
    assert "(1 was there before)" in ssdd(*command, tiny_model).out, "another path of the same model"
    other = AutoencoderSSDD.from_pretrained(tmp_path / "model")
    other.decoder.conv_out.bias.data += 0.1
    other.save_pretrained(tmp_path / "model")
    refused = ssdd(*command, tmp_path / "model")
    assert (refused.status, len(refused.skipped())) == (1, 1)


def test_sheet_of_another_model_is_not_kept(
    reconstruct: Ssdd, ssdd: Ssdd, tiny_model: Path, tmp_path: Path, tree: Tree, picture: Picture
) -> None:
    """A sheet of two steps stays beside a picture of one."""
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    command = (tmp_path / "a.png", "--out", tmp_path / "out")
    assert ssdd("reconstruct", *command, "--model", tiny_model, "--device", "cpu", "--steps", 2).status == 0
    (tmp_path / "out" / "a.png").unlink()
    before = tree(tmp_path)
    result = reconstruct(*command)
    assert (result.status, len(result.skipped())) == (1, 1)
    assert "sheets/a.png exists already" in result.skipped()[0]
    assert "steps 2; choose another --out, or pass --overwrite" in result.skipped()[0]
    assert tree(tmp_path) == before, "something was written all the same"
    assert reconstruct(*command, "--overwrite").status == 0
    assert reconstruct(*command).status == 0, "its own sheet is refused"


def test_results_inside_the_folder_of_photographs(
    reconstruct: Ssdd, tmp_path: Path, tree: Tree, picture: Picture
) -> None:
    """The second run takes its own results for photographs, or results replace the photographs."""
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for out in ("out", "link", "out/../out"):
        result = reconstruct(tmp_path, "--out", tmp_path / out)
        assert (result.status, result.out.startswith("1 images in")) == (0, True), result.out
    before = tree(tmp_path)
    line = reconstruct(tmp_path / "a.png", "--out", tmp_path, "--overwrite").error_line()
    assert f"{tmp_path / 'a.png'}: expected a folder where no result replaces this photograph" in line
    assert tree(tmp_path) == before


def test_table_keeps_the_other_images(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(picture(16, 16, ord(name[0]))).save(tmp_path / name)
        assert reconstruct(tmp_path / name, "--out", tmp_path / "out").status == 0
    rows = read_csv(tmp_path / "out" / "metrics.csv")
    assert rows.keys() == {"a.png", "b.png"}
    assert reconstruct(tmp_path / "a.png", "--out", tmp_path / "out").status == 0
    assert read_csv(tmp_path / "out" / "metrics.csv") == rows, "seconds are lost"


def test_existing_image_without_metrics_is_kept(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    """What is left of an interrupted run, or somebody's photograph in --out, is not replaced; the rest is done."""
    for name in ("a.png", "b.png"):
        Image.fromarray(picture(16, 16)).save(tmp_path / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"precious")
    result = reconstruct(tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out")
    assert result.status == 3, "an image that was not written is not in the status"
    (line,) = result.skipped()
    assert str(tmp_path / "a.png") in line, "the input is not named"
    assert (tmp_path / "out" / "a.png").read_bytes() == b"precious", "a file was replaced"
    assert read_csv(tmp_path / "out" / "metrics.csv").keys() == {"b.png"}, "the other image was not done"


def test_nothing_to_do(reconstruct: Ssdd, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    line = reconstruct(tmp_path / "empty", "--out", tmp_path / "out").error_line()
    assert f"expected images in {tmp_path / 'empty'}, found none" in line, "an empty folder: not said clearly"
    line = reconstruct(tmp_path / "missing.jpg", "--out", tmp_path / "out").error_line()
    assert "missing.jpg" in line, "a missing path is not named"
    nothing = reconstruct("--out", tmp_path / "out")
    assert (nothing.status, "no path" in nothing.err) == (2, True), "no path at all: not said clearly"
    assert not (tmp_path / "out").exists(), "a failed command left its folder behind"


def test_out_is_a_file(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture(16, 16)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    line = reconstruct(tmp_path / "a.png", "--out", tmp_path / "a.png", "--overwrite").error_line()
    assert "expected a folder for the results" in line, f"not clear: {line}"
    assert (tmp_path / "a.png").read_bytes() == before, "the photograph was replaced"


def test_subfolders_and_equal_names(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    """No result replaces another: folders are kept, and images that differ in their extension stay apart."""
    for i, name in enumerate(("a.png", "a.jpg", "sub/a.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(8 + i, 8)).save(path)
    assert reconstruct(tmp_path / "in", "--out", tmp_path / "out", "--no-sheets").status == 0
    found = {p.relative_to(tmp_path / "out").as_posix(): read_image(p).shape[0] for p in tmp_path.glob("out/**/*.png")}
    assert found == {"a.png.png": 8, "a.jpg.png": 9, "sub/a.png": 10}, "results were mixed up"


def test_sheets_do_not_replace_results(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    """An input folder called sheets: its results would lie where the sheets of the others lie."""
    for name in ("a.png", "sheets/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(16, 16)).save(tmp_path / "in" / name)
    line = reconstruct(tmp_path / "in", "--out", tmp_path / "out", "--overwrite").error_line()
    assert "sheets/a.png" in line, "the name is not told"
    assert not (tmp_path / "out").exists(), "one of two results of one name was lost"
    assert reconstruct(tmp_path / "in", "--out", tmp_path / "out", "--no-sheets").status == 0, "fails without sheets"


def test_names_in_any_language(reconstruct: Ssdd, tmp_path: Path, picture: Picture) -> None:
    """Spaces, other scripts, and bytes that are not UTF-8 (from old archives) in a name."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(picture(12, 12)).save(folder / "plain.png")
    raw = (folder / "plain.png").read_bytes()
    names = ["日本 語.png", "-dash.png"]
    with suppress(OSError):  # macOS takes UTF-8 alone
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(raw)
        names.append(os.fsdecode(b"caf\xe9.png"))
    for name in names:
        (folder / name).write_bytes(raw)
    result = reconstruct(folder, "--out", tmp_path / "out")
    assert result.status == 0, f"a name was refused: {result.err}"
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"plain.png", *names}, "a name was changed"
    lines = (tmp_path / "out" / "metrics.csv").read_bytes()
    assert all(os.fsencode(name) in lines for name in names), "a name is not in metrics.csv as it is on the disk"
