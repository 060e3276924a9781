"""Tiles: they cover everything, blend to the mean, and neither their borders nor their tones are seen."""

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from ssdd import AutoencoderSSDD
from ssdd.autoencoder import tiling
from ssdd.autoencoder.estimate import free_bytes
from ssdd.autoencoder.tiling import Span, TileGrid, decode_tiles, encode_tiles
from ssdd.checkpoints.taef2 import TAEF2Encoder
from ssdd.data.pixels import image_to_tensor
from ssdd.nn.blocks import GroupNorm, GroupNormSilu
from ssdd.nn.whole_image import NormStatistics

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


def test_tiles_with_gradients(ae: AutoencoderSSDD) -> None:
    """Where nobody says ``no_grad`` the weights want some."""
    ae = copy.deepcopy(ae).requires_grad_(True)
    ae.enable_tiling()
    ae.tile_sample_min_size = 128
    z = torch.randn(1, 4, 20, 17, requires_grad=True)
    image = ae.decode(z).sample
    image.square().mean().backward()
    assert z.grad is not None
    assert 0 < float(z.grad.abs().max()) < torch.inf
    with torch.no_grad():
        torch.testing.assert_close(ae.decode(z).sample, image)


def test_latents_of_tiles_have_the_dtype_of_the_model(ae: AutoencoderSSDD) -> None:
    """Pipelines go on with them in the dtype of their own networks."""
    half, x = copy.deepcopy(ae).to(torch.bfloat16), torch.rand(1, 3, 160, 136) * 2 - 1
    half.tile_sample_min_size = 128
    whole = half.encode(x).latent_dist.mode()
    half.enable_tiling()
    tiled = half.encode(x).latent_dist.mode()
    assert whole.dtype == tiled.dtype == torch.bfloat16
    assert not torch.equal(whole, tiled), "there are no tiles"


@torch.no_grad()
def test_tiles_of_the_encoder_in_the_package(picture: Callable[..., np.ndarray]) -> None:
    """Its norms, over the whole image, are shared by the tiles: 22 dB of the latents' variance, and 15 without that."""
    ae = AutoencoderSSDD.from_preset("f8c32", "XXS", has_encoder=False)
    ae.attach_encoder(TAEF2Encoder())
    dark, bright = picture(128, 128, 0) // 4, 255 - picture(128, 128, 1) // 4
    x = image_to_tensor(np.concatenate([dark, bright], axis=1))[None]
    whole = ae.encode(x).latent_dist.mode()
    ae.enable_tiling()
    ae.tile_sample_min_size = 128
    tiled = ae.encode(x).latent_dist.mode()
    assert float(10 * torch.log10(whole.var() / (whole - tiled).square().mean())) > 20


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

        def measure(self, compiled: bool = False) -> torch.no_grad:
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


# ---- tiles where memory asks for them ----------------------------------------------------------------------------


@pytest.fixture
def small(ae: AutoencoderSSDD, monkeypatch: pytest.MonkeyPatch) -> AutoencoderSSDD:
    """Tiles of 128 pixels, and nothing too small to be asked about."""
    monkeypatch.setattr(tiling, "LARGE_PIXELS", 0)
    ae = copy.deepcopy(ae)
    ae.tile_sample_min_size = 128
    return ae


@torch.no_grad()
def test_tiled_where_it_would_not_fit(
    small: AutoencoderSSDD, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A large image takes all memory although tiles would do, or is tiled although there is enough."""
    x = torch.rand(2, 3, 192, 128) * 2 - 1
    needed, results = small.estimate_memory(192, 128), {}
    for tile in (True, False):
        small.tile = tile
        z = small.encode(x).latent_dist.mode()
        results[tile] = (z, small.decode(z).sample)
    small.tile = "auto"
    for free, tile in ((2 * needed, False), (needed // 4, True), (None, False)):  # None: nobody knows
        monkeypatch.setattr(tiling, "free_bytes", lambda device, free=free: free)
        z, image = results[tile]
        torch.testing.assert_close(small.encode(x).latent_dist.mode(), z, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(small.decode(z).sample, image, atol=1e-4, rtol=1e-4)
        assert ("would not fit: decoding in 2 tiles" in caplog.text) == tile
        assert ("would not fit: encoding in 2 tiles" in caplog.text) == tile
        caplog.clear()


def test_tiled_where_nothing_wants_gradients(
    small: AutoencoderSSDD, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An optimised model that was called without ``no_grad`` kept what gradients need, and was never tiled."""
    monkeypatch.setattr(tiling, "free_bytes", lambda device: 1)
    small.optimize(torch.float32, compile=False)
    small.tile = "auto"
    z = torch.randn(1, 4, 24, 16)
    image = small.decode(z).sample
    assert not image.requires_grad
    assert "decoding in 2 tiles" in caplog.text
    small.encode(image)
    assert "encoding in 2 tiles" in caplog.text
    caplog.clear()
    small.decode(z.requires_grad_(True)).sample.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    noise = torch.randn(1, 3, 192, 128, requires_grad=True)
    small.decode(z.detach(), noise=noise).sample.sum().backward()
    assert noise.grad is not None
    assert not caplog.text, "gradients take the whole image"


@torch.no_grad()
def test_tiled_after_memory_ran_out(
    small: AutoencoderSSDD, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An estimate that was too low ends the work, or another error is taken for it."""
    z = torch.randn(1, 4, 40, 16)
    small.enable_tiling()
    expected = small.decode(z).sample
    small.tile = "auto"
    whole, forward = torch.Size((320, 128)), small.decoder.forward
    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def fail(x: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] == whole:
            raise error
        return forward(x, *arguments)

    monkeypatch.setattr(small.decoder, "forward", fail)
    for cause in (error, MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        error = cause
        assert torch.equal(small.decode(z).sample, expected)
        assert "memory ran out: decoding in 3 tiles" in caplog.text
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        small.decode(z)
    small.disable_tiling()
    error = MemoryError()
    with pytest.raises(MemoryError):
        small.decode(z)


@pytest.mark.slow
def test_estimate_is_near_what_is_measured() -> None:
    """Images are tiled, or memory runs out, by an estimate that is off."""
    code = """
import torch
from ssdd import AutoencoderSSDD
from ssdd.runtime.memory import memory_growth
ae = AutoencoderSSDD.from_preset("f8c4", "XXS", encoder_width=32, encoder_groups=8).eval()
with torch.inference_mode():
    for run, channels, factor in ((ae.encode, 3, 1), (ae.decode, 4, 8)):
        run(torch.randn(1, channels, 128 // factor, 128 // factor))
        x = torch.randn(1, channels, 1024 // factor, 1024 // factor)
        estimate = ae._needed_bytes(run.__name__[:-1] + "ing", 1024 * 1024, x.dtype)
        print(memory_growth(lambda: run(x), torch.device("cpu"))[1], estimate)
"""
    if sys.platform != "linux":
        pytest.skip("the peak of a call cannot be measured here")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the model was fitted: threads have buffers of their own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=one_thread)
    for line in done.stdout.splitlines():
        measured, estimate = map(int, line.split())
        assert estimate == pytest.approx(measured, rel=0.25), line


def test_free_memory_is_that_of_the_machine() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@torch.no_grad()
def test_tiles_of_an_optimised_model_run_its_kernels(ae: AutoencoderSSDD) -> None:
    """Where tiles make compiled networks run as they are written, the kernels of the norms did so too, in five times
    the time and memory."""
    from torch._dynamo.utils import counters

    ae = copy.deepcopy(ae).optimize(torch.float32)
    ae.tile_sample_min_size = 128
    ae.enable_tiling()
    torch._dynamo.reset()
    counters.clear()
    ae.decode(torch.randn(1, 4, 24, 16))
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow
@torch.no_grad()
def test_compiled_networks_stay_compiled_in_tiles(ae: AutoencoderSSDD) -> None:
    """The statistics of the image are inputs of one more graph, for all tiles of all images of a shape."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    plain, compiled = copy.deepcopy(ae), copy.deepcopy(ae)
    compiled.encoder.compile(backend=count, dynamic=False)  # type: ignore[union-attr]
    compiled.decoder.compile(backend=count, dynamic=False)
    for model in (plain, compiled):
        model.tile, model.tile_sample_min_size = True, 128
    photograph = torch.rand(1, 3, 136, 208) * 2 - 1
    z = plain.encode(photograph).latent_dist.mode()
    torch.testing.assert_close(compiled.encode(photograph).latent_dist.mode(), z, atol=1e-4, rtol=1e-4)
    encoding = len(graphs)
    first = plain.decode(z, num_inference_steps=1).sample
    torch.testing.assert_close(compiled.decode(z, num_inference_steps=1).sample, first, atol=1e-4, rtol=1e-4)
    decoding = len(graphs) - encoding
    assert encoding > 0, "tiles are encoded by the network as it is written"
    assert decoding > 0, "tiles are decoded by the network as it is written"
    other = plain.decode(2 * z, num_inference_steps=1).sample
    torch.testing.assert_close(compiled.decode(2 * z, num_inference_steps=1).sample, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first, other, atol=1e-2)
    assert len(graphs) == encoding + decoding, "every image is compiled again"
    two = plain.decode(z, num_inference_steps=2).sample  # whose statistics are of each step: as it is written
    torch.testing.assert_close(compiled.decode(z, num_inference_steps=2).sample, two, atol=1e-4, rtol=1e-4)
    whole = (photograph[..., :64, :64], z[..., :8, :8])
    torch.testing.assert_close(compiled.decode(whole[1]).sample, plain.decode(whole[1]).sample, atol=1e-4, rtol=1e-4)
