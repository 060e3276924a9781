"""Tiled encoding and decoding: bounded memory for large images, by overlapping tiles that are blended.

Shapes: H x W pixels, f spatial factor, h x w = H/f x W/f latent grid; tiles are counted in latent cells.

All tiles take their noise from one canvas, and each pixel is the weighted mean of the tiles over it, so the result
depends neither on the order of the tiles nor on how they are batched. Group norms see one tile at a time, not the
whole image: tiles may differ slightly in tone, which the wide overlap blends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_PIXELS = 512
"""Least side of a tile: well above the 120 pixels of the decoder's attention window."""


@dataclass(frozen=True)
class TileGrid:
    """Square tiles of ``size`` latent cells that start at ``rows`` x ``columns``; neighbours share ``overlap`` or
    more."""

    size: int
    overlap: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def cover(cls, grid: tuple[int, int], size: int, factor: int) -> "TileGrid | None":
        """Tiles over an h x w grid, of ``size`` cells or at least ``TILE_PIXELS``; None if one tile covers it."""
        size = max(size, TILE_PIXELS // factor)
        if max(grid) <= size:
            return None
        overlap = size // 4
        return cls(size, overlap, *(_starts(length, size, size - overlap) for length in grid))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Top-left cell of each tile."""
        return ((row, column) for row in self.rows for column in self.columns)


def encode_tiles(encode: Callable[[Tensor], Tensor], x: Tensor, tiles: TileGrid, factor: int) -> Tensor:
    """Moments (B, 2c, h, w) of an image (B, 3, H, W), tile by tile."""
    blend = _Blend((x.shape[2] // factor, x.shape[3] // factor), tiles.overlap)
    for row, column in tiles:
        rows, columns = _span(row, tiles.size, factor), _span(column, tiles.size, factor)
        blend.add(encode(x[:, :, rows, columns]), row, column)
    return blend.result()


def decode_tiles(
    sample: Callable[[Tensor, Tensor], Tensor], z: Tensor, noise: Tensor, tiles: TileGrid, factor: int
) -> Tensor:
    """Image (B, 3, h*f, w*f) of a latent (B, c, h, w) and its noise canvas, by ``sample(z, noise)`` on each tile."""
    blend = _Blend((noise.shape[2], noise.shape[3]), tiles.overlap * factor)
    for row, column in tiles:
        rows, columns = _span(row, tiles.size, factor), _span(column, tiles.size, factor)
        tile = sample(z[:, :, _span(row, tiles.size), _span(column, tiles.size)], noise[:, :, rows, columns])
        blend.add(tile, row * factor, column * factor)
    return blend.result()


class _Blend:
    """Weighted mean of overlapping tiles; a tile's weight falls linearly to its border."""

    def __init__(self, size: tuple[int, int], overlap: int) -> None:
        self.size, self.overlap = size, overlap
        self.total: Tensor | None = None
        self.weight: Tensor | None = None

    def add(self, tile: Tensor, top: int, left: int) -> None:
        height, width = tile.shape[-2:]
        if self.total is None or self.weight is None:
            self.total = tile.new_zeros((*tile.shape[:2], *self.size), dtype=torch.float32)
            self.weight = torch.zeros(self.size, dtype=torch.float32, device=tile.device)
        ramp = _ramp(height, self.overlap, tile.device)[:, None] * _ramp(width, self.overlap, tile.device)
        self.total[:, :, top : top + height, left : left + width] += tile.float() * ramp
        self.weight[top : top + height, left : left + width] += ramp

    def result(self) -> Tensor:
        if self.total is None or self.weight is None:
            raise ValueError("expected at least one tile")
        return self.total / self.weight


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """(length,) weights in (0, 1]: up over ``overlap``, flat, down."""
    at = torch.arange(length, dtype=torch.float32, device=device) + 0.5
    return (torch.minimum(at, length - at) / max(1, overlap)).clamp(max=1.0)


def _starts(length: int, size: int, stride: int) -> tuple[int, ...]:
    """Starts of tiles over ``length`` cells; the last one is pulled back to end at the border."""
    if length <= size:
        return (0,)
    return (*range(0, length - size, stride), length - size)


def _span(start: int, size: int, factor: int = 1) -> slice:
    return slice(start * factor, (start + size) * factor)
