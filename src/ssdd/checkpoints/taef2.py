"""TAEF2's encoder: a tiny network that makes the latents of FLUX.2, normalised (Ollin Boer Bohan, MIT licence).

Its weights are in the package, under the name ``taef2``.

Shapes: B batch, H x W pixels, h x w = H/8 x W/8 latent grid.
"""

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..nn.blocks import GroupNorm  # whose tiles share their statistics
from .embedded import TAEF2_FOLDER

WIDTH, LATENT_CHANNELS = 64, 32
_POOL_WIDTH = 256


class Block(nn.Module):
    """Three 3x3 convolutions and a skip; before them, where ``pool``, a branch that sees the whole grid by its norm."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.pool: nn.Module | None = None
        if pool:
            into, back = nn.Conv2d(WIDTH, _POOL_WIDTH, 1, bias=False), nn.Conv2d(_POOL_WIDTH, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(into, GroupNorm(4, _POOL_WIDTH), nn.ReLU(), back)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64, h, w) -> the same."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class TAEF2Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, 32, h, w), as a user's own code: ``ForeignEncoder`` takes it.

    The batch norm by which FLUX.2's pipelines normalise latents is the identity: it has been applied.
    """

    kind, spatial_factor, latent_channels = "TAEF2Encoder", 8, LATENT_CHANNELS

    batch_norm_mean, batch_norm_var = (0.0,) * 4 * LATENT_CHANNELS, (1.0,) * 4 * LATENT_CHANNELS
    batch_norm_eps = 1e-12  # a batch norm has one above zero

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
        for pool in (False, False, True):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False), *(Block(pool) for _ in range(3))]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1))
        self.encoder.load_state_dict(load_file(TAEF2_FOLDER / "diffusion_pytorch_model.safetensors"))
        self.eval()

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of images."""
        z: Tensor = self.encoder((x + 1) / 2)
        return z
