"""Tiles: they cover everything, blend to the mean, and one tile is the untiled result."""

import itertools

import pytest
import torch

from ssdd import AutoencoderSSDD
from ssdd.tiling import TileGrid, decode_tiles, encode_tiles


@pytest.fixture(scope="module")
def ae() -> AutoencoderSSDD:
    torch.manual_seed(0)
    return AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32).eval().requires_grad_(False)


@pytest.mark.parametrize("grid", [(65, 10), (64, 64), (130, 257), (97, 96)])
def test_tiles_cover_the_grid(grid: tuple[int, int]) -> None:
    """Cells without a tile, tiles outside the grid, or neighbours that overlap too little."""
    tiles = TileGrid.cover(grid, 32, 8)
    if max(grid) <= 64:
        assert tiles is None
        return
    assert tiles is not None
    assert tiles.size == 64, "a tile is at least 512 pixels"
    for starts, length in zip((tiles.rows, tiles.columns), grid, strict=True):
        assert starts[0] == 0
        assert starts[-1] == max(0, length - tiles.size)
        assert all(0 < b - a <= tiles.size - tiles.overlap for a, b in itertools.pairwise(starts))


def test_one_tile_is_bit_identical(ae: AutoencoderSSDD) -> None:
    x = torch.rand(1, 3, 64, 128) * 2 - 1
    z, y = ae.encode(x).latent_dist.mode(), ae(x).sample
    ae.enable_tiling()
    assert torch.equal(ae.encode(x).latent_dist.mode(), z)
    assert torch.equal(ae.decode(z).sample, y)
    ae.disable_tiling()


def test_a_local_function_is_the_same_in_tiles() -> None:
    """For a function of one cell alone, tiles can make no difference: blending weights don't sum to one otherwise."""
    tiles = TileGrid(8, 2, (0, 6, 9), (0, 5))
    z, noise = torch.randn(2, 3, 17, 13), torch.randn(2, 3, 34, 26)

    def sample(z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3) + 2 * noise

    torch.testing.assert_close(decode_tiles(sample, z, noise, tiles, 2), sample(z, noise))
    x = torch.randn(1, 3, 34, 26)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(encode_tiles(lambda t: torch.nn.functional.avg_pool2d(t, 2), x, tiles, 2), pooled)


def test_large_images_in_tiles_have_their_size(ae: AutoencoderSSDD) -> None:
    ae.enable_tiling()
    y = ae.decode(torch.randn(1, 4, 65, 9)).sample
    ae.disable_tiling()
    assert y.shape == (1, 3, 520, 72)
    assert torch.isfinite(y).all()
