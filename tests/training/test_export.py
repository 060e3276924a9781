"""A model of a run that is not finished: the averaged weights of one of its checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd import AutoencoderSSDD
from ssdd.training.checkpoint import list_checkpoints, read_checkpoint
from ssdd.training.config import TrainConfig
from ssdd.training.export import export_checkpoint, find_checkpoint
from ssdd.training.loop import train
from tests.training.runs import exported

Small = Callable[..., TrainConfig]


def test_model_of_an_unfinished_run(
    ssdd: Callable[..., Any], stopped: Callable[..., Path], start: tuple[str, ...], tmp_path: Path
) -> None:
    """A run of weeks cannot be looked at before its end, or shows other weights than its averaged ones."""
    run = stopped(tmp_path / "run", *start)
    before = sorted(p for p in run.rglob("*") if not p.name.startswith("."))
    result = ssdd("train", "export", run, "--out", tmp_path / "model")
    assert result.status == 0, result.err
    assert "model of 12 images" in result.out
    assert sorted(p for p in run.rglob("*") if not p.name.startswith(".")) == before, "the run was touched"
    ae = AutoencoderSSDD.from_pretrained(tmp_path / "model")
    (checkpoint,) = list_checkpoints(run)
    average = read_checkpoint(checkpoint)[0]["average"]
    assert all(torch.equal(average[name], tensor) for name, tensor in ae.state_dict().items())
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert ae.decode(ae.encode(x).latent_dist.mode()).sample.shape == x.shape

    assert "exists already: choose another --out" in ssdd("train", "export", run, "--out", "model").error_line()
    assert "expected a checkpoint at 12 images, found none at 8" in (
        ssdd("train", "export", run, "--images", "8", "--out", "x").error_line()
    )
    assert "expected a run with a checkpoint, found none" in ssdd("train", "export", tmp_path).error_line()
    (run / "config.json").write_text("{}")
    assert "config.json: expected the settings of a run" in ssdd("train", "export", run, "--out", "x").error_line()


def test_export_needs_nothing_but_the_run(
    small: Small, small_model: Callable[[int], Path], photographs: Path, tmp_path: Path
) -> None:
    """On another machine, without the photographs, the same weights come out as at the end of the run."""
    folder = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    options = ("--encoder", str(small_model(0)), "--data.paths", str(folder), "--total-images", "8")
    train(small(*options, recipe="tiny-pretraining"), tmp_path / "run")
    shutil.rmtree(folder)
    export_checkpoint(find_checkpoint(tmp_path / "run"), tmp_path / "again")
    (tmp_path / "as run").mkdir()
    (tmp_path / "again").rename(tmp_path / "as run" / "model")
    a, b = exported(tmp_path / "run"), exported(tmp_path / "as run")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_export_of_another_encoder(
    ssdd: Callable[..., Any], stopped: Callable[..., Path], small_model: Callable[[int], Path], tmp_path: Path
) -> None:
    """A frozen encoder that has changed since would be exported with a decoder that was trained on another."""
    encoder = Path(shutil.copytree(small_model(0), tmp_path / "encoder"))
    run = stopped(tmp_path / "run", "--encoder", str(encoder), recipe="tiny-pretraining")
    shutil.rmtree(encoder)
    shutil.copytree(small_model(1), encoder)
    line = ssdd("train", "export", run, "--out", tmp_path / "model").error_line()
    assert "expected the encoder that this run began with, found other weights: put these back" in line
    assert not (tmp_path / "model").exists()


def test_export_knows_foreign_latents(small: Small, stopped: Callable[..., Path], tmp_path: Path) -> None:
    """The exported decoder gets latents of another scale than it was trained on."""
    (tmp_path / "loud.py").write_text(
        "import torch\n\nclass Loud:\n    spatial_factor, latent_channels = 4, 3\n\n"
        "    def encode(self, x):\n        return 40 * torch.nn.functional.avg_pool2d(x, 4)\n"
    )
    run = stopped(tmp_path / "run", "--encoder", f"{tmp_path}/loud.py:Loud", recipe="tiny-pretraining")
    export_checkpoint(find_checkpoint(run), tmp_path / "model")
    ae = AutoencoderSSDD.from_pretrained(tmp_path / "model")
    assert all(std > 5 for std in ae.config.decoder_latents_std)


@pytest.mark.parametrize("images", [None, 12])
def test_chosen_checkpoint(small: Small, start: tuple[str, ...], tmp_path: Path, images: int | None) -> None:
    """Another checkpoint than the one that was asked for; the newest by default."""
    train(small(*start), tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run", images)
    assert int(checkpoint.name) == (images or 24)
    export_checkpoint(checkpoint, tmp_path / "model")
