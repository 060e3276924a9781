"""Photographs that are held out: never trained on, measured while the run goes, the best model kept."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdd import AutoencoderSSDD
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from ssdd.training.tokenizer import TokenizerTask
from ssdd.training.validation import better, hold_out, read_crops, summary
from tests.training.runs import newest

Small = Callable[..., TrainConfig]

BEST = ("--validation.count", "4", "--validation.images", "8", "--validation.best", "psnr")


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]


def test_held_out_photographs_are_never_trained_on(small: Small, start: tuple[str, ...], photographs: Path) -> None:
    """The figures are those of photographs that the model has learnt by heart."""
    task = TokenizerTask(small(*start, "--validation.share", "0.25", "--validation.count", "9"))
    assert task.held_out is not None
    sources = task.stream.source, task.held_out  # type: ignore[union-attr]
    trained, held_out = ({source.key(i) for i in range(len(source))} for source in sources)
    assert (len(trained), len(held_out)) == (9, 3)
    assert not trained & held_out
    assert task.provenance()["photographs"]["count"] == 9
    again = TokenizerTask(small(*start, "--validation.share", "0.25", "--validation.count", "9"))
    assert {again.held_out.key(i) for i in range(3)} == held_out, "another choice after each start"  # type: ignore[union-attr]
    without = TokenizerTask(small(*start))
    assert (without.held_out, len(without.stream.source)) == (None, 12)  # type: ignore[union-attr]
    own = TokenizerTask(small(*start, "--validation.paths", str(photographs), "--validation.count", "2"))
    assert (len(own.held_out), len(own.stream.source)) == (12, 12)  # type: ignore[arg-type,union-attr]


def test_share_that_is_held_out() -> None:
    """A large data set loses more than is measured, or some photographs are in neither part."""
    trained, held_out = hold_out(1000, 0.1, seed=3)
    assert (len(trained), len(held_out)) == (900, 100)
    assert sorted([*trained, *held_out]) == list(range(1000))
    assert not np.array_equal(held_out, hold_out(1000, 0.1, seed=4)[1])
    assert len(hold_out(10**6, 0.5, seed=0)[1]) == 500
    assert len(hold_out(12, 0.01, seed=0)[1]) == 0


@pytest.mark.slow
def test_figures_best_model_and_what_it_was_before(
    small: Small, start: tuple[str, ...], stopped: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run's figures are lost, or its best model, or a resumed run tells another story."""
    options = (*start, *BEST, "--validation.share", "0.25", "--validation.steps", "1", "2")
    with caplog.at_level("INFO"):
        train(small(*options), tmp_path / "whole")
    found = lines(tmp_path / "whole")
    assert [line["images"] for line in found] == [0, 8, 16, 24], "not measured when it should be, or not at the start"
    assert all({"psnr_1", "psnr_2", "ssim_1", "ssim_2"} <= line.keys() for line in found)
    best = max(found[1:], key=lambda line: line["psnr_1"])
    assert json.loads((tmp_path / "whole" / "best.json").read_text()) == best
    AutoencoderSSDD.from_pretrained(tmp_path / "whole" / "best")
    assert "on 3 held-out crops:" in caplog.text
    assert "before     after" in caplog.text, "the model that it started from is not compared"

    stopped(tmp_path / "cut", *options)
    train(small(*options), tmp_path / "cut")
    assert lines(tmp_path / "cut") == found
    assert json.loads((tmp_path / "cut" / "best.json").read_text()) == best
    assert newest(tmp_path / "cut") == newest(tmp_path / "whole")
    # ... and looking changes nothing that is computed.
    train(small(*options, "--validation.images", "0"), tmp_path / "quiet")
    assert [line["images"] for line in lines(tmp_path / "quiet")] == [0, 24]
    assert newest(tmp_path / "quiet") == newest(tmp_path / "whole")


def test_measured_model_is_the_averaged_one(
    small: Small, start: tuple[str, ...], photographs: Path, tmp_path: Path
) -> None:
    """The last figures are not those of the exported model."""
    options = (*start, *BEST, "--validation.paths", str(photographs), "--validation.steps", "1")
    folder = train(small(*options, "--total-images", "8"), tmp_path / "run")
    ae = AutoencoderSSDD.from_pretrained(folder)
    config = small(*options)
    held_out = TokenizerTask(config).held_out
    assert held_out is not None
    x = torch.from_numpy(read_crops(held_out, 4, 16)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        y = ae.decode(ae.encode(x).latent_dist.mode(), num_inference_steps=1).sample
    levels = ((y + 1) * 127.5).round().clamp(0, 255) - (x + 1) * 127.5
    psnr = 10 * (255**2 / levels.square().mean((1, 2, 3))).log10()
    assert lines(tmp_path / "run")[-1]["psnr_1"] == pytest.approx(float(psnr.mean()), abs=0.01)


def test_which_is_better() -> None:
    """The worst model is kept as the best."""
    assert better("psnr", 20.0, 19.0)
    assert not better("psnr", 19.0, 20.0)
    assert better("lpips", 0.1, 0.2)
    assert not better("fd", 3.0, 2.0)
    assert better("ssim", 0.0, None)


def test_summary_names_what_it_shows() -> None:
    """The figure after the training stands under the heading of the one before."""
    rows = summary({"psnr_1": 20.0}, {"psnr_1": 22.5, "lpips_8": 0.25}, 64).splitlines()
    assert rows[0].startswith("on 64 held-out crops:")
    assert rows[0].split()[-2:] == ["before", "after"]
    assert rows[1].split() == ["PSNR", "1", "step", "20", "22.5"]
    assert rows[2].split() == ["LPIPS", "8", "steps", "0.25"]
