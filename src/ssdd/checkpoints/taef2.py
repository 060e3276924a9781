"""TAEF2's encoder: a tiny network that makes the latents of FLUX.2 (Ollin Boer Bohan, MIT licence).

Its weights are in the package, under the name ``taef2``.

Shapes: B batch, H x W pixels, h x w = H/8 x W/8 latent grid.
"""

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import read_batch_norm, read_config

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
            self.pool = nn.Sequential(into, nn.GroupNorm(4, _POOL_WIDTH), nn.ReLU(), back)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64, h, w) -> the same."""
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


class TAEF2Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, 32, h, w), as a user's own code: ``ForeignEncoder`` takes it.

    Args:
        folder: with ``config.json``, which states the batch norm of FLUX.2's pipelines, and the weights. None: random
            weights, no batch norm.
    """

    kind, spatial_factor, latent_channels = "TAEF2Encoder", 8, LATENT_CHANNELS

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
        for pool in (False, False, True):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False), *(Block(pool) for _ in range(3))]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1))
        if folder is not None:
            self.encoder.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
            for name, value in read_batch_norm(str(folder), read_config(folder), LATENT_CHANNELS).items():
                setattr(self, name, value)
        self.eval()

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of images."""
        z: Tensor = self.encoder((x + 1) / 2)
        return z
