"""``ssdd evaluate``: a table, a file, and one line where something cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Ssdd = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(picture(40, 48, i)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_models_side_by_side(ssdd: Ssdd, photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--protocol", "paper-128-v1", "--steps", "1,2", "--workers", "0", "--out", "out", "--data", photos)
    result = ssdd("evaluate", tiny_model, "jpeg:auto", "bicubic:8", *options)
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    names = [row["label"] for row in found["rows"]]
    assert names == [f"{tiny_model.name}, 1 step", f"{tiny_model.name}, 2 steps", "jpeg@2048B", "bicubic:8"]
    assert [row["group"] for row in found["rows"]] == [0, 0, 1, 2]
    assert found["protocol"]["protocol"] == "paper-128-v1"
    assert found["data"]["crops"] == 3
    assert all(name in result.out for name in names)
    assert "left out: LPIPS-squeeze" in result.err, "nobody is told that a metric is missing"
    again = ssdd("evaluate", tiny_model, *options)
    assert "exists already; pass --overwrite to replace it, or --add-to for more rows" in again.error_line()


def test_report_of_a_saved_result(ssdd: Ssdd, photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Without the data and without the model."""
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    first = ssdd("evaluate", tiny_model, "bicubic:8", *options)
    assert first.status == 0, first.err
    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    photos.rename(tmp_path / "elsewhere")
    again = ssdd("evaluate", "report", "out")
    assert again.status == 0, again.err
    assert again.out == first.out
    assert len((tmp_path / "out" / "report.html").read_text()) == pytest.approx(len(page), rel=0.05)
    assert "found no evaluation.json in it" in ssdd("evaluate", "report", "elsewhere").error_line()


def test_rows_are_added(ssdd: Ssdd, photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--workers", "0", "--extractors")
    first = ssdd("evaluate", "bicubic:8", "--protocol", "paper-128-v1", *options, "--out", "out", "--data", photos)
    assert first.status == 0, first.err
    before = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    added = ssdd("evaluate", tiny_model, "bicubic:8", "--add-to", "out", *options)
    assert added.status == 0, added.err
    assert "bicubic:8: this row is there already" in added.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["label"] for row in found["rows"]] == ["bicubic:8", tiny_model.name]
    assert found["rows"][0] == before["rows"][0], "a row that is there was measured again"
    assert found["protocol"]["protocol"] == "paper-128-v1"
    other = ssdd("evaluate", tiny_model, "--add-to", "out", "--protocol", "paper-256-v1", *options)
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


def test_what_a_row_lacks_is_said(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def zero(a, b):\n    return [0.0] * len(a)\nzero.better = 'zero'\n")
    options = ("bicubic:8", "--workers", "0", "--lpips", "--extractors")
    first = ssdd("evaluate", *options, "--protocol", "paper-128-v1", "--out", "out", "--data", photos)
    assert first.status == 0, first.err
    again = ssdd("evaluate", *options, "--metrics", "own.py:zero", "--add-to", "out")
    assert "this row is there already; it was measured without zero: take another --out" in again.err


def test_reconstructions_are_not_written_over_images(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """A folder of the name of a row may be somebody's photographs."""
    shutil.copytree(photos, tmp_path / "made")
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    options = ("--workers", "0", "--lpips", "--extractors", "--save-reconstructions", tmp_path)
    result = ssdd("evaluate", "folder:photos", "folder:made", *options)
    assert "exists already; pass --overwrite" in result.error_line()
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before


def test_an_interrupted_run_goes_on(ssdd: Ssdd, photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\nclass Own:\n    spatial_factor, latent_channels = 8, 3\n"
        "    def encode(self, x):\n        return x[:, :, ::8, ::8]\n"
        "    def decode(self, z):\n"
        "        if z.shape[-1] == 16 and not os.path.exists('fine'):\n            raise KeyboardInterrupt\n"
        "        return z.repeat_interleave(8, 2).repeat_interleave(8, 3)\n"
    )
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    stopped = ssdd("evaluate", tiny_model, "own.py:Own", *options)
    assert stopped.status != 0
    left = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (left["finished"], [row["label"] for row in left["rows"]]) == (False, [tiny_model.name])
    (tmp_path / "fine").touch()
    again = ssdd("evaluate", tiny_model, "own.py:Own", *options)
    assert again.status == 0, again.err
    assert "out: goes on after 1 rows" in again.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["finished"], found["rows"][0]["costs"]) == (True, left["rows"][0]["costs"]), "measured again"
    assert [row["label"] for row in found["rows"]] == [tiny_model.name, "own.py:Own"]


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


def test_a_metric_of_ones_own(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def brightness(a, b):\n    return (b.float() - a.float()).mean((1, 2, 3))\n"
        "brightness.better, brightness.heading = 'zero', 'Brightness'\n"
    )
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    result = ssdd("evaluate", "bicubic:8", "--metrics", "own.py:brightness", *options)
    assert result.status == 0, result.err
    assert "Brightness" in result.out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"]["brightness"]["better"] == "zero"
    assert "Brightness" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bicubic:8",), "pass --data"),
        (("bicubic:8", "--data", "photos", "--protocol", "paper-256-v9"), "expected a protocol"),
        (("nowhere/at/all/", "--data", "photos"), "nowhere/at/all"),
        (("bicubic:8", "--data", "nothing"), "nothing"),
        (("jpeg:auto", "--data", "photos"), "give jpeg:BYTES"),
        (("ssdd-f8c4-demo", "--data", "photos", "--steps", "1,x"), "expected --steps like 1,2,4,8"),
        (("ssdd-f8c4-demo", "--data", "photos", "--latent-noise", "-1"), "expected --latent-noise like 0.1,0.2"),
        (("bicubic:8", "--data", "photos", "--limit", "0"), "at least 1 image, found 0"),
        (("bicubic:8", "--add-to", "out", "--out", "out"), "--add-to has no effect beside"),
    ],
)
def test_what_cannot_be_evaluated(ssdd: Ssdd, photos: Path, arguments: tuple[str, ...], message: str) -> None:
    result = ssdd("evaluate", *arguments)
    assert result.status == 1
    assert message in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_compression_study(ssdd: Ssdd, photos: Path, tmp_path: Path) -> None:
    """More downsampling at constant compression, in one command, with what each latent costs."""
    from ssdd import AutoencoderSSDD

    names = ("f8c4", "f16c16", "f32c64")
    for name in names:
        AutoencoderSSDD.from_preset(name, "XXS", encoder_width=32).save_pretrained(tmp_path / name)
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    result = ssdd("evaluate", *names, *options)
    assert result.status == 0, result.err
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["latent_shape"] for row in rows] == [[4, 16, 16], [16, 8, 8], [64, 4, 4]]
    assert len({row["costs"]["latent_bytes"] for row in rows}) == 1, "not the same compression"
    assert all(name in result.out for name in ("4x16x16", "16x8x8", "64x4x4"))
    pytest.importorskip("matplotlib", reason="the report needs it")
    assert 'id="figure-compression"' in (tmp_path / "out" / "report.html").read_text()


def test_several_precisions(ssdd: Ssdd, photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    result = ssdd("evaluate", tiny_model, "bicubic:8", "--dtype", "fp32,bf16", *options)
    assert result.status == 0, result.err
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["label"] for row in rows] == [tiny_model.name, f"{tiny_model.name}, bfloat16", "bicubic:8"]
    assert [row["precision_of"] for row in rows[:2]] == [None, tiny_model.name]
    assert "bfloat16 minus" in result.out
    wrong = ssdd("evaluate", tiny_model, "--dtype", "fp32,fp8", "--data", photos)
    assert "found 'fp8'" in wrong.error_line()
