"""The networks that are traced are those of the model, in PyTorch: every size, factor and layer."""

import pytest
import torch
import torch.nn.functional as F

from ssdd.export.attention import Blocks, block_bias, windowed_attention
from ssdd.export.networks import ExportDecoder, ExportEncoder
from ssdd.nn.fast.attention import BLOCK
from ssdd.nn.ops import windowed_attention as library_attention

from .conftest import random_model


@pytest.mark.parametrize("grid", [(1, 1), (3, 20), (8, 8), (9, 17), (25, 33)])
def test_attention_is_the_librarys(grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, *grid, 12, generator=generator) for _ in range(3))
    table = torch.randn(15, 15, 3, generator=generator)
    blocks = [Blocks.of(grid, around, q.device) for around in (0, 7)]
    found = windowed_attention(q, k, v, block_bias(table), *blocks)
    heads = (x.flatten(1, 2).unflatten(-1, (3, 4)).transpose(1, 2) for x in (q, k, v))
    expected = library_attention(*heads, table, grid).transpose(1, 2).flatten(2).unflatten(1, grid)
    assert (found - expected).abs().max() < 1e-5, "the attention is another"


def test_attention_is_linear_in_the_grid() -> None:
    """Twice the tokens, twice the blocks: no tensor over all pairs of tokens."""
    blocks = [Blocks.of((rows, 16), 7, torch.device("cpu")) for rows in (64, 128)]
    assert [b.outside.numel() for b in blocks] == [8 * 2 * 22**2, 16 * 2 * 22**2], "memory grows faster than the grid"
    assert all(b.rows.shape[1] == BLOCK + 14 for b in blocks), "a block sees other keys than its window's"


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_decoder_is_the_models(factor: int) -> None:
    """In float64, where rounding hides nothing; on grids of less and of more than one block of attention."""
    model = random_model(factor).double()
    network = ExportDecoder(model.decoder, factor)
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 1, 1), (2, 5, 3), (1, 9, 14))
    for batch, h, w in sizes if factor < 16 else sizes[:2]:
        z = torch.randn(batch, 4, h, w, generator=generator, dtype=torch.float64)
        noise = torch.randn(batch, 3, h * factor, w * factor, generator=generator, dtype=torch.float64)
        with torch.inference_mode():
            expected = model.decode(z, noise=noise, num_inference_steps=1).sample
            found = network(z, noise)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-6, f"another image of a {h} x {w} latent"


def test_encoder_is_the_models_and_clamps_the_log_variance() -> None:
    model = random_model()
    assert model.encoder is not None
    with torch.no_grad():
        model.encoder.moments.bias[4:] = torch.tensor([-100.0, 0.0, 1.0, 100.0])
    x = 2 * torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) - 1
    with torch.inference_mode():
        mean, logvar = ExportEncoder(model.encoder)(x)
        expected = model.encode(x).latent_dist
    assert (mean - expected.mean).abs().max() < 1e-5, "the mean is another"
    assert (logvar - expected.logvar).abs().max() < 1e-5, "the log-variance is another"
    assert (logvar.min(), logvar.max()) == (-30, 20), "the log-variance is not clamped"


def test_model_is_left_as_it_was() -> None:
    model = random_model()
    before = [(name, type(module)) for name, module in model.named_modules()]
    network = ExportDecoder(model.decoder, 8)
    assert [(name, type(module)) for name, module in model.named_modules()] == before, "its modules were replaced"
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.decoder.parameters()}, "weights were copied"


def test_nearest_is_pytorchs() -> None:
    from ssdd.export.networks import _nearest

    x = torch.arange(13.0 * 7).reshape(1, 1, 13, 7)
    for size in ((7, 4), (26, 21), (5, 11), (13, 7), (1, 1)):
        assert torch.equal(_nearest(x, size), F.interpolate(x, size)), f"other pixels at {size}"
