"""The encoder: the convolutional KL encoder of latent diffusion (LDM, Rombach et al. 2022), factor 4 to 32.

Shapes: B batch, H x W pixels, c latent channels, h x w = H/f x W/f latent grid, C channels of a level.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .presets import EncoderSize

GROUPS = 32
EPS = 1e-6
BLOCKS = 2


class EncoderBlock(nn.Module):
    """(GroupNorm, SiLU, 3x3 conv) twice, plus a shortcut: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels, eps=EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, eps=EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class EncoderDownsample(nn.Module):
    """Strided 3x3 convolution, padded with zeros below and on the right only: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class GlobalAttention(nn.Module):
    """Single-head self-attention over the whole grid, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=EPS)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, hw, C)
        q, k, v = (p(tokens)[:, None] for p in (self.q, self.k, self.v))  # (B, 1, hw, C): one head
        out = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + out.transpose(1, 2).unflatten(2, x.shape[-2:])


class EncoderLevel(nn.Module):
    """Two blocks, then a downsampling (none in the last level)."""

    def __init__(self, in_channels: int, out_channels: int, last: bool) -> None:
        super().__init__()
        channels = [in_channels] + [out_channels] * BLOCKS
        self.blocks = nn.ModuleList(EncoderBlock(a, b) for a, b in itertools.pairwise(channels))
        self.downsample = None if last else EncoderDownsample(out_channels)


class Encoder(nn.Module):
    """Image to the moments of the posterior, a diagonal Gaussian per latent cell.

    Args:
        size: channels of each level and latent channels; see ``presets.py``.
    """

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.size = size
        self.gradient_checkpointing = False
        channels, top, moments = size.channels, size.channels[-1], 2 * size.latent_channels
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        inputs = (channels[0], *channels[:-1])
        self.down = nn.ModuleList(
            EncoderLevel(a, b, last=i == len(channels) - 1)
            for i, (a, b) in enumerate(zip(inputs, channels, strict=True))
        )
        self.middle = nn.Sequential(EncoderBlock(top, top), GlobalAttention(top), EncoderBlock(top, top))
        self.norm_out = nn.GroupNorm(GROUPS, top, eps=EPS)
        self.conv_out = nn.Conv2d(top, moments, 3, padding=1)
        self.moments = nn.Conv2d(moments, moments, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2c, H/f, W/f): mean, then log-variance (not clamped)."""
        x = self.conv_in(x)
        for level in self.down:
            for block in level.blocks:
                x = self._run(block, x)
            if level.downsample is not None:
                x = level.downsample(x)
        x = self._run(self.middle, x)
        return self.moments(self.conv_out(F.silu(self.norm_out(x))))

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        """The block, recomputed in the backward pass if gradient checkpointing is on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)
