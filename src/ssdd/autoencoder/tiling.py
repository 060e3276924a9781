"""Tiled encoding and decoding: images of any size in bounded memory, by overlapping tiles that are blended.

Shapes: H x W pixels, f spatial factor, c latent channels, h x w = H/f x W/f latent grid; tiles are counted in latent
cells.

What would tell tiles apart is taken away: all of them take their noise from one canvas, their group norms use the
statistics of the whole image (``NormStatistics``), they begin where the decoder's tokens do, and they share a border
that is blended. What is left is that a pixel sees no farther than its tile. The result does not depend on the order of
the tiles but for rounding.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..nn.whole_image import NormStatistics
from .estimate import LARGE_PIXELS, SHARE, decoding_bytes, encoding_bytes, free_bytes, is_out_of_memory

logger = logging.getLogger(__name__)

Direction = Literal["encoding", "decoding"]

TILE_PIXELS = 512
"""Least side of a tile: well above the 120 pixels of the decoder's attention window."""

OVERLAP_PIXELS = 64
"""That neighbours share at least, and in which they are blended."""

LEAST_TILE_PIXELS = 128
"""Side of a tile that a user may ask for: less than the decoder's attention window would be seen."""

TOKEN_PIXELS = 8
"""Side of a token of the decoder's transformer: tiles begin at multiples of it."""

PART_PIXELS, PARTS, BATCHES = 256, 4, 8
"""Statistics are measured on squares of so many pixels a side, so many at a time, in so many batches at most: the
memory of one tile, the time of two megapixels."""

Track = Callable[[Sequence[Any]], Iterable[Any]]
"""Goes round the tiles, and shows how far the work is."""

_TRACK: ContextVar[Track] = ContextVar("track", default=lambda tiles: tiles)


@contextmanager
def tracked(track: Track) -> Iterator[None]:
    """Inside, the tiles of large images go by ``track``, a progress bar."""
    token = _TRACK.set(track)
    try:
        yield
    finally:
        _TRACK.reset(token)


@dataclass(frozen=True)
class Span:
    """Cells start ... stop - 1 of an axis."""

    start: int
    stop: int

    def of(self, x: Tensor, dim: int, scale: int = 1) -> Tensor:
        """Return the span of an axis with ``scale`` entries a cell."""
        return x.narrow(dim, self.start * scale, (self.stop - self.start) * scale)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a latent grid: every span of rows with every span of columns."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @classmethod
    def cover(cls, grid: tuple[int, int], size: int, factor: int) -> "TileGrid | None":
        """Tiles over an h x w grid, of ``size`` cells or at least ``TILE_PIXELS``; None if one tile covers it."""
        return cls.exact(grid, max(size, TILE_PIXELS // factor), OVERLAP_PIXELS // factor, factor)

    @classmethod
    def exact(cls, grid: tuple[int, int], size: int, overlap: int, factor: int) -> "TileGrid | None":
        """Return tiles of ``size`` cells that share about ``overlap`` or more; None if one tile covers the grid."""
        unit = max(1, TOKEN_PIXELS // factor)
        size = math.ceil(size / unit) * unit
        if max(grid) <= size:
            return None
        overlap = min(max(unit, overlap), size // 2)
        rows, columns = (_spans(length, size, overlap, unit) for length in grid)
        return cls(rows, columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of each tile."""
        return ((row, column) for row in self.rows for column in self.columns)


class TilingMixin:
    """Whether an autoencoder works on an image whole or in tiles, with the attributes that diffusers' have.

    Of the class it needs ``config``, ``device`` and ``spatial_factor``.
    """

    config: Any
    device: Any
    spatial_factor: int

    tile: bool | Literal["auto"] = "auto"
    """See ``use_tiling``."""
    tile_overlap_factor = OVERLAP_PIXELS / TILE_PIXELS
    """Share of a tile that its neighbours have too, where its size was set."""
    _tile_pixels: int | None = None

    @property
    def use_tiling(self) -> bool:
        """Return whether images larger than a tile are always tiled (``enable_tiling``).

        After ``disable_tiling`` they never are. Without either, ``tile`` is ``auto``: above a megapixel an image is
        tiled, and a batch goes image by image, where ``estimate_memory`` does not fit into what the device has free, or
        memory runs out.
        """
        return self.tile is True

    @use_tiling.setter
    def use_tiling(self, use: bool) -> None:
        self.tile = use

    def _needed_bytes(self, direction: Direction, pixels: int, dtype: torch.dtype) -> int:
        """Return about how many bytes it takes above the weights, without tiles."""
        if direction == "decoding":
            return decoding_bytes(pixels, self.config.decoder_channels, dtype.itemsize, self.device)
        return encoding_bytes(pixels, self.config.block_out_channels, dtype.itemsize, self.device)

    def _fits(self, direction: Direction, pixels: int, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether so many pixels can be worked on at once, there and in that type.

        True where nobody knows. With gradients it is not asked: they take far more, and tiles would not help.
        """
        if self.tile != "auto" or pixels <= LARGE_PIXELS or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return True
        free = free_bytes(device)
        return free is None or self._needed_bytes(direction, pixels, dtype) <= SHARE * free

    def _whole_or_tiles(
        self,
        direction: Direction,
        x: Tensor,
        dtype: torch.dtype,
        grid: tuple[int, int],
        whole: Callable[[], Tensor],
        in_tiles: Callable[[TileGrid], Tensor],
    ) -> Tensor:
        """Return the result of one way or the other. x: what goes in. dtype: of the work. grid: of the latent."""
        never = self.tile is False or (self.tile == "auto" and torch.compiler.is_compiling())
        tiles = None if never else self._tiles(grid)
        if tiles is None:
            return whole()
        if self.tile is True:
            return in_tiles(tiles)
        pixels = len(x) * grid[0] * grid[1] * self.spatial_factor**2
        reason = f"about {self._needed_bytes(direction, pixels, dtype) >> 20:,} MiB would not fit"
        if self._fits(direction, pixels, x.device, dtype):
            try:
                return whole()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or torch.is_grad_enabled():
                    raise
                reason = "memory ran out"
        if x.device.type == "cuda":
            torch.cuda.empty_cache()
        count = len(tiles.rows) * len(tiles.columns)
        logger.warning("%s: %s in %d tiles", reason, direction, count)
        return in_tiles(tiles)

    def _tiles(self, grid: tuple[int, int]) -> TileGrid | None:
        """Return how to cut a latent grid; None where one tile covers it."""
        if self._tile_pixels is None:
            return TileGrid.cover(grid, self.config.sample_size // self.spatial_factor, self.spatial_factor)
        overlap = max(1, round(self._tile_pixels * self.tile_overlap_factor / self.spatial_factor))
        return TileGrid.exact(grid, self._tile_pixels // self.spatial_factor, overlap, self.spatial_factor)

    @property
    def tile_sample_min_size(self) -> int:
        """Side of a tile in pixels, as diffusers' autoencoders have it: 512, or that of the training images if larger.

        Setting it, here or in latent cells as ``tile_latent_min_size``, fixes it: smaller tiles take less memory, and a
        pixel sees no farther than its tile. Raises ValueError below 128.
        """
        return self._tile_pixels or max(TILE_PIXELS, self.config.sample_size)

    @tile_sample_min_size.setter
    def tile_sample_min_size(self, pixels: int) -> None:
        if pixels < LEAST_TILE_PIXELS:
            raise ValueError(f"expected tiles of at least {LEAST_TILE_PIXELS} pixels, found {pixels}")
        self._tile_pixels = pixels

    @property
    def tile_latent_min_size(self) -> int:
        """Side of a tile in latent cells; see ``tile_sample_min_size``."""
        return self.tile_sample_min_size // self.spatial_factor

    @tile_latent_min_size.setter
    def tile_latent_min_size(self, cells: int) -> None:
        self.tile_sample_min_size = cells * self.spatial_factor


def encode_tiles(
    encode: Callable[[Tensor], Tensor], x: Tensor, tiles: TileGrid, factor: int, compiled: bool = False
) -> Tensor:
    """Moments (B, 2c, h, w) of images (B, 3, H, W), image by image, tile by tile.

    compiled: see ``NormStatistics.apply``.
    """
    size = (x.shape[2] // factor, x.shape[3] // factor)
    return torch.cat([_in_tiles(encode, [(image, factor)], tiles, size, 1, compiled) for image in x.split(1)])


def decode_tiles(
    sample: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    noise: Tensor,
    tiles: TileGrid,
    factor: int,
    compiled: bool = False,
) -> Tensor:
    """Images (B, 3, h*f, w*f) of latents (B, c, h, w) and their noise canvas, by ``sample(z, noise)`` on each tile.

    compiled: see ``NormStatistics.apply``.
    """
    size = (z.shape[2], z.shape[3])
    pairs = zip(z.split(1), noise.split(1), strict=True)
    return torch.cat([_in_tiles(sample, [(a, 1), (b, factor)], tiles, size, factor, compiled) for a, b in pairs])


def _in_tiles(
    network: Callable[..., Tensor],
    inputs: list[tuple[Tensor, int]],
    tiles: TileGrid,
    grid: tuple[int, int],
    scale: int,
    compiled: bool,
) -> Tensor:
    """float32 (1, C, h * scale, w * scale) by the network, tile by tile.

    inputs: its arguments, (1, C, h * s, w * s), each with its s, entries a cell.
    """
    factor = max(s for _, s in inputs)
    statistics = NormStatistics()
    for parts in _parts(grid, factor):
        with torch.no_grad(), statistics.measure():
            network(*(torch.cat([_cut(x, *part, s) for part in parts]) for x, s in inputs))
    vertical, horizontal = _weights(tiles.rows, scale), _weights(tiles.columns, scale)
    canvas: Tensor | None = None
    for row, column in _TRACK.get()(list(tiles)):
        # Copies: of views the strides would be compiled in, and be others for the next image.
        cut = [_cut(x, row, column, s).clone(memory_format=torch.contiguous_format) for x, s in inputs]
        with statistics.apply(compiled):
            tile = network(*cut).float()
        if canvas is None:
            canvas = tile.new_zeros((1, tile.shape[1], grid[0] * scale, grid[1] * scale))
        blend = vertical[row][:, None] * horizontal[column]
        _cut(canvas, row, column, scale).addcmul_(tile, blend.to(tile))
    if canvas is None:
        raise ValueError("expected at least one tile")
    return canvas


def _cut(x: Tensor, row: Span, column: Span, scale: int) -> Tensor:
    """Return the part of (1, C, h * scale, w * scale) that the spans name; a view."""
    return column.of(row.of(x, 2, scale), 3, scale)


def _parts(grid: tuple[int, int], factor: int) -> list[list[tuple[Span, Span]]]:
    """Batches of parts of a grid that stand for all of it: squares of ``PART_PIXELS``, spread evenly, neighbours in
    different batches."""
    unit = max(1, TOKEN_PIXELS // factor)
    size = math.ceil(PART_PIXELS / factor / unit) * unit
    counts = [math.ceil(length / size) for length in grid]
    while counts[0] * counts[1] > PARTS * BATCHES:
        counts[counts.index(max(counts))] -= 1
    rows, columns = (_evenly(length, min(size, length), n, unit) for length, n in zip(grid, counts, strict=True))
    count = math.ceil(len(rows) * len(columns) / PARTS)
    places = itertools.product(range(len(rows)), range(len(columns)))
    parts = [(rows[i], columns[j]) for i, j in sorted(places, key=lambda place: sum(place) % count)]
    return [parts[i : i + PARTS] for i in range(0, len(parts), PARTS)]


def _evenly(length: int, size: int, count: int, unit: int) -> list[Span]:
    """``count`` spans of ``size`` cells from one end of an axis to the other, that begin at multiples of ``unit``."""
    last = (length - size) // unit * unit
    return [Span(start, start + size) for start in (last * i // max(1, count - 1) // unit * unit for i in range(count))]


def _spans(length: int, size: int, overlap: int, unit: int) -> tuple[Span, ...]:
    """Spans of ``size`` cells that begin at multiples of ``unit``, evenly, and have about ``overlap`` or more in
    common; the last one ends with the axis, and may be longer by less than ``unit``."""
    if length <= size:
        return (Span(0, length),)
    count = max(2, math.ceil((length - overlap) / (size - overlap)))
    *spans, last = _evenly(length, size, count, unit)
    return (*spans, Span(last.start, length))


def _weights(spans: tuple[Span, ...], scale: int) -> dict[Span, Tensor]:
    """(entries,) float64 for each span of an axis with ``scale`` entries a cell: falling linearly over the overlaps,
    and one in sum at every entry."""
    total = torch.zeros(spans[-1].stop * scale, dtype=torch.float64, device="cpu")
    weights = {}
    for i, span in enumerate(spans):
        at = torch.arange(span.start * scale, span.stop * scale, dtype=torch.float64, device="cpu") + 0.5
        weight = torch.ones_like(at)
        if i > 0:
            weight *= ((at - span.start * scale) / ((spans[i - 1].stop - span.start) * scale)).clamp(max=1.0)
        if i + 1 < len(spans):
            weight *= ((span.stop * scale - at) / ((span.stop - spans[i + 1].start) * scale)).clamp(max=1.0)
        weights[span] = weight
        span.of(total, 0, scale).add_(weight)
    return {span: weight / span.of(total, 0, scale) for span, weight in weights.items()}
