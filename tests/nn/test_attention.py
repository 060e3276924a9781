"""Windowed attention: exact on every grid, two implementations that agree, linear memory.

Shapes: B batch, h heads, R x C grid, N = R*C tokens, d head width.
"""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssdd.nn import ops
from ssdd.nn.fast import windowed_attention
from ssdd.nn.fast.attention import blockwise_attention

GRIDS = [(1, 1), (1, 40), (3, 5), (8, 8), (9, 23), (15, 15), (16, 16), (17, 40), (31, 7), (33, 33)]


def inputs(grid: tuple[int, int], batch: int = 2, heads: int = 3, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(grid[0] * 1000 + grid[1])
    shape = (batch, heads, grid[0] * grid[1], width)
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    return [*tensors, torch.randn(15, 15, heads, generator=generator)]


def by_definition(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Query by query, key by key, in float64."""
    rows, columns = grid
    out = torch.zeros_like(v, dtype=torch.float64)
    for query in range(rows * columns):
        keys, biases = [], []
        for key in range(rows * columns):
            dy, dx = query // columns - key // columns, query % columns - key % columns
            if abs(dy) <= 7 and abs(dx) <= 7:
                keys.append(key)
                biases.append(table[dy + 7, dx + 7])
        scores = torch.einsum("bhd,bhkd->bhk", q[:, :, query].double(), k[:, :, keys].double())
        scores = scores * q.shape[-1] ** -0.5 + torch.stack(biases).double().T
        out[:, :, query] = torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), v[:, :, keys].double())
    return out


@pytest.mark.parametrize("implementation", [ops.windowed_attention, blockwise_attention])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (9, 20), (18, 9)])
def test_agrees_with_the_definition(grid: tuple[int, int], implementation: Any) -> None:
    """A wrong window, a flipped offset, or a border that leaks."""
    q, k, v, table = inputs(grid)
    out = implementation(q, k, v, table, grid)
    torch.testing.assert_close(out.double(), by_definition(q, k, v, table, grid), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_implementations_agree_in_value_and_gradient(grid: tuple[int, int]) -> None:
    """The fast implementation trains or decodes something else than the reference."""
    weights = torch.randn(inputs(grid)[2].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for implementation in (ops.windowed_attention, blockwise_attention):
        leaves = [t.requires_grad_() for t in inputs(grid)]
        out = implementation(*leaves, grid)  # type: ignore[arg-type]
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for name, a, b in zip(("value", "q", "k", "v", "table"), *results, strict=True):
        # the table's gradient is a sum over all tokens: relative to its size
        tolerance = 1e-5 * max(1.0, b.abs().max().item())
        torch.testing.assert_close(b, a, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("implementation", [ops.windowed_attention, blockwise_attention])
def test_a_changed_table_changes_the_output(implementation: Any) -> None:
    """A bias that was read once and kept: training it in eager mode would have no effect."""
    grid = (10, 10)
    q, k, v, table = inputs(grid)
    before = implementation(q, k, v, table, grid)
    table[3, 11] += 1.0  # in place, as an optimiser does
    after = implementation(q, k, v, table, grid)
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    """Masks overflow, or the softmax runs in the half type."""
    grid = (20, 30)
    q, k, v, table = inputs(grid)
    exact = ops.windowed_attention(q, k, v, table, grid)
    half = blockwise_attention(q.to(dtype), k.to(dtype), v.to(dtype), table.to(dtype), grid)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.05


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation returns, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("train", [False, True])
def test_memory_grows_linearly(train: bool) -> None:
    """Something of size N x N, or a bias repeated for each batch item, is back."""

    def largest(side: int, batch: int) -> int:
        leaves = [t.requires_grad_(train) for t in inputs((side, side), batch, heads=2, width=40)]
        with LargestTensor() as mode, torch.set_grad_enabled(train):
            out = windowed_attention(*leaves, (side, side))  # type: ignore[arg-type]
            if train:
                torch.autograd.grad(out.sum(), leaves)
        return mode.largest

    small, large, batched = largest(32, 1), largest(64, 1), largest(64, 2)
    assert large < 4.5 * small, "four times the tokens need more than four times the memory"
    assert batched < 2.2 * large, "memory grows faster than the batch"
    assert large < 4 * (64 * 64) ** 2, "a tensor of size N x N exists"
    if not train:
        scores = 4 * 32 * 2 * 64 * 484  # float32 of 32 blocks, of the heads, of the queries and the keys of a block
        assert large == scores, "at inference scores, keys or values of all 64 blocks are there at once"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("grid", [(9, 12), (24, 25)])
def test_eager_equals_compiled(grid: tuple[int, int]) -> None:
    """torch.compile sees another function than eager mode does."""
    q, k, v, table = inputs(grid)
    compiled = torch.compile(windowed_attention, dynamic=False)
    for shift in (0.0, 0.5):  # a changed table, too
        out = compiled(q, k, v, table + shift * torch.arange(15.0)[:, None, None], grid)
        eager = windowed_attention(q, k, v, table + shift * torch.arange(15.0)[:, None, None], grid)
        torch.testing.assert_close(out, eager, atol=1e-5, rtol=0)


def test_wrong_shapes_are_refused() -> None:
    q, k, v, table = inputs((4, 4))
    with pytest.raises(ValueError, match="expected 4 x 5 = 20 tokens, found 16"):
        windowed_attention(q, k, v, table, (4, 5))
    with pytest.raises(ValueError, match="expected a bias table"):
        windowed_attention(q, k, v, table[:14], (4, 4))
