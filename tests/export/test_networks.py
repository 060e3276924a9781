"""The networks that are traced are those of the model, in PyTorch: every size, factor and operation."""

import inspect

import pytest
import torch
from torch import Tensor

from ssdd.export import ops
from ssdd.export.networks import ExportDecoder, ExportEncoder
from ssdd.nn import fast
from ssdd.nn import ops as definition
from tests.nn.test_attention import LargestTensor, inputs

from .conftest import random_model


def test_operations_are_those_of_the_networks() -> None:
    """One that is missing, or that has other arguments, would be noticed by whoever exports."""
    names = set(fast.__all__) - {"reference", "using"}
    signatures = [{name: inspect.signature(getattr(module, name)) for name in names} for module in (definition, ops)]
    assert signatures[0] == signatures[1]


@pytest.mark.parametrize("grid", [(1, 1), (3, 20), (8, 8), (9, 17), (25, 33)])
def test_attention_is_the_librarys(grid: tuple[int, int]) -> None:
    q, k, v, table = inputs(grid)
    found, expected = (module.windowed_attention(q, k, v, table, grid) for module in (ops, definition))
    assert (found - expected).abs().max() < 1e-5, "the attention is another"


def test_attention_is_linear_in_the_grid() -> None:
    """Twice the tokens, twice the blocks: no tensor over all pairs of tokens."""
    largest = []
    for rows in (64, 128):
        with LargestTensor() as mode:
            ops.windowed_attention(*inputs((rows, 16), batch=1), (rows, 16))
        largest.append(mode.largest)
    assert largest[1] <= 2 * largest[0], "memory grows faster than the grid"


@pytest.mark.parametrize("size", [(7, 4), (26, 21), (5, 11), (13, 7), (26, 14), (1, 1)])
def test_nearest_is_pytorchs(size: tuple[int, int]) -> None:
    x = torch.arange(13.0 * 7).reshape(1, 1, 13, 7)
    assert torch.equal(ops.resize(x, size), definition.resize(x, size)), "other pixels"


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (7, 5), (1, 2)])
def test_resampling_is_the_librarys(size: tuple[int, int]) -> None:
    weight, bias, x = torch.randn(5, 3, 3, 3), torch.randn(5), torch.randn(2, 3, *size)
    half = x[..., : (size[0] + 1) // 2, : (size[1] + 1) // 2]

    def both(module: object) -> tuple[Tensor, Tensor]:
        return module.downsample_conv(x, weight, bias), module.upsample_conv(half, weight, bias, size)

    for found, expected in zip(both(ops), both(definition), strict=True):
        torch.testing.assert_close(found, expected)


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
    with torch.no_grad():
        network(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 16, 16))
    assert [(name, type(module)) for name, module in model.named_modules()] == before, "its modules were replaced"
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.decoder.parameters()}, "weights were copied"
