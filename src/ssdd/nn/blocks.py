"""Convolutional blocks of the decoder: adaptive group norm, ResNet block, resampling.

Shapes: B batch, C channels, H x W pixels of the level, E context channels, h x w latent grid, T time features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """``block(*inputs)``; with ``recompute`` its activations are computed again in the backward pass, not kept."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm without weights, then ``x * (1 + scale) + shift`` with both predicted from the context map.

    The 1x1 convolution runs on the latent grid, and its result is repeated onto the level: the same values as
    the other way round, at a fraction of the cost.
    """

    def __init__(self, channels: int, context_channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.modulation = nn.Conv2d(context_channels, 2 * channels, 1)  # scale, shift

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W); context: (B, E, h, w); returns (B, C, H, W)."""
        modulation = F.interpolate(self.modulation(context), size=x.shape[-2:], mode="nearest")
        scale, shift = modulation.chunk(2, dim=1)
        return F.group_norm(x, self.groups, eps=1e-5) * (1 + scale) + shift


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions; the first norm listens to the latent, the second to the time; plus a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, context_channels: int, time_features: int, groups: int
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(in_channels, context_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_features, 2 * out_channels)  # scale, shift
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-5)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, context: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, H, W); context: (B, E, h, w); time: (B, T); returns (B, C', H, W)."""
        hidden = self.conv1(F.silu(self.norm1(x, context)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)  # (B, C', 1, 1) each
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(hidden))


class Downsample(nn.Module):
    """Strided 3x3 convolution: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest x2, cut to ``size`` (the level above may be odd), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, ceil(H/2), ceil(W/2)), size (H, W) -> (B, C, H, W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x[..., : size[0], : size[1]])
