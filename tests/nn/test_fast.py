"""The switch between the definition and its quick equals: the same networks, values and gradients."""

import pytest
import torch
from torch import Tensor

from ssdd.nn import fast, ops
from ssdd.nn.blocks import UpsampleConv2d
from ssdd.nn.decoder import Decoder
from ssdd.nn.encoder import Encoder
from ssdd.nn.fast import norm_compiled, norm_gradients, upsampling
from ssdd.nn.presets import DecoderSize, EncoderSize
from ssdd.nn.whole_image import NormStatistics

SIZE = DecoderSize((16, 24, 32, 32), 2, 4, 8)


def gradients(network: torch.nn.Module, result: Tensor) -> list[Tensor]:
    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad(result, list(network.parameters()), direction, allow_unused=True))


@pytest.mark.parametrize("size", [(208, 200), (72, 56)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_decoder_is_the_same_on_the_definition(size: tuple[int, int], layout: torch.memory_format) -> None:
    """The first size has more tokens than attend densely, the second levels of odd sizes."""
    torch.manual_seed(0)
    decoder = Decoder(SIZE, 4).to(memory_format=layout)
    for parameter in decoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x, z = torch.randn(1, 3, *size).to(memory_format=layout), torch.randn(1, 4, size[0] // 8, size[1] // 8)
    with fast.reference():
        plain = decoder(x, torch.ones(1), z)
        expected = gradients(decoder, plain)
    quick = decoder(x, torch.ones(1), z)
    torch.testing.assert_close(quick, plain, atol=2e-4, rtol=2e-4)
    for a, b in zip(gradients(decoder, quick), expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=2e-3 * max(1.0, float(b.abs().max())), rtol=2e-3)


def test_encoder_is_the_same_on_the_definition() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSize((32, 32, 32), 4, 8)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 40, 56).to(memory_format=torch.channels_last)
    with torch.no_grad():
        quick = encoder(x)
        with fast.reference():
            torch.testing.assert_close(encoder(x), quick, atol=1e-4, rtol=1e-4)


def test_reference_takes_no_quick_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(*_: object) -> Tensor:
        raise AssertionError("a quick equal was taken")

    for module, name in (
        (fast, "blockwise_attention"),
        (upsampling, "upsample_conv"),
        (norm_gradients, "group_norm"),
        (norm_gradients, "norm_silu"),
        (norm_compiled, "norm_silu"),
    ):
        monkeypatch.setattr(module, name, quick)
    decoder = Decoder(SIZE, 4).to(memory_format=torch.channels_last)
    x, z = torch.randn(1, 3, 208, 200).to(memory_format=torch.channels_last), torch.randn(1, 4, 26, 25)
    with fast.reference():
        decoder(x, torch.ones(1), z).sum().backward()
    with pytest.raises(AssertionError):
        decoder(x, torch.ones(1), z)


def test_transforms_of_torch_func_fall_back() -> None:
    """Functions with gradients of their own know nothing of them."""
    x = torch.randn(2, 8, 6, 4).to(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 8, 3, 2), torch.randn(2, 8, 3, 2)

    def loss(x: Tensor) -> Tensor:
        return fast.norm_silu(x, 4, scale, shift, 1e-5).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, atol=1e-4, rtol=1e-4)


def test_twice_differentiated_on_the_definition() -> None:
    x = torch.randn(1, 8, 6, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.randn(1, 8, 1, 1, dtype=torch.float64), torch.randn(1, 8, 1, 1, dtype=torch.float64)
    with fast.reference():
        assert torch.autograd.gradgradcheck(lambda x: fast.norm_silu(x, 4, scale, shift, 1e-5), (x,))


def test_given_moments_have_gradients() -> None:
    """A compiled kernel without them would cut the graph of tiles in silence."""
    x = torch.randn(1, 8, 6, 4).to(memory_format=torch.channels_last).requires_grad_()
    one, zero = torch.ones(1, 8, 1, 1), torch.zeros(1, 8, 1, 1)
    norm = torch.nn.Identity()
    statistics = NormStatistics()
    with statistics.measure():
        from ssdd.nn.whole_image import moments_for

        moments = moments_for(norm, x.detach(), 4)
    assert moments is not None
    (found,) = torch.autograd.grad(fast.norm_silu(x, 4, one, zero, 1e-5, moments, compiled=True).sum(), x)
    (expected,) = torch.autograd.grad(ops.norm_silu(x, 4, one, zero, 1e-5, moments).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [(10, 14), (9, 14)])
def test_upsampling_is_the_same_on_the_definition(size: tuple[int, int]) -> None:
    conv, x = UpsampleConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(conv(x, size), ops.upsample_conv(x, conv.weight, conv.bias, size), atol=1e-5, rtol=1e-5)
