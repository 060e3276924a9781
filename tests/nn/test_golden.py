"""Independent implementations of one function agree: ours against figures of the authors' implementation.

``assets/golden.npz`` holds 400 evenly spaced numbers of each output. Shapes: B batch, H x W pixels, c latent channels.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdd import flow
from ssdd.checkpoints.names import AUTHORS_DECODER, AUTHORS_ENCODER
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.presets import decoder_size, encoder_size
from tests.golden import fill, wave

GOLDEN = np.load(Path(__file__).parents[1] / "assets" / "golden.npz", allow_pickle=False)
TOLERANCE = 2e-4


def assert_golden(case: str, output: Tensor) -> None:
    expected, flat = GOLDEN[case], output.flatten().numpy()
    index = np.linspace(0, flat.size - 1, min(400, flat.size)).round().astype(int)
    error = np.abs(flat[index] - expected).max()
    assert error < TOLERANCE, f"{case}: differs from the authors' implementation by {error}"


@pytest.mark.parametrize("tag", sorted({k.split(".")[0] for k in GOLDEN.files if not k.startswith("enc")}))
def test_decoder_velocities_and_samples(tag: str) -> None:
    """The velocity network or the sampler computes something else than the published ones."""
    size, encoder, side = re.fullmatch(r"([a-z]+)_(f\d+c\d+)_(\d+)", tag).groups()  # type: ignore[union-attr]
    shape, latent = (2, 3, int(side), int(side)), encoder_size(encoder)
    decoder = Decoder(decoder_size(size.upper()), latent.latent_channels).eval()
    fill(decoder, AUTHORS_DECODER)
    grid = int(side) // latent.factor
    x, noise = wave(f"{tag}.x", shape, 1), wave(f"{tag}.noise", shape, 1.5)
    z = wave(f"{tag}.z", (2, latent.latent_channels, grid, grid), 1)
    for case in (k for k in GOLDEN.files if k.startswith(f"{tag}.")):
        kind, number = case.removeprefix(f"{tag}.").split("=")
        with torch.no_grad():
            if kind == "v.t":
                output = decoder(x, torch.full((2,), float(number)), z)
            else:
                output = flow.euler_sample(lambda x_t, t: decoder(x_t, t, z), noise, int(number))
        assert_golden(case, output)


@pytest.mark.parametrize("tag", sorted({k.split(".")[0] for k in GOLDEN.files if k.startswith("enc")}))
def test_encoder_moments(tag: str) -> None:
    """The encoder computes something else than the published one, or mean and log-variance are swapped."""
    _, name, side = tag.split("_")
    encoder = Encoder(encoder_size(name)).eval()
    fill(encoder, AUTHORS_ENCODER)
    with torch.no_grad():
        mean, logvar = encoder(wave(f"{tag}.x", (2, 3, int(side), int(side)), 1)).chunk(2, dim=1)
    assert_golden(f"{tag}.mean", mean)
    assert_golden(f"{tag}.logvar", logvar)
