"""Comparison with an earlier file: only of like with like."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd.bench.report import SECONDS, against_table
from ssdd.bench.setting import earlier_figures, this_setting

Ssdd = Callable[..., Any]

SETTING = this_setting("decode", torch.device("cpu"), dtype="bf16", compile=False, mode="optimized", steps=1)
ROW = {"name": "SSDD-S f8c4", "size": 256, "batch": 1, SECONDS: 3.0}
SMALL = ("--sizes", "32", "--rounds", "1", "--seconds", "0", "--device", "cpu", "--peers")


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({"setting": {**SETTING.as_dict(), **changes}, "rows": [ROW]}))
    return path


def test_rows_in_common(tmp_path: Path) -> None:
    figures = earlier_figures(written(tmp_path / "old.json"), SETTING, SECONDS)
    now = {"rows": [{**ROW, SECONDS: 2.0}, {**ROW, "batch": 2, SECONDS: 1.0}]}
    assert against_table(now, figures, SECONDS).splitlines()[1:] == ["SSDD-S f8c4  256      1   1.50x"]
    with pytest.raises(ValueError, match=r"^expected a contender, size and batch that the earlier file has too"):
        against_table({"rows": now["rows"][1:]}, figures, SECONDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command", "encode"),
        ("device", "CPU of another make"),
        ("threads", 77),
        ("torch", "1.0"),
        ("dtype", "fp16"),
        ("compile", True),
        ("mode", "eager"),
        ("steps", 8),
        ("freed_memory_kept", True),
        ("lpips", "vgg"),
    ],
)
def test_unlike_settings_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = written(tmp_path / "old.json", **{name: value})
    with pytest.raises(
        ValueError, match=rf"old\.json cannot be compared: its {name} is .*{value}.*, here it is"
    ) as error:
        earlier_figures(path, SETTING, SECONDS)
    assert "\n" not in str(error.value)


def test_all_of_a_setting_counts() -> None:
    """A new field of the setting that no comparison looks at, or that its line does not tell of."""
    assert set(SETTING.as_dict()) == set(vars(SETTING)) - {"details"}
    line = replace(SETTING, threads=3, steps=8, freed_memory_kept=True, details={"lpips": "vgg"}).line()
    for part in ("3 threads", "bf16", "not compiled", "optimized", "8 decoding steps", "freed memory", "lpips vgg"):
        assert part in line


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"setting": 1, "rows": []}', '{"setting": {}, "rows": [{}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"old\.json: expected a file of ssdd bench decode --out, found "):
        earlier_figures(path, SETTING, SECONDS)


def test_command(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes after minutes of work, or not at all."""
    monkeypatch.setattr("ssdd.bench.throughput.peak_flops", lambda *_: 1e12)
    options = ("bench", "decode", "--decoders", "XXS", "--dtype", "fp32", *SMALL)
    assert ssdd(*options, "--out", "old.json").status == 0
    result = ssdd(*options, "--against", "old.json")
    assert result.status == 0, result.err
    assert "against old.json" in result.out
    assert result.out.rstrip().endswith("x"), "no ratio"
    monkeypatch.setattr("ssdd.bench.throughput.bench_networks", lambda *_: pytest.fail("measured before the refusal"))
    refused = ssdd(*options, "--steps", "2", "--against", "old.json").error_line()
    assert refused.endswith("old.json cannot be compared: its steps is 1, here it is 2")
    assert "missing.json" in ssdd(*options, "--against", "missing.json").error_line()
