"""``ssdd bench train``: real updates, in the layouts that the rows are named after."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd.bench import training
from ssdd.bench.config import TrainingBench

Ssdd = Callable[..., Any]

SMALL = ("--decoder", "XXS", "--encoder-width", "32", "--image-size", "32", "--batch-size", "2", "--rounds", "1")
SMALL += ("--seconds", "0", "--precision", "fp32", "--device", "cpu")


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssdd.bench.training.peak_flops", lambda *_: 1e12)


def test_table_and_file(ssdd: Ssdd, tmp_path: Path) -> None:
    result = ssdd("bench", "train", *SMALL, "--no-lpips", "--out", "speed.json")
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "speed.json").read_text())
    plain, last = found["rows"]
    assert (plain["name"], last["name"]) == ("plain NCHW", "channels last")
    assert plain["gflop_per_image"] == last["gflop_per_image"] > 0
    assert plain["speed_against_first"] == 1
    assert found["setting"]["lpips"] == "none"
    assert "updates/s" in result.out
    assert "decoder XXS" in result.out


@pytest.mark.parametrize("plain", [True, False])
def test_updates_train_in_their_layout(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def take_update(state: Any, batch: torch.Tensor, autocast: Any) -> None:
        before = {name: p.detach().clone() for name, p in state.stage.model.named_parameters()}
        inputs = state.task.on_device(batch, torch.device("cpu"))
        real_update(state, batch, autocast)
        after = dict(state.stage.model.named_parameters())
        seen["changed"] = any(not torch.equal(before[name], p) for name, p in after.items())
        weights = [inputs, *(p for p in after.values() if p.dim() == 4 and p.shape[-1] == 3 and p.shape[1] > 1)]
        seen["last"] = {w.is_contiguous(memory_format=torch.channels_last) for w in weights}
        seen["clock"] = state.seen

    real_update = training.take_update
    monkeypatch.setattr(training, "take_update", take_update)
    settings = TrainingBench(
        decoder="XXS", encoder_width=32, image_size=32, batch_size=2, lpips=False, precision="fp32"
    )
    training._update(training._config(settings), torch.device("cpu"), plain)()
    assert seen == {"changed": True, "last": {not plain}, "clock": 2}


def test_missing_weights_are_named(ssdd: Ssdd) -> None:
    line = ssdd("bench", "train", *SMALL).error_line()
    assert "squeezenet" in line
    assert line.endswith("or pass --no-lpips")


def test_what_cannot_be_measured(ssdd: Ssdd) -> None:
    assert "at least 1" in ssdd("bench", "train", *SMALL, "--no-lpips", "--rounds", "0").error_line()
    assert "multiple of" in ssdd("bench", "train", *SMALL, "--no-lpips", "--image-size", "30").error_line()
