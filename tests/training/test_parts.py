"""How much each part of a network learns: measured, written, and a part that does not learn is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssdd.training.config import FlowConfig, TrainConfig
from ssdd.training.loop import train
from ssdd.training.parts import PartWatch, dead_parts, part_name, table
from tests.training.runs import SMALL, stats

Small = Callable[..., TrainConfig]


def test_gradient_and_update_are_root_mean_squares() -> None:
    """The table shows other numbers than it says, or those after clipping."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 1, bias=False)})
    for p, value in zip(model.parameters(), (3.0, 0.0), strict=True):
        p.data.fill_(2.0)
        p.grad = torch.full_like(p, value)
    watch = PartWatch(model)
    watch.before_step()
    model["a"].weight.data.add_(0.5)
    watch.after_step()
    sizes = watch.read()
    assert sizes.keys() == {"a", "b"}
    assert (sizes["a"].gradient, sizes["a"].update, sizes["a"].share) == pytest.approx((3.0, 0.25, 4 / 6))
    assert (sizes["b"].gradient, sizes["b"].update) == (0.0, 0.0)
    assert dead_parts(sizes) == ["b"]
    assert len(table(sizes).splitlines()) == 3


@pytest.mark.parametrize(
    ("parameter", "part"),
    [
        ("decoder.conv_in.weight", "decoder.conv_in"),
        ("decoder.down.0.blocks.1.conv.weight", "decoder.down.0"),
        ("decoder.down.0.weight", "decoder.down.0"),
        ("conv.weight", "conv"),
        ("weight", "weight"),
    ],
)
def test_names_of_parts(parameter: str, part: str) -> None:
    """Levels of a network are thrown together, or each weight has a line."""
    assert part_name(parameter) == part


def test_every_part_of_a_fresh_model_learns(small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After thirty updates some level has no gradient to speak of: it will not learn in days either."""
    options = ("--total-images", "60", "--batch-size", "2", "--log.stats-images", "30")
    with caplog.at_level("INFO"):
        train(small(*options), tmp_path / "run")
    parts = stats(tmp_path / "run")[-1]["parts"]
    assert {"encoder.conv_in", "decoder.conv_in", "decoder.conv_out", "decoder.middle"} <= parts.keys()
    largest = max(size["gradient"] for size in parts.values())
    assert [name for name, size in parts.items() if size["gradient"] < 1e-5 * largest] == []
    assert all(size["update"] > 0 for size in parts.values())
    assert "gradient and update by part, after 30 images" in caplog.text, "nobody is shown"
    assert "hardly learns" not in caplog.text


def test_part_that_does_not_learn_is_named_once(
    small: Small,
    start: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A level without gradient goes unnoticed for days, or fills the log."""
    build = FlowConfig.build_stage

    def cut(config: FlowConfig) -> Any:
        stage = build(config)
        for p in stage.model.decoder.middle.parameters():
            p.register_hook(torch.zeros_like)
        return stage

    monkeypatch.setattr(FlowConfig, "build_stage", cut)
    with caplog.at_level("INFO"):
        train(small(*start), tmp_path / "run")
    warnings = [r.getMessage() for r in caplog.records if "hardly learns" in r.getMessage()]
    assert len(warnings) == 1
    assert "warning: decoder.middle" in warnings[0]


def test_check_writes_nothing_and_shows_the_table(ssdd: Callable[..., Any], photographs: Path, tmp_path: Path) -> None:
    """A look at a new setting leaves a run behind, or says nothing."""
    result = ssdd("train", "tiny-encoder", "--check", "--data.paths", photographs, *SMALL)
    assert result.status == 0, result.err
    for word in ("update 1, loss", "update 10, loss", "update / weight", "decoder.conv_in", "every part learns"):
        assert word in result.out
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_stats_stay_json(small: Small, start: tuple[str, ...], tmp_path: Path) -> None:
    """And have gradient and update by part."""
    train(small(*start, "--total-images", "8"), tmp_path / "run")
    (line,) = (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    parts = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in stats.jsonl"))["parts"]
    assert set(next(iter(parts.values()))) == {"gradient", "update"}
