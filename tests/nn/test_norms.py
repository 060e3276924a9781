"""Group norm, modulation and SiLU: plain, fused, and their gradients, against the definition."""

import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdd.nn import fast, ops
from ssdd.nn.blocks import GroupNormSilu, ResNetBlock, UpsampleConv2d
from ssdd.nn.fast import norm_gradients, norm_silu
from ssdd.nn.fast.norms import modulate
from ssdd.nn.whole_image import Moments

EPS = 1e-5
fused_norm_silu = functools.partial(norm_silu, compiled=True)
GRIDS = [(1, 1), (4, 3), (8, 6), (16, 12), (32, 24)]
"""Latent grids against a level of 16 x 12: one value, cells of 4 x 4 and 2 x 2, the level's own, a finer one."""


def inputs(grid: tuple[int, int], batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, 24, 16, 12) with a mean and a deviation that the norm must take away; scale and shift (B, 24, *grid)."""
    tensors = 3 + 2 * torch.randn(batch, 24, 16, 12), torch.randn(batch, 24, *grid), torch.randn(batch, 24, *grid)
    x, scale, shift = (v.to(dtype).contiguous(memory_format=torch.channels_last) for v in tensors)
    return x, scale, shift


def definition(x: Tensor, groups: int, scale: Tensor, shift: Tensor) -> Tensor:
    """In float64, step by step."""
    values = x.double().unflatten(1, (groups, -1))
    mean, variance = values.mean((2, 3, 4), keepdim=True), values.var((2, 3, 4), correction=0, keepdim=True)
    y = ((values - mean) / (variance + EPS).sqrt()).flatten(1, 2)
    scale, shift = (F.interpolate(m.double(), x.shape[-2:]) for m in (scale, shift))
    y = y * scale + shift
    return y * torch.sigmoid(y)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("norm", [ops.norm_silu, norm_silu, fused_norm_silu])
@torch.no_grad()
def test_equals_the_definition(norm, grid: tuple[int, int], batch: int) -> None:
    x, scale, shift = inputs(grid, batch)
    before = x.clone()
    out = norm(x, 8, scale, shift, EPS)
    torch.testing.assert_close(out.double(), definition(x, 8, scale, shift), atol=1e-5, rtol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before), "the input was changed"


@torch.no_grad()
def test_fused_in_half_precision_is_as_near_as_plain() -> None:
    x, scale, shift = inputs((4, 3), dtype=torch.bfloat16)
    exact = definition(x, 8, scale, shift)
    results = [norm(x, 8, scale, shift, EPS).double() for norm in (norm_silu, fused_norm_silu)]
    plain, fused = ((result - exact).abs().mean() for result in results)
    assert fused <= 1.05 * plain


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
def test_given_moments_are_used_by_both(grid: tuple[int, int]) -> None:
    """Tiles take the moments of the whole image."""
    x, scale, shift = inputs(grid)
    moments = Moments.of(3 * x + 1, 8)
    plain, fused = (norm(x, 8, scale, shift, EPS, moments) for norm in (norm_silu, fused_norm_silu))
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, norm_silu(x, 8, scale, shift, EPS), atol=0.1)


def test_fused_is_not_taken_for_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "norm_compiled", None)  # fused would call it
    x, scale, shift = inputs((4, 3))
    out = fused_norm_silu(x.double(), 8, scale.double(), shift.double(), EPS)
    torch.testing.assert_close(out, definition(x, 8, scale, shift))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("norm", [norm_silu, fused_norm_silu])
def test_gradients(norm, grid: tuple[int, int], batch: int) -> None:
    """Of the channels-last paths, whose norms have gradients of their own, against those of the definition."""
    x, scale, shift = (v.requires_grad_() for v in inputs(grid))
    scale, shift = (v[:batch] for v in (scale, shift))  # one for all images, or each its own
    direction = torch.randn(x.shape)
    found = torch.autograd.grad(norm(x, 8, scale, shift, EPS), (x, scale, shift), direction)
    expected = torch.autograd.grad(definition(x, 8, scale, shift), (x, scale, shift), direction.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_gradient_is_that_of_pytorch(dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked through image by image, and all at once."""
    monkeypatch.setattr(norm_gradients, "PIECE", piece)
    x = inputs((1, 1))[0].to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    one, zero = torch.ones(1, 24, 1, 1), torch.zeros(1, 24, 1, 1)
    direction = torch.randn(x.shape, dtype=dtype)
    own = fast.group_norm(x, 8, one.to(dtype), zero.to(dtype), EPS)
    assert "_GroupNorm" in str(own.grad_fn.next_functions)
    plain = F.group_norm(x.contiguous(), 8, eps=EPS)
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)
    (a,), (b,) = (torch.autograd.grad(y, x, direction) for y in (own, plain))
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)  # the sums are float32


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(1, 1), (4, 3), (16, 12)])
def test_gradients_in_half_precision_are_as_near_as_plain(grid: tuple[int, int]) -> None:
    """Those of one function for norm, modulation and SiLU, plain and fused, against those of PyTorch's three."""
    tensors = inputs(grid, dtype=torch.bfloat16)
    direction = torch.randn(tensors[0].shape)
    formats = torch.channels_last, torch.channels_last, torch.contiguous_format
    own, fused, contiguous = ([v.detach().clone(memory_format=f).requires_grad_() for v in tensors] for f in formats)
    exact = torch.autograd.grad(definition(contiguous[0], 8, *contiguous[1:]), contiguous, direction.double())
    errors = []
    for norm, (x, scale, shift) in ((norm_silu, own), (fused_norm_silu, fused), (norm_silu, contiguous)):
        out = norm(x, 8, scale, shift, EPS)
        assert ("_NormSilu" in str(out.grad_fn)) == (x is not contiguous[0])
        found = torch.autograd.grad(out, (x, scale, shift), direction.to(torch.bfloat16))
        errors.append([(a.double() - b.double()).norm() / b.double().norm() for a, b in zip(found, exact, strict=True)])
    for own_, fused_, plain in zip(*errors, strict=True):
        assert max(own_, fused_) <= 1.2 * plain + 1e-3, errors


@torch.no_grad()
def test_many_pixels_far_from_zero() -> None:
    """Sums of a hundred thousand values; PyTorch's own are off by 1e-4 with channels last."""
    x = (5 + torch.randn(1, 8, 320, 320)).contiguous(memory_format=torch.channels_last)
    scale, shift = torch.ones(1, 8, 1, 1), torch.zeros(1, 8, 1, 1)
    for norm in (norm_silu, fused_norm_silu):
        torch.testing.assert_close(
            norm(x, 4, scale, shift, EPS).double(), definition(x, 4, scale, shift), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("grid", GRIDS)
def test_modulation_with_and_without_gradients(grid: tuple[int, int]) -> None:
    x, scale, shift = inputs(grid)
    with_gradients = modulate(x.requires_grad_(), scale, shift)
    with torch.no_grad():
        torch.testing.assert_close(modulate(x, scale, shift), with_gradients)


@torch.no_grad()
def test_a_pixel_unlike_all_others() -> None:
    """Sums of squares about a value far from the mean have few digits of the variance."""
    x = 1e-2 * torch.randn(1, 8, 64, 64)
    x[:, :, 32, 32] = 10
    x = x.contiguous(memory_format=torch.channels_last)
    scale, shift = torch.ones(1, 8, 1, 1), torch.zeros(1, 8, 1, 1)
    for norm in (norm_silu, fused_norm_silu):
        torch.testing.assert_close(
            norm(x, 4, scale, shift, EPS).double(), definition(x, 4, scale, shift), atol=1e-5, rtol=1e-5
        )


def test_one_time_for_all_images() -> None:
    """A norm whose weights the time changes, against times that are given for each image."""
    block = ResNetBlock(16, 24, 8, 12, 4)
    x, context, time = torch.randn(3, 16, 8, 8), torch.randn(3, 8, 4, 4), torch.randn(1, 12)
    torch.nn.init.normal_(block.norm2.weight)
    torch.nn.init.normal_(block.norm2.bias)
    torch.testing.assert_close(block(x, context, time), block(x, context, time.repeat(3, 1)), atol=1e-5, rtol=1e-5)


def test_group_norm_silu_is_both() -> None:
    norm = GroupNormSilu(4, 16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(norm(x), F.silu(F.group_norm(x, 4, norm.weight, norm.bias, norm.eps)))


@pytest.mark.parametrize("cut", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_upsampling_convolution(size: tuple[int, int], cut: tuple[int, int]) -> None:
    """Against nearest x2, cut, convolution: values and gradients, for even and odd sizes."""
    conv = UpsampleConv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    rows, columns = 2 * size[0] - cut[0], 2 * size[1] - cut[1]
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0)[..., :rows, :columns], conv.weight, conv.bias, padding=1)
    own = conv(x, (rows, columns))
    torch.testing.assert_close(own, plain)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, conv.weight)) for y in (own, plain)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_compiler_is_not_imported_with_the_networks() -> None:
    """It takes seconds, and every command and every worker begins with this import."""
    code = "import sys, ssdd.nn.decoder; sys.exit('torch._inductor' in sys.modules or 'torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
