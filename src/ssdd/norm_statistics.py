"""Group norms whose statistics are those of a whole image, though the network sees it tile by tile.

Applied from outside: inside ``measure`` and ``apply`` every call of ``F.group_norm`` is answered here, and is known by
its place in the sequence of calls, which must be the same for every tile. Networks run eagerly there.

Shapes: B parts of one image, C channels, G groups, H x W pixels of a level.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Answer = Callable[..., Tensor]


@dataclass(frozen=True)
class Moments:
    """Mean and population variance of each group, (G,), over ``count`` values."""

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor, groups: int) -> "Moments":
        """Over all of x (B, C, H, W); in float32, or float64 where x is."""
        values = x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1)  # (G, B * C / G * H * W)
        values = values if values.dtype == torch.float64 else values.float()
        variance, mean = torch.var_mean(values, 1, correction=0)
        return cls(values.shape[1], mean, variance)

    @classmethod
    def average(cls, batches: Sequence["Moments"]) -> "Moments":
        """Of all values of several batches."""
        count = sum(moments.count for moments in batches)
        shares = [moments.count / count for moments in batches]
        mean = torch.stack([share * moments.mean for share, moments in zip(shares, batches, strict=True)]).sum(0)
        spread = [
            share * (moments.variance + (moments.mean - mean).square())
            for share, moments in zip(shares, batches, strict=True)
        ]
        return cls(count, mean, torch.stack(spread).sum(0))


class NormStatistics:
    """Statistics of every group norm of a network over an image: measured on some parts of it, applied to all.

    Parts from all over the image run as one batch whose norms have common statistics, so that what each norm passes
    on, and later norms measure, is about what it is in the whole image. Several such batches are averaged.
    """

    def __init__(self) -> None:
        self._batches: list[list[Moments]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        """While a batch of parts runs: normalises it as one image, and keeps the statistics."""
        moments: list[Moments] = []

        def answer(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
            moments.append(Moments.of(x, groups))
            return _normalize(x, moments[-1], weight, bias, eps)

        with _eager(), _GroupNorms(answer):
            yield
        self._batches.append(moments)

    @cached_property
    def _averages(self) -> list[Moments]:
        """Of each norm, in the order of its calls."""
        return [Moments.average(found) for found in zip(*self._batches, strict=True)]

    @contextmanager
    def apply(self) -> Iterator[None]:
        """While a tile runs: its norms use the measured statistics."""
        moments = iter(self._averages)

        def answer(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
            return _normalize(x, next(moments), weight, bias, eps)

        with _eager(), _GroupNorms(answer):
            yield


class _GroupNorms(TorchFunctionMode):
    """Hands the calls of ``F.group_norm`` to ``answer``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.group_norm:
            return func(*args, **(kwargs or {}))
        return self._answer(*_arguments(*args, **(kwargs or {})))


def _arguments(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, int, Tensor | None, Tensor | None, float]:
    """Those of ``F.group_norm``, in order."""
    return input, num_groups, weight, bias, eps


def _normalize(x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x (B, C, H, W) by given moments of its groups; rounded once, also in half precision."""
    repeat = x.shape[1] // len(moments.mean)
    mean, variance = (m.repeat_interleave(repeat) for m in (moments.mean, moments.variance))
    weight, bias = (p if p is None else p.to(mean.dtype) for p in (weight, bias))
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled networks run as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield
