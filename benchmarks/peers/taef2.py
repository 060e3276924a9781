"""TAEF2, the tiny autoencoder of FLUX.2's latents (MIT licence), for ``ssdd evaluate benchmarks/peers/taef2.py:TAEF2``.

The weights of its decoder, ``taef2_decoder.pth``, lie in the folder that TAEF2_FOLDER names, or the current one; those
of its encoder are in the package. Also an example of how an autoencoder in no library's format takes part in a
comparison, or as a frozen encoder in training: ``encode``, ``decode``, ``spatial_factor``, ``latent_channels``.

Shapes: B batch, H x W pixels, h x w = H/8 x W/8 latent grid.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ssdd.checkpoints.taef2 import LATENT_CHANNELS, WIDTH, Block, TAEF2Encoder


def up() -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]


def blocks(count: int, pool: bool = False) -> list[nn.Module]:
    return [Block(pool) for _ in range(count)]


class TAEF2(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, 32, h, w) and back. Raises FileNotFoundError without weights."""

    spatial_factor, latent_channels = 8, LATENT_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TAEF2Encoder()
        first, last = nn.Conv2d(LATENT_CHANNELS, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 3, padding=1)
        middle = [*blocks(3, pool=True), *up(), *blocks(3), *up(), *blocks(3), *up(), Block()]
        self.decoder = nn.Sequential(nn.Identity(), first, nn.ReLU(), *middle, last)
        path = Path(os.environ.get("TAEF2_FOLDER", ".")) / "taef2_decoder.pth"
        self.decoder.load_state_dict(torch.load(path, weights_only=True))
        self.float().eval().requires_grad_(False)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(3 * torch.tanh(z / 3)) * 2 - 1
