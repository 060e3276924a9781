"""``ssdd evaluate``: a table, a file, and one line where something cannot be."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.results import make_evaluation

Ssdd = Callable[..., Any]

OWN = """
import os

import torch

def brightness(a, b):
    return (b.float() - a.float()).mean((1, 2, 3))

brightness.better, brightness.heading = "zero", "Brightness"

class Pixels:
    spatial_factor, latent_channels = 8, 4

    def encode(self, x):
        pixels = x[:, :, :: self.spatial_factor, :: self.spatial_factor]
        return torch.cat([pixels, pixels.new_zeros(len(x), self.latent_channels - 3, *pixels.shape[2:])], 1)

    def decode(self, z):
        return z[:, :3].repeat_interleave(self.spatial_factor, 2).repeat_interleave(self.spatial_factor, 3)

class Pixels16(Pixels):
    spatial_factor, latent_channels = 16, 16

class Pixels32(Pixels):
    spatial_factor, latent_channels = 32, 64

class Interrupted(Pixels):
    def decode(self, z):
        if z.shape[-1] == 16 and not os.path.exists("fine"):
            raise KeyboardInterrupt
        return super().decode(z)
"""


def save_photos(folder: Path, picture: Callable[..., np.ndarray]) -> Path:
    folder.mkdir()
    for i in range(3):
        Image.fromarray(picture(40, 48, i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return save_photos(tmp_path / "photos", picture)


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray], tiny_model: Path
) -> tuple[Path, str, str]:
    """One evaluation with rows of every kind, which tests of its results share: its folder, and what it printed."""
    from ssdd.cli import main

    folder = tmp_path_factory.mktemp("compared")
    (folder / "own.py").write_text(OWN)
    save_photos(folder / "photos", picture)
    options = ["--protocol", "paper-128-v1", "--steps", "1", "2", "--dtype", "fp32", "bf16", "--workers", "0"]
    options += ["--metrics", "own.py:brightness", "--out", "out", "--data", str(folder / "photos")]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("TORCH_HOME", os.fspath(folder / "no-torch-home"))
        status = main.run(["evaluate", os.fspath(tiny_model), "jpeg:auto", "bicubic:8", *options])
    assert status == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_models_side_by_side(ssdd: Ssdd, compared: tuple[Path, str, str], tiny_model: Path) -> None:
    folder, out, err = compared
    found, name = read_result(folder / "out"), tiny_model.name
    names = [row["label"] for row in found["rows"]]
    steps = [f"{name}, 1 step", f"{name}, 2 steps"]
    assert names == [*steps, *(f"{label}, bfloat16" for label in steps), "jpeg@2048B", "bicubic:8"]
    assert found["protocol"]["protocol"] == "paper-128-v1"
    assert found["data"]["crops"] == 3
    assert all(name in out for name in names)
    assert "left out: LPIPS-squeeze" in err, "nobody is told that a metric is missing"
    again = ssdd("evaluate", "bicubic:4", "--data", folder / "photos", "--out", folder / "out")
    assert "exists already; pass --overwrite to replace it, or --add-to for more rows" in again.error_line()


def test_several_precisions(compared: tuple[Path, str, str], tiny_model: Path) -> None:
    folder, out, _ = compared
    rows, steps = read_result(folder / "out")["rows"], [f"{tiny_model.name}, {n}" for n in ("1 step", "2 steps")]
    assert [row["group"] for row in rows] == [0, 0, 0, 0, 1, 2]
    assert [row["precision_of"] for row in rows[:4]] == [None, None, *steps]
    assert "bfloat16 minus" in out


def test_a_metric_of_ones_own(compared: tuple[Path, str, str]) -> None:
    folder, out, _ = compared
    assert "Brightness" in out
    assert read_result(folder / "out")["metrics"]["brightness"]["better"] == "zero"
    assert "Brightness" in (folder / "out" / "report.html").read_text()


def test_report_of_a_saved_result(ssdd: Ssdd, compared: tuple[Path, str, str], tmp_path: Path) -> None:
    """Without the data and without the model."""
    folder, out, _ = compared
    copied = Path(shutil.copytree(folder / "out", tmp_path / "copied"))
    page = (copied / "report.html").read_text()
    (copied / "report.html").unlink()
    again = ssdd("evaluate", "report", "copied")
    assert again.status == 0, again.err
    assert again.out == out
    assert len((copied / "report.html").read_text()) == pytest.approx(len(page), rel=0.05)
    (tmp_path / "elsewhere").mkdir()
    assert "found no evaluation.json in it" in ssdd("evaluate", "report", "elsewhere").error_line()


def test_rows_are_added(ssdd: Ssdd, compared: tuple[Path, str, str], tmp_path: Path) -> None:
    folder, _, _ = compared
    out, before = Path(shutil.copytree(folder / "out", tmp_path / "out")), read_result(folder / "out")
    options = ("--add-to", "out", "--workers", "0", "--extractors")
    added = ssdd("evaluate", "bicubic:4", "bicubic:8", *options, "--json")
    assert added.status == 0, added.err
    assert "bicubic:8: this row is there already" in added.err
    found = read_result(out)
    assert [row["label"] for row in found["rows"][6:]] == ["bicubic:4"]
    assert found["rows"][:6] == before["rows"], "a row that is there was measured again"
    assert json.loads(added.out)["rows"] == found["rows"]
    other = ssdd("evaluate", "bicubic:4", *options, "--protocol", "paper-256-v1")
    assert "expected the protocol of the rows that are there, paper-128-v1" in other.error_line()


def test_rows_that_are_there_are_of_the_same_data(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """The numbers of other photographs were printed as those of these."""
    options = ("bicubic:8", "--workers", "0", "--extractors")
    first = ssdd("evaluate", *options, "--protocol", "paper-128-v1", "--out", "out", "--data", photos, "--limit", "2")
    assert first.status == 0, first.err
    again = ssdd("evaluate", *options, "--add-to", "out")
    assert again.status == 0, again.err
    assert "2 crops" in again.out, "the limit is forgotten"
    (photos / "0.png").rename(photos / "9.png")
    other = ssdd("evaluate", *options, "--add-to", "out")
    assert other.status == 1
    assert "expected the crops of the rows that are there" in other.err.splitlines()[-1]
    wrong = ssdd("evaluate", *options, "--add-to", "out", "--limit", "3")
    assert "expected the --limit of the rows that are there, 2" in wrong.error_line()


def test_what_a_row_lacks_is_said(ssdd: Ssdd, photos: Path) -> None:
    options = ("bicubic:8", "--workers", "0", "--lpips", "--extractors")
    first = ssdd("evaluate", *options, "--protocol", "paper-128-v1", "--out", "out", "--data", photos)
    assert first.status == 0, first.err
    again = ssdd("evaluate", *options, "--metrics", "own.py:brightness", "--add-to", "out")
    assert "this row is there already; it was measured without brightness: take another --out" in again.err


def test_reconstructions_are_not_written_over_images(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """A folder of the name of a row may be somebody's photographs."""
    shutil.copytree(photos, tmp_path / "made")
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    options = ("--workers", "0", "--lpips", "--extractors", "--save-reconstructions", tmp_path)
    result = ssdd("evaluate", "folder:photos", "folder:made", *options)
    assert "exists already; pass --overwrite" in result.error_line()
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before


def test_an_interrupted_run_goes_on(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    stopped = ssdd("evaluate", "bicubic:8", "own.py:Interrupted", *options)
    assert stopped.status != 0
    left = read_result(tmp_path / "out")
    assert (left["finished"], [row["label"] for row in left["rows"]]) == (False, ["bicubic:8"])
    (tmp_path / "fine").touch()
    again = ssdd("evaluate", "bicubic:8", "own.py:Interrupted", *options)
    assert again.status == 0, again.err
    assert "out: goes on after 1 rows" in again.err
    found = read_result(tmp_path / "out")
    assert (found["finished"], found["rows"][0]["costs"]) == (True, left["rows"][0]["costs"]), "measured again"
    assert [row["label"] for row in found["rows"]] == ["bicubic:8", "own.py:Interrupted"]


def test_a_page_that_was_cut_off_is_made_again(
    ssdd: Ssdd, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result whose page is missing was taken for finished, and nothing but measuring anew helped."""
    pytest.importorskip("jinja2", reason="pip install 'ssdd[eval]'")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    options = ("evaluate", "bicubic:8", "--workers", "0", "--lpips", "--extractors", "--out", "out", "--data", photos)
    with monkeypatch.context() as patch:
        patch.setattr("ssdd.evaluation.report.write_report", stop)
        assert ssdd(*options).status != 0
    again = ssdd(*options)
    assert again.status == 0, again.err
    assert "this row is there already" in again.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_two_folders_without_a_model(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """What another program reconstructed, by the names of the files, whatever their extension."""
    (tmp_path / "made").mkdir()
    for path in photos.iterdir():
        Image.open(path).point(lambda level: min(level + 9, 255)).save(
            tmp_path / "made" / f"{path.stem}.webp", lossless=True
        )
    result = ssdd("evaluate", "folder:photos", "folder:made", "--workers", "0", "--extractors", "--out", "out")
    assert result.status == 0, result.err
    (row,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert row["label"] == "made"
    assert row["image_metrics"]["psnr"]["count"] == 3
    assert 28 < row["image_metrics"]["psnr"]["mean"] < 31
    assert "as-is" in result.out
    alone = ssdd("evaluate", "folder:photos", "--workers", "0")
    assert "two or more folder:PATH" in alone.error_line()


def test_what_was_asked_for_is_there_or_an_error(ssdd: Ssdd, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that was asked for is missing from the table, and the exit status is 0."""
    options = ("bicubic:8", "--protocol", "paper-128-v1", "--workers", "0", "--data", photos)
    for asked in (("--extractors", "dinov2-large"), ("--lpips", "vgg")):
        result = ssdd("evaluate", *options, *asked)
        assert result.status == 1
        assert "or pass --allow-missing to leave it out" in result.error_line()
        allowed = ssdd("evaluate", *options, *asked, "--allow-missing", *(("--extractors",) if "vgg" in asked else ()))
        assert allowed.status == 0, allowed.err
        assert "left out: " in allowed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bicubic:8",), "pass --data"),
        (("bicubic:8", "--data", "photos", "--protocol", "paper-256-v9"), "expected a protocol"),
        (("nowhere/at/all/", "--data", "photos"), "nowhere/at/all"),
        (("bicubic:8", "--data", "nothing"), "nothing"),
        (("jpeg:auto", "--data", "photos"), "give jpeg:BYTES"),
        (("bicubic:8", "--add-to", "out", "--out", "out"), "--add-to has no effect beside"),
    ],
)
def test_what_cannot_be_evaluated(ssdd: Ssdd, photos: Path, arguments: tuple[str, ...], message: str) -> None:
    result = ssdd("evaluate", *arguments)
    assert result.status == 1
    assert message in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--steps", "1", "x"), "--steps"),
        (("--steps", "1", "0"), "expected --steps of at least 1, found 1 0"),
        (("--latent-noise", "-1"), "expected --latent-noise above 0, found -1.0"),
        (("--latent-noise", "nan"), "finite"),
        (("--limit", "0"), "expected --limit of at least 1, found 0"),
        (("--dtype", "fp32", "fp8"), "fp8"),
    ],
)
def test_values_out_of_range(ssdd: Ssdd, option: tuple[str, ...], message: str) -> None:
    result = ssdd("evaluate", "ssdd-f8c4-demo", "--data", "photos", *option)
    assert result.status == 2
    assert message in result.err


def test_compression_study(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """More downsampling at constant compression, in one command, with what each latent costs."""
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    result = ssdd("evaluate", "own.py:Pixels", "own.py:Pixels16", "own.py:Pixels32", *options)
    assert result.status == 0, result.err
    rows = read_result(tmp_path / "out")["rows"]
    assert [row["latent_shape"] for row in rows] == [[4, 16, 16], [16, 8, 8], [64, 4, 4]]
    assert len({row["costs"]["latent_bytes"] for row in rows}) == 1, "not the same compression"
    assert all(name in result.out for name in ("4x16x16", "16x8x8", "64x4x4"))
    pytest.importorskip("matplotlib", reason="the report needs it")
    assert 'id="figure-compression"' in (tmp_path / "out" / "report.html").read_text()


def test_a_damaged_result_is_not_added_to(ssdd: Ssdd, tmp_path: Path) -> None:
    make_evaluation(tmp_path).save(tmp_path)
    path = tmp_path / "evaluation.json"
    found = json.loads(path.read_text())
    del found["data"]["limit"]
    path.write_text(json.dumps(found))
    line = ssdd("evaluate", "ssdd-f8c4-demo", "--add-to", tmp_path).error_line()
    assert "expected a result as ssdd evaluate wrote it, found KeyError: 'limit'" in line
