"""Tiles: they cover everything, blend to the mean, and neither their borders nor their tones are seen."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from ssdd import AutoencoderSSDD, tiling
from ssdd.data.pixels import image_to_tensor
from ssdd.nn.blocks import GroupNorm, GroupNormSilu
from ssdd.nn.whole_image import NormStatistics
from ssdd.tiling import Span, TileGrid, decode_tiles, encode_tiles

TWO = TileGrid((Span(0, 8), Span(6, 14)), (Span(0, 13),))


@pytest.fixture(scope="module")
def ae() -> AutoencoderSSDD:
    return AutoencoderSSDD.from_pretrained("ssdd-f8c4-demo").eval().requires_grad_(False)


@pytest.mark.parametrize("grid", [(65, 10), (64, 64), (130, 257), (97, 96), (1000, 511)])
@pytest.mark.parametrize("factor", [4, 8, 16, 32])
def test_tiles_cover_the_grid(grid: tuple[int, int], factor: int) -> None:
    """Cells without a tile, tiles outside the grid, or neighbours that overlap too little."""
    tiles = TileGrid.cover(grid, 1, factor)
    size = 512 // factor
    if max(grid) <= size:
        assert tiles is None
        return
    assert tiles is not None
    unit = max(1, 8 // factor)
    for spans, length in zip((tiles.rows, tiles.columns), grid, strict=True):
        assert (spans[0].start, spans[-1].stop) == (0, length)
        assert all(span.stop - span.start < min(size, length) + unit for span in spans), "more memory than one tile's"
        assert all(span.start % unit == 0 for span in spans), "the decoder's tokens would lie elsewhere"
        for a, b in itertools.pairwise(spans):
            assert a.stop - b.start >= 64 // factor, "neighbours hardly overlap"
    batches = tiling._parts(grid, factor)
    assert all(1 <= len(batch) <= tiling.PARTS for batch in batches), "more memory than planned"
    parts = [part for batch in batches for part in batch]
    assert len({(row.stop - row.start, column.stop - column.start) for row, column in parts}) == 1, "no batch"
    for spans, length in zip(zip(*parts, strict=True), grid, strict=True):
        assert min(s.start for s in spans) == 0
        assert length - unit < max(s.stop for s in spans) <= length


def test_weights_sum_to_one() -> None:
    """Brighter or darker stripes where tiles overlap, also where three of them do."""
    for starts in ((0, 5, 9), (0, 3, 6), (0, 6)):
        spans = tuple(Span(start, start + 8) for start in starts)
        for scale in (1, 4):
            total = torch.zeros((starts[-1] + 8) * scale, dtype=torch.float64)
            for span, weight in tiling._weights(spans, scale).items():
                assert weight.min() > 0
                span.of(total, 0, scale).add_(weight)
            torch.testing.assert_close(total, torch.ones_like(total))


def test_one_tile_is_bit_identical(ae: AutoencoderSSDD) -> None:
    x = torch.rand(1, 3, 64, 128) * 2 - 1
    z, y = ae.encode(x).latent_dist.mode(), ae(x).sample
    ae.enable_tiling()
    assert torch.equal(ae.encode(x).latent_dist.mode(), z)
    assert torch.equal(ae.decode(z).sample, y)
    ae.disable_tiling()


def test_a_local_function_is_the_same_in_tiles() -> None:
    """For a function of one cell alone, tiles can make no difference, whatever their order."""
    z, noise = torch.randn(2, 3, 14, 13), torch.randn(2, 3, 28, 26)

    def sample(z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3) + 2 * noise

    torch.testing.assert_close(decode_tiles(sample, z, noise, TWO, 2), sample(z, noise))
    x = torch.randn(2, 3, 28, 26)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(encode_tiles(lambda t: torch.nn.functional.avg_pool2d(t, 2), x, TWO, 2), pooled)


def test_tiles_can_be_watched() -> None:
    """Minutes of silence over a large image."""
    seen: list[int] = []

    def track(tiles: Sequence[object]) -> Iterator[object]:
        for i, tile in enumerate(tiles, 1):
            yield tile
            seen.append(i)

    with tiling.tracked(track):
        encode_tiles(lambda t: t[:, :, ::2, ::2], torch.randn(1, 3, 28, 26), TWO, 2)
    encode_tiles(lambda t: t[:, :, ::2, ::2], torch.randn(1, 3, 28, 26), TWO, 2)
    assert seen == [1, 2], "not every tile, or after its time"


def test_order_of_tiles_does_not_matter(ae: AutoencoderSSDD) -> None:
    z, noise = torch.randn(1, 4, 14, 13), torch.randn(1, 3, 112, 104)

    def sample(z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise + ae.decoder(noise, torch.ones(1), z)

    class Backwards(TileGrid):
        def __iter__(self) -> Iterator[tuple[Span, Span]]:
            return iter(list(super().__iter__())[::-1])

    a, b = (decode_tiles(sample, z, noise, kind(TWO.rows, TWO.columns), 8) for kind in (TileGrid, Backwards))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


class Norms(nn.Module):
    """A network without a neighbourhood, but with group norms after one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 1), GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 8, 1), GroupNormSilu(2, 8), nn.Conv2d(8, 4, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@torch.no_grad()
def test_norms_are_those_of_the_whole_image() -> None:
    """Each tile would have a tone of its own."""
    torch.manual_seed(0)
    net = Norms()
    for norm in (m for m in net.modules() if isinstance(m, nn.GroupNorm) and m.affine):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(1, 3, 8, 16)
    x[..., 8:] = 3 * x[..., 8:] + 5
    whole, halves = net(x), x.split(8, dim=3)
    assert float((net(halves[0]) - whole[..., :8]).abs().max()) > 0.3, "the halves are alike: nothing is tested"
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        own = copy.deepcopy(net).to(dtype)
        statistics = NormStatistics()
        with statistics.measure():
            own(torch.cat(halves).to(dtype))
        tiles = []
        for half in halves:
            with statistics.apply():
                tiles.append(own(half.to(dtype)).float())
        torch.testing.assert_close(torch.cat(tiles, 3), whole, atol=tolerance, rtol=tolerance)
    assert torch.equal(net(x), whole), "the network is as it was"


def strip(ae: AutoencoderSSDD, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A wide image decoded untiled and in tiles."""
    z = ae.encode(x).latent_dist.mode()
    whole = ae.decode(z).sample
    ae.enable_tiling()
    try:
        return whole, ae.decode(z).sample
    finally:
        ae.disable_tiling()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def test_tiles_have_one_tone(
    ae: AutoencoderSSDD, picture: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dark half and a bright half: with norms of its own each tile is drawn to the middle."""
    dark, bright = picture(64, 512, 0) // 4, 255 - picture(64, 512, 1) // 4
    x = image_to_tensor(np.concatenate([dark, bright], axis=1))[None]
    whole, tiled = strip(ae, x)
    assert psnr(whole, tiled) > 50

    class Own:
        """Statistics of nobody but the tile."""

        def measure(self) -> torch.no_grad:
            return torch.no_grad()

        apply = measure

    monkeypatch.setattr(tiling, "NormStatistics", Own)
    assert psnr(*strip(ae, x)) < psnr(whole, tiled) - 10, "the statistics do nothing"


@pytest.mark.parametrize("kind", ["flat", "gradient", "photograph"])
def test_seams_are_not_seen(ae: AutoencoderSSDD, kind: str, picture: Callable[..., np.ndarray]) -> None:
    """Steps between columns at the tiles' borders are those of elsewhere, and those of the untiled image."""
    ramp = np.linspace(40, 200, 1408).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    image = {"flat": np.full((64, 1408, 3), 120, np.uint8), "gradient": ramp, "photograph": picture(64, 1408)}[kind]
    whole, tiled = strip(ae, image_to_tensor(image)[None])
    tiles = TileGrid.cover((8, 176), 1, 8)
    assert tiles is not None
    borders = sorted({8 * edge for span in tiles.columns for edge in (span.start, span.stop)} - {0, 1408})
    assert len(borders) == 4
    steps = [image.diff(dim=3).abs().mean((0, 1, 2)) for image in (tiled, whole)]  # step i lies between i and i + 1
    at = torch.tensor([edge - 1 + k for edge in borders for k in (-1, 0, 1)])
    assert float((steps[0][at] / steps[1][at]).mean()) == pytest.approx(1, abs=0.05), "a seam"


def test_large_images_in_tiles_have_their_size(ae: AutoencoderSSDD) -> None:
    """Two images of a batch are decoded as each alone, in several steps too."""
    z = torch.randn(2, 4, 65, 3)
    ae.enable_tiling()
    both, second = ae.decode(z, num_inference_steps=2).sample, ae.decode(z[1:], num_inference_steps=2).sample
    ae.disable_tiling()
    assert both.shape == (2, 3, 520, 24)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], second)
