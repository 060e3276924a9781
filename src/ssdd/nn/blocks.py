"""Convolutional blocks of the decoder: adaptive group norm, ResNet block, resampling.

Shapes: B batch, C channels, H x W pixels of the level, E context channels, h x w latent grid, T time features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import fast
from .whole_image import moments_for


def run(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """``block(*inputs)``; with ``recompute`` its activations are computed again in the backward pass, not kept."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class AdaptiveGroupNormSilu(nn.Module):
    """GroupNorm without weights, then ``x * (1 + scale) + shift`` with both predicted from the context map; SiLU.

    The 1x1 convolution runs on the latent grid, and its result is repeated onto the level: the same values as
    the other way round, at a fraction of the cost.
    """

    fused = False
    """Whether compiled kernels are used where they can be."""

    def __init__(self, channels: int, context_channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.modulation = nn.Conv2d(context_channels, 2 * channels, 1)  # scale, shift

    def forward(self, x: Tensor, context: Tensor, overwrite: bool = False) -> Tensor:
        """Return (B, C, H, W).

        Args:
            x: (B, C, H, W).
            context: (B, E, h, w).
            overwrite: whether the result may take the memory of x.
        """
        scale, shift = self.modulation(context).chunk(2, dim=1)
        moments = moments_for(self, x, self.groups)
        return fast.norm_silu(x, self.groups, 1 + scale, shift, 1e-5, moments, self.fused, overwrite)


class GroupNorm(nn.GroupNorm):
    """GroupNorm, the same in every memory layout."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        weight, bias = (p[None, :, None, None] for p in (self.weight, self.bias))
        moments = moments_for(self, input, self.num_groups)
        return fast.group_norm(input, self.num_groups, weight, bias, self.eps, moments)


class GroupNormSilu(nn.GroupNorm):
    """GroupNorm, an optional modulation per channel, SiLU."""

    fused = False
    """Whether compiled kernels are used where they can be."""

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        """Return (B, C, H, W).

        Args:
            x: (B, C, H, W).
            scale, shift: (B or 1, C), for ``norm(x) * (1 + scale) + shift``.
            overwrite: whether the result may take the memory of x.
        """
        weight, bias = self.weight[None], self.bias[None]
        if scale is not None and shift is not None:
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        weight, bias = weight[:, :, None, None], bias[:, :, None, None]
        moments = moments_for(self, x, self.num_groups)
        return fast.norm_silu(x, self.num_groups, weight, bias, self.eps, moments, self.fused, overwrite)


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions; the first norm listens to the latent, the second to the time; plus a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, context_channels: int, time_features: int, groups: int
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveGroupNormSilu(in_channels, context_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_features, 2 * out_channels)  # scale, shift
        self.norm2 = GroupNormSilu(groups, out_channels, eps=1e-5)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor | list[Tensor], context: Tensor, time: Tensor) -> Tensor:
        """Return (B, C', H, W).

        Args:
            x: (B, C, H, W); or tensors whose channels lie side by side, which nobody else needs: without gradients the
                list is emptied, so that their memory is free.
            context: (B, E, h, w).
            time: (B, T), or (1, T) for all.
        """
        parts: list[Tensor] = []
        if isinstance(x, list):
            parts, x = x, torch.cat(x, dim=1)
        scale, shift = self.time(F.silu(time)).chunk(2, dim=1)  # (B or 1, C') each
        if torch.is_grad_enabled() or not parts:
            hidden = self.conv1(self.norm1(x, context))
            hidden = self.conv2(self.norm2(hidden, scale, shift, overwrite=True))
            return hidden.add_(self.shortcut(x))  # a convolution's gradient does not need its result
        # The same, but x belongs to the block: each tensor goes as soon as it is no longer needed.
        parts.clear()
        shortcut = self.shortcut(x)
        hidden = self.norm1(x, context, overwrite=shortcut is not x)
        del x
        hidden = self.conv1(hidden)
        hidden = self.norm2(hidden, scale, shift, overwrite=True)
        hidden = self.conv2(hidden)
        return hidden.add_(shortcut)


class Downsample(nn.Module):
    """Strided 3x3 convolution: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DownsampleConv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DownsampleConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, ceil(H/2), ceil(W/2)) of x, (B, C, H, W)."""
        return fast.downsample_conv(input, self.weight, self.bias)


class Upsample(nn.Module):
    """Nearest x2, cut to ``size`` (the level above may be odd), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsampleConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, ceil(H/2), ceil(W/2)), size (H, W) -> (B, C, H, W)."""
        return self.conv(x, size)


class UpsampleConv2d(nn.Conv2d):
    """A 3x3 convolution of its input repeated to twice the size, without making that."""

    def forward(self, input: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, ceil(H/2), ceil(W/2)), size (H, W), by default twice the input's -> (B, C, H, W)."""
        twice = (2 * input.shape[-2], 2 * input.shape[-1])
        return fast.upsample_conv(input, self.weight, self.bias, twice if size is None else size)
