"""Encoders and losses of the user's own: trained, saved, in the total, and in the log."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssdd import AutoencoderSSDD
from ssdd.checkpoints.own_code import OWN_ENCODER, load_own_encoder
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from ssdd.training.random import BatchRandom
from tests.training.runs import newest, stats

Small = Callable[..., TrainConfig]

ENCODER = """
import torch
from torch import nn


class Patches(nn.Module):
    spatial_factor, latent_channels = 4, 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 3, 4, stride=4)
        self.shift = nn.Parameter(torch.zeros(1, 3, 1))  # of three dimensions, as positions of a transformer are

    def encode(self, x):
        return self.conv(x) + self.shift[..., None]
"""

LOSSES = """
import torch
from torch import nn


def brightness(inputs):
    return (inputs.prediction.mean() - inputs.target.mean()).abs()


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, inputs):
        return self.weight.sum() * inputs.t.mean() + 0.0 * inputs.prediction.mean()


def image(inputs):
    return inputs.prediction


number = 3
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_own_encoder_is_trained_with_the_decoder(
    small: Small, stopped: Callable[..., Path], tmp_path: Path, optimizer: str
) -> None:
    """It gets no gradient, its trained weights are lost, or a resumed run begins with those of the code."""
    (tmp_path / "mine.py").write_text(ENCODER)
    name = f"{tmp_path}/mine.py:Patches"
    options = ("--encoder", name, "--optimizer.name", optimizer)
    folder = train(small(*options), tmp_path / "whole")
    stopped(tmp_path / "run", *options)
    train(small(*options), tmp_path / "run")
    assert newest(tmp_path / "run") == newest(tmp_path / "whole")

    saved = load_file(folder / OWN_ENCODER)
    trained, fresh = load_own_encoder(name, folder), load_own_encoder(name, tmp_path)
    assert not torch.equal(saved["conv.weight"], fresh.source.conv.weight), "it was not trained"
    assert torch.equal(saved["conv.weight"], trained.source.conv.weight)
    assert saved["shift"].count_nonzero() == 3
    ae = AutoencoderSSDD.from_pretrained(folder)
    assert ae.encoder is None
    assert len(ae.config.latents_std) == 3
    ae.attach_encoder(trained)
    z = ae.normalize_latents(ae.encode(torch.rand(4, 3, 16, 16) * 2 - 1).latent_dist.mode())
    assert 0.2 < float(z.std()) < 5, "the stored statistics are not those of the trained encoder"


def test_own_losses_are_part_of_the_total(
    small: Small, small_model: Callable[[int], Path], start: tuple[str, ...], tmp_path: Path
) -> None:
    """A loss of the user's own is only logged, has another weight, or is trained itself."""
    (tmp_path / "mine.py").write_text(LOSSES)
    options = ("--loss", f"{tmp_path}/mine.py:brightness:0.5", f"{tmp_path}/mine.py:Noisy")
    options += ("--model.start-from", str(small_model(0)), "--encoder", "None", "--model.decoder", "None")
    stage = small(*options).build_stage()
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    found = stage.losses(stage.model, images, BatchRandom(0, 0, 3, torch.device("cpu")), seen=0)
    t = torch.sigmoid(BatchRandom(0, 0, 3, torch.device("cpu")).normal())
    torch.testing.assert_close(found.terms["Noisy"], 2 * t.mean())
    expected = found.terms["flow"] + 0.5 * found.terms["brightness"] + found.terms["Noisy"] + 1e-6 * found.terms["kl"]
    torch.testing.assert_close(found.total, expected)
    found.terms["brightness"].backward()
    assert float(stage.model.decoder.conv_out.weight.grad.abs().sum()) > 0, "no gradient reaches the decoder"
    assert not any(p.requires_grad for p in stage.frozen["images"].parameters())
    train(small(*options, "--total-images", "8"), tmp_path / "run")
    assert {"brightness", "Noisy"} <= stats(tmp_path / "run")[0].keys()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("brightness:half", "expected a loss as file.py:NAME or file.py:NAME:WEIGHT"),
        ("missing", "found no such name there"),
        ("number", "expected a function of LossInputs, found int"),
        ("image", r"--loss image: expected a scalar tensor, the mean over the batch, found \(1, 3, 16, 16\)"),
    ],
)
def test_own_losses_that_are_none(
    small: Small, start: tuple[str, ...], tmp_path: Path, loss: str, message: str
) -> None:
    """The reason is a traceback in the first update, or a loss that is added to each pixel."""
    (tmp_path / "mine.py").write_text(LOSSES)
    with pytest.raises((ValueError, ImportError), match=message) as caught:
        train(small(*start, "--loss", f"{tmp_path}/mine.py:{loss}"), tmp_path / "run")
    assert "\n" not in str(caught.value)
