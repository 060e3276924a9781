"""``ssdd evaluate``: a table, a file, and one line where something cannot be."""

import json
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
    names = [row["name"] for row in found["rows"]]
    assert names == [f"{tiny_model.name}, 1 step", f"{tiny_model.name}, 2 steps", "jpeg@2048B", "bicubic:8"]
    assert found["protocol"]["protocol"] == "paper-128-v1"
    assert found["data"]["crops"] == 3
    assert all(name in result.out for name in names)
    assert "left out: LPIPS-squeeze" in result.err, "nobody is told that a metric is missing"
    again = ssdd("evaluate", tiny_model, *options)
    assert "exists already; pass --overwrite" in again.error_line()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bicubic:8",), "pass --data"),
        (("bicubic:8", "--data", "photos", "--protocol", "paper-256-v9"), "expected a protocol"),
        (("nowhere/at/all/", "--data", "photos"), "nowhere/at/all"),
        (("bicubic:8", "--data", "nothing"), "nothing"),
        (("jpeg:auto", "--data", "photos"), "give jpeg:BYTES"),
        (("ssdd-f8c4-demo", "--data", "photos", "--steps", "1,x"), "expected --steps like 1,2,4,8"),
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
    assert len({row["latent_bytes"] for row in rows}) == 1, "not the same compression"
    assert all(name in result.out for name in ("4x16x16", "16x8x8", "64x4x4"))
    pytest.importorskip("matplotlib", reason="the report needs it")
    assert 'id="figure-compression"' in (tmp_path / "out" / "report.html").read_text()


def test_several_precisions(ssdd: Ssdd, photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--protocol", "paper-128-v1", "--workers", "0", "--extractors", "--out", "out", "--data", photos)
    result = ssdd("evaluate", tiny_model, "bicubic:8", "--dtype", "fp32,bf16", *options)
    assert result.status == 0, result.err
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [tiny_model.name, f"{tiny_model.name}, bfloat16", "bicubic:8"]
    assert [row["encoder_dtype"] for row in rows[:2]] == ["float32", "float32"]
    assert "bfloat16 minus" in result.out
    wrong = ssdd("evaluate", tiny_model, "--dtype", "fp32,fp8", "--data", photos)
    assert "found 'fp8'" in wrong.error_line()
