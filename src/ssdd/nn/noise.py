"""The default noise of a decoding: one tensor for each size, the same on every device."""

import functools

import torch
from torch import Tensor

_CACHED_PIXELS = 2048 * 2048
"""Of an image whose noise is kept: two of them are at most 100 MB."""


@torch.library.custom_op("ssdd::fixed_noise", mutates_args=())
def fixed_noise(seed: int, shape: list[int], device: torch.device) -> Tensor:
    """Return standard normal numbers of a shape (3, H, W), float32, drawn on the CPU by the seed.

    An operator of its own, so that ``torch.compile`` and ``torch.export`` take it as it is: random generators cannot be
    made inside a graph.
    """
    if shape[1] * shape[2] > _CACHED_PIXELS:
        return _draw(seed, tuple(shape)).to(device)
    return _cached(seed, tuple(shape), device).clone()  # an operator's result is its caller's own


@fixed_noise.register_fake
def _(seed: int, shape: list[int], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=2)
def _cached(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return _draw(seed, shape).to(device)


def _draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
