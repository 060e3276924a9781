"""The networks as modules with one formulation for every size, which can be traced with symbolic sizes.

Shapes: B batch, f spatial factor, c latent channels, h x w latent grid, H x W = h*f x w*f pixels; C channels of a
level, p its pixels per latent cell and axis; E context channels, R x S tokens, D width.

The library's networks choose between formulations by the sizes that they are given, and a graph for all sizes holds
one. From f8 on all levels have whole latent cells, and sizes are multiples of h and w. At f4 the last level is rounded
up where h or w is odd: there pixels are taken by index.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.blocks import AdaptiveGroupNormSilu, Downsample, GroupNormSilu, Upsample
from ..nn.decoder import Decoder, Middle
from ..nn.encoder import Encoder
from ..nn.transformer import WINDOW, AdaptiveLayerNorm, TransformerBlock
from .attention import Blocks, block_bias, windowed_attention

M = TypeVar("M", bound=nn.Module)
N = TypeVar("N", bound=nn.Module)

MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0
"""Where diffusers' ``DiagonalGaussianDistribution`` clamps the log-variance."""


class ExportEncoder(nn.Module):
    """Image to the posterior's mean and log-variance, those of ``AutoencoderSSDD.encode``.

    Args:
        encoder: is left as it is; the weights are shared with it.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.network = _shared_copy(encoder)
        _replace(self.network, nn.GroupNorm, _PlainGroupNorm)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and logvar, each (B, c, h, w), raw; all float32."""
        mean, logvar = self.network(image.to(self.network.conv_in.weight.dtype)).float().chunk(2, dim=1)
        return mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR)


class ExportDecoder(nn.Module):
    """One Euler step from noise to the image, ``noise + v(noise, 1, latent)``.

    Args:
        decoder: is left as it is; the weights are shared with it.
        factor: f.
    """

    def __init__(self, decoder: Decoder, factor: int) -> None:
        super().__init__()
        network = _shared_copy(decoder)
        levels = list(zip(network.down, reversed(network.up), strict=True))  # from the finest on
        for i, (down, up) in enumerate(levels):
            for level in (down, up):
                _replace(level, AdaptiveGroupNormSilu, partial(_GroupNorm, pixels=_pixels(factor, i)))
            even = factor % 2 ** (i + 1) == 0
            if even:
                _replace(down, Downsample, _EvenDownsample)
            if i + 1 < len(levels):
                _replace(levels[i + 1][1], Upsample, partial(_Upsample, even=even))
        network.add_module("middle", _Middle(network.middle, _pixels(factor, len(levels) - 1)))
        _replace(network, nn.GroupNorm, _PlainGroupNorm)
        self.network = network

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """The image, about [-1, 1] and not clamped; all float32.

        latent: (B, c, h, w), raw; noise: (B, 3, H, W), standard normal; returns (B, 3, H, W).
        """
        dtype = self.network.conv_in.weight.dtype
        velocity = self.network(noise.to(dtype), torch.ones(1, device=noise.device), latent.to(dtype))
        return noise + velocity.float()


def _shared_copy(network: N) -> N:
    """New modules around the same weights."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters()})


def _pixels(factor: int, level: int) -> int:
    """Pixels of a level per latent cell and axis; 0 if there is no whole number of them."""
    pixels, rest = divmod(factor, 2**level)
    return 0 if rest else pixels


def _replace(parent: nn.Module, kind: type[M], make: Callable[[M], nn.Module]) -> None:
    """Puts ``make(module)`` in the place of each module of a kind below ``parent``."""
    for name, child in list(parent.named_children()):
        if isinstance(child, kind):
            setattr(parent, name, make(child))
        else:
            _replace(child, kind, make)


class _EvenDownsample(nn.Module):
    """``Downsample`` of even sizes, without the padding that no kernel reaches: then n is seen to become n/2."""

    def __init__(self, source: Downsample) -> None:
        super().__init__()
        self.conv = source.conv

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.conv.weight, self.conv.bias, stride=2)


class _Upsample(nn.Module):
    """``Upsample`` by nearest neighbours and a convolution; by index where the size may be odd."""

    def __init__(self, source: Upsample, even: bool) -> None:
        super().__init__()
        self.conv, self.even = source.conv, even

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.even:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            for axis, length in zip((2, 3), size, strict=True):
                x = x.index_select(axis, torch.arange(length, device=x.device) // 2)
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)


class _PlainGroupNorm(nn.Module):
    """``nn.GroupNorm``; with ``silu``, ``GroupNormSilu``."""

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__()
        self.source, self.silu = source, isinstance(source, GroupNormSilu)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); scale, shift: (1, C)."""
        weight, bias = self.source.weight[None], self.source.bias[None]
        if scale is not None and shift is not None:
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        x = _normalized(x, self.source.num_groups, self.source.eps) * weight[:, :, None, None] + bias[:, :, None, None]
        return F.silu(x) if self.silu else x


def _normalized(x: Tensor, groups: int, eps: float) -> Tensor:
    """Group norm without weights, summed in two steps: the sums of ONNX Runtime's own lose digits on large images."""
    dtype, (batch, channels, rows, columns) = x.dtype, x.shape
    values = x.float() if dtype == torch.float16 else x
    grouped = values.reshape(batch, groups, channels // groups * rows, columns)
    centred = grouped - grouped.mean(3, keepdim=True).mean(2, keepdim=True)
    variance = (centred * centred).mean(3, keepdim=True).mean(2, keepdim=True)
    return (centred * torch.rsqrt(variance + eps)).reshape(batch, channels, rows, columns).to(dtype)


class _GroupNorm(nn.Module):
    """``AdaptiveGroupNormSilu`` on a level with ``pixels`` per cell (0: no whole number)."""

    def __init__(self, source: AdaptiveGroupNormSilu, pixels: int) -> None:
        super().__init__()
        self.groups, self.modulation, self.pixels = source.groups, source.modulation, pixels

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.modulation(context).chunk(2, dim=1)  # (B, C, h, w) each
        x = _normalized(x, self.groups, 1e-5)
        if self.pixels == 0:
            scale, shift = (_nearest(m, (x.shape[2], x.shape[3])) for m in (scale, shift))
        elif self.pixels > 1:
            scale, shift = (F.interpolate(m, scale_factor=float(self.pixels), mode="nearest") for m in (scale, shift))
        return F.silu(x * (1 + scale) + shift)


class _Middle(nn.Module):
    """``Middle`` with the tokens as a grid, whose blocks are found once for all layers."""

    def __init__(self, source: Middle, pixels: int) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = source.norm, source.proj_in, source.proj_out
        self.blocks = nn.ModuleList(_TransformerBlock(block, pixels) for block in source.blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor, feature_block: None, recompute: bool) -> tuple[Tensor, None]:
        """x: (B, D, R, S); returns the same, and nothing for the features that nobody asks for."""
        grid = (x.shape[2], x.shape[3])
        queries, keys = (Blocks.of(grid, around, x.device) for around in (0, WINDOW // 2))
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1))  # (B, R, S, D)
        context = F.silu(context).permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens = block(tokens, context, queries, keys)
        return x + self.proj_out(tokens).permute(0, 3, 1, 2), None


class _TransformerBlock(nn.Module):
    """``TransformerBlock`` on a grid of tokens, ``pixels`` per latent cell (0: no whole number)."""

    bias: Tensor

    def __init__(self, source: TransformerBlock, pixels: int) -> None:
        super().__init__()
        self.source, self.pixels = source, pixels
        self.register_buffer("bias", block_bias(source.attention.bias_table.detach()))

    def forward(self, x: Tensor, context: Tensor, queries: Blocks, keys: Blocks) -> Tensor:
        """x: (B, R, S, D); context: (B, h, w, E); returns (B, R, S, D)."""
        attention = self.source.attention
        normed = self._modulate(self.source.norm1, x, context)
        q, k, v = (project(normed) for project in (attention.q, attention.k, attention.v))
        x = x + attention.out(windowed_attention(q, k, v, self.bias, queries, keys))
        return x + self.source.feed_forward(self.source.norm2(x))

    def _modulate(self, norm: AdaptiveLayerNorm, x: Tensor, context: Tensor) -> Tensor:
        modulation = norm.modulation(context).permute(0, 3, 1, 2)  # (B, 2D, h, w)
        if self.pixels == 0:
            modulation = _nearest(modulation, (x.shape[1], x.shape[2]))
        elif self.pixels > 1:
            modulation = F.interpolate(modulation, scale_factor=float(self.pixels), mode="nearest")
        shift, scale = modulation.permute(0, 2, 3, 1).chunk(2, dim=-1)  # (B, R, S, D) each
        return norm.norm(x) * (1 + scale) + shift


def _nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(x, size)`` by index, with the rounding of PyTorch: float32, down."""
    for axis, length in zip((2, 3), size, strict=True):
        step = torch.scalar_tensor(x.shape[axis]) / length
        index = (torch.arange(length, dtype=torch.float32) * step).long().clamp(max=x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x
