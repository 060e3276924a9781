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
