"""Seconds of a call, and what a machine can do at most: its largest rate of matrix products."""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048, 4096)}
_LEAST_CALLS = 3


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device has finished."""
    finish(device)
    begin = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - begin


def finish(device: torch.device) -> None:
    """Waits until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(
    device: torch.device, dtype: torch.dtype, sides: Sequence[int] | None = None, budget: float = 3.0
) -> float:
    """Floating point operations a second of square matrix products, the best of several sizes and calls.

    sides: of the matrices; by default what suits the kind of device. budget: seconds for all of them; the first size is
    always measured.
    """
    best, begin = 0.0, time.perf_counter()
    for side in sides or _SIDES.get(device.type, _SIDES["cpu"]):
        ways = _matrix_products(side, device, dtype)
        for work in ways:
            seconds(work, device)  # warms up
        elapsed = min(seconds(work, device) for work in ways for _ in range(_LEAST_CALLS))
        best = max(best, 2 * side**3 / elapsed)
        # The next one has eight times the work.
        if time.perf_counter() - begin + 8 * len(ways) * (_LEAST_CALLS + 1) * elapsed > budget:
            break
    return best


def _matrix_products(side: int, device: torch.device, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """Ways to multiply two square matrices. On a CPU also as a 1x1 convolution, which is of another library."""
    a = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(a)
    ways: list[Callable[[], Tensor]] = [lambda: torch.mm(a, a, out=product)]
    if device.type == "cpu":
        pixels, weight = a.view(1, 1, side, side).permute(0, 3, 1, 2), a.view(side, side, 1, 1)
        ways.append(lambda: F.conv2d(pixels, weight))
    return ways
