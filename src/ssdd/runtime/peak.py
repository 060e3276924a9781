"""Seconds of a call, and what a machine can do at most: its largest rate of products."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDES = {"cuda": (4096, 8192, 16384), "cpu": (1024, 2048, 4096)}
_LEAST_CALLS = 3
T = TypeVar("T")


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what a call returns, and its seconds until the device has finished."""
    finish(device)
    begin = time.perf_counter()
    result = work()
    finish(device)
    return result, time.perf_counter() - begin


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, dtype: torch.dtype, budget: float = 3.0) -> float:
    """Floating point operations a second of square matrix products, the best of several sizes and calls.

    On a CPU of a 3x3 convolution of the same work too: it is of another library, which may be the quicker one.

    budget: seconds for all sizes; the first one is always measured.
    """
    best, begin = 0.0, time.perf_counter()
    for side in _SIDES.get(device.type, _SIDES["cpu"]):
        products = [_matrix_product(side, device, dtype)]
        if device.type == "cpu":
            products.append(_convolution(side, dtype))
        spent = 0.0
        for product, flops in products:
            timed(product, device)  # warms up
            elapsed = min(timed(product, device)[1] for _ in range(_LEAST_CALLS))
            best, spent = max(best, flops / elapsed), spent + (_LEAST_CALLS + 1) * elapsed
        if time.perf_counter() - begin + 8 * spent > budget:  # the next one has eight times the work
            break
    return best


def _matrix_product(side: int, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    """Return a product, and its floating point operations."""
    a = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out), 2 * side**3


def _convolution(side: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    """Return the same of 256 channels on a square of about as many pixels as make the work of the matrix product."""
    channels, pixels = 256, max(1, round((side**3 / (9 * 256**2)) ** 0.5))
    x, weight = (torch.randn(shape).to(dtype) for shape in ((1, channels, pixels, pixels), (channels, channels, 3, 3)))
    x, weight = (v.contiguous(memory_format=torch.channels_last) for v in (x, weight))
    return lambda: F.conv2d(x, weight, padding=1), 2 * 9 * channels**2 * pixels**2
