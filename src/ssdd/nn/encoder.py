"""The encoder: the convolutional KL encoder of latent diffusion (LDM, Rombach et al. 2022), factor 4 to 32.

Shapes: B batch, H x W pixels, c latent channels, h x w = H/f x W/f latent grid, C channels of a level.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import GroupNorm, GroupNormSilu, run
from .presets import EncoderSize

EPS = 1e-6
BLOCKS = 2
LOGVAR_RANGE = (-30.0, 20.0)
"""Where a posterior clamps the log-variance, the same as ``DiagonalGaussianDistribution`` of diffusers."""


class EncoderBlock(nn.Module):
    """(GroupNorm, SiLU, 3x3 conv) twice, plus a shortcut: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNormSilu(groups, in_channels, eps=EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNormSilu(groups, out_channels, eps=EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.norm1(x))
        hidden = self.conv2(self.norm2(hidden))
        return hidden.add_(self.shortcut(x))  # a convolution's gradient does not need its result


class EncoderDownsample(nn.Module):
    """Strided 3x3 convolution, padded with zeros below and on the right only: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class GlobalAttention(nn.Module):
    """Single-head self-attention over the whole grid, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=EPS)
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

    def __init__(self, in_channels: int, out_channels: int, groups: int, last: bool) -> None:
        super().__init__()
        channels = [in_channels] + [out_channels] * BLOCKS
        self.blocks = nn.ModuleList(EncoderBlock(a, b, groups) for a, b in itertools.pairwise(channels))
        self.downsample = None if last else EncoderDownsample(out_channels)

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2); of the same size in the last level."""
        for block in self.blocks:
            x = run(block, x, recompute=recompute)
        return x if self.downsample is None else self.downsample(x)


class Encoder(nn.Module):
    """Image to the moments of the posterior, a diagonal Gaussian per latent cell.

    Args:
        size: channels of each level and latent channels; see ``presets.py``.
    """

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.size = size
        self.spatial_factor, self.latent_channels = size.factor, size.latent_channels
        self.gradient_checkpointing = False
        channels, top, moments = size.channels, size.channels[-1], 2 * size.latent_channels
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        inputs = (channels[0], *channels[:-1])
        self.down = nn.ModuleList(
            EncoderLevel(a, b, size.groups, last=i == len(channels) - 1)
            for i, (a, b) in enumerate(zip(inputs, channels, strict=True))
        )
        self.middle = nn.Sequential(
            EncoderBlock(top, top, size.groups), GlobalAttention(top, size.groups), EncoderBlock(top, top, size.groups)
        )
        self.norm_out = GroupNormSilu(size.groups, top, eps=EPS)
        self.conv_out = nn.Conv2d(top, moments, 3, padding=1)
        self.moments = nn.Conv2d(moments, moments, 1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which images must have too."""
        return self.conv_in.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2c, H/f, W/f): mean, then log-variance (not clamped)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x, self.gradient_checkpointing)
        x = run(self.middle, x, recompute=self.gradient_checkpointing)
        return self.moments(self.conv_out(self.norm_out(x)))
