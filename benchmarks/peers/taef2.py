"""TAEF2, the tiny autoencoder of FLUX.2's latents (MIT licence), for ``ssdd evaluate benchmarks/peers/taef2.py:TAEF2``.

Its weights, ``taef2_encoder.pth`` and ``taef2_decoder.pth``, lie in the folder that TAEF2_FOLDER names, or the current
one. Also an example of how an autoencoder in no library's format takes part in a comparison, or as a frozen encoder in
training: ``encode``, ``decode``, ``spatial_factor``, ``latent_channels``.

Shapes: B batch, H x W pixels, h x w = H/8 x W/8 latent grid, D width.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, POOL_WIDTH, LATENT_CHANNELS = 64, 256, 32


class Block(nn.Module):
    """Three 3x3 convolutions and a skip; before them, where ``pool``, a branch that sees the whole grid by its norm."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        if pool:
            into, back = nn.Conv2d(WIDTH, POOL_WIDTH, 1, bias=False), nn.Conv2d(POOL_WIDTH, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(into, nn.GroupNorm(4, POOL_WIDTH), nn.ReLU(), back)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


def down() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)


def up() -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]


def blocks(count: int, pool: bool = False) -> list[nn.Module]:
    return [Block(pool) for _ in range(count)]


class TAEF2(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, 32, h, w) and back. Raises FileNotFoundError without weights."""

    spatial_factor, latent_channels = 8, LATENT_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1)
        middle = [down(), *blocks(3), down(), *blocks(3), down(), *blocks(3, pool=True)]
        self.encoder = nn.Sequential(first, Block(), *middle, last)
        first, last = nn.Conv2d(LATENT_CHANNELS, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 3, padding=1)
        middle = [*blocks(3, pool=True), *up(), *blocks(3), *up(), *blocks(3), *up(), Block()]
        self.decoder = nn.Sequential(nn.Identity(), first, nn.ReLU(), *middle, last)
        for network, name in ((self.encoder, "taef2_encoder.pth"), (self.decoder, "taef2_decoder.pth")):
            path = Path(os.environ.get("TAEF2_FOLDER", ".")) / name
            network.load_state_dict(torch.load(path, weights_only=True))
        self.float().eval().requires_grad_(False)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder((x + 1) / 2)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(3 * torch.tanh(z / 3)) * 2 - 1
