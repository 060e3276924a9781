"""Noise that is the same on every device: for each image its own, and the default of a decoding for each size."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_CACHED_PIXELS = 2048 * 2048
"""Of an image whose noise is kept: two of them are at most 100 MB."""


def image_generators(seed: int, numbers: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return a generator for each image number: its draws are a function of (seed, number), neither negative.

    The CPU and CUDA streams differ.
    """
    states = [np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] for number in numbers]
    return [torch.Generator(device).manual_seed(int(state >> np.uint64(1))) for state in states]


def fixed_noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return standard normal numbers of a shape (3, H, W), float32, drawn on the CPU by the seed.

    They are for reading: the next call returns the same tensor.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():  # tensors may be fake in here
        return _fixed_noise(seed, list(shape), device)
    return _kept(seed, shape, device)


@torch.library.custom_op("ssdd::fixed_noise", mutates_args=())
def _fixed_noise(seed: int, shape: list[int], device: torch.device) -> Tensor:
    """Return the same as an operator, whose result is its caller's own.

    ``torch.compile`` and ``torch.export`` take it as it is: random generators cannot be made inside a graph.
    """
    return _kept(seed, tuple(shape), device).clone()


@_fixed_noise.register_fake
def _(seed: int, shape: list[int], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def _kept(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return (_drawn if shape[1] * shape[2] > _CACHED_PIXELS else _cached)(seed, shape, device)


@torch.inference_mode(False)  # the next call may want gradients
def _drawn(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)


_cached = functools.lru_cache(maxsize=2)(_drawn)
