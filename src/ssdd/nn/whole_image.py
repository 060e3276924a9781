"""Group norms whose statistics are those of a whole image, though the network sees it tile by tile.

Every group norm asks here, by itself, for the moments to use; outside of ``measure`` and ``apply`` there are none, and
it takes those of its input.

Shapes: B parts of one image, C channels, G groups, H x W pixels of a level.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Moments:
    """Mean and population variance of each group, (G,), over ``count`` values."""

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor, groups: int) -> "Moments":
        """Return the moments of all of x (B, C, H, W); in float32, or float64 where x is."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        # Group by group, for a copy of all in float32 would be most of the memory of a tile.
        found = [torch.var_mean(group.to(dtype).reshape(1, -1), 1, correction=0) for group in x.chunk(groups, 1)]
        variance, mean = (torch.cat(values) for values in zip(*found, strict=True))
        return cls(x.numel() // groups, mean, variance)

    @classmethod
    def average(cls, batches: Sequence["Moments"]) -> "Moments":
        """Return the moments of all values of several batches."""
        count = sum(moments.count for moments in batches)
        shares = [moments.count / count for moments in batches]
        mean = torch.stack([share * moments.mean for share, moments in zip(shares, batches, strict=True)]).sum(0)
        spread = [
            share * (moments.variance + (moments.mean - mean).square())
            for share, moments in zip(shares, batches, strict=True)
        ]
        return cls(count, mean, torch.stack(spread).sum(0))

    def per_channel(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel, (C,)."""
        repeat = channels // len(self.mean)
        return self.mean.repeat_interleave(repeat), self.variance.repeat_interleave(repeat)

    def normalize(self, x: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return the norm of x (B, C, H, W) by these moments; rounded once, also in half precision."""
        mean, variance = self.per_channel(x.shape[1])
        weight, bias = (p if p is None else p.to(mean.dtype) for p in (weight, bias))
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)


_Source = Callable[[nn.Module, Tensor, int], Moments]
_SOURCE: ContextVar[_Source | None] = ContextVar("moments", default=None)


def moments_for(norm: nn.Module, x: Tensor, groups: int) -> Moments | None:
    """Return the moments that a group norm is to use for x (B, C, H, W); None for those of x, image by image."""
    if (given := getattr(norm, "image_moments", None)) is not None:
        return given
    if torch.compiler.is_compiling():  # it cannot see a context variable
        return None
    source = _SOURCE.get()
    return None if source is None else source(norm, x, groups)


class NormStatistics:
    """Statistics of every group norm of a network over an image: measured on some parts of it, applied to all.

    Parts from all over the image run as one batch whose norms have common statistics, so that what each norm passes
    on, and later norms measure, is about what it is in the whole image. Several such batches are averaged. A network
    that runs several steps has statistics of each step.
    """

    def __init__(self) -> None:
        self._batches: list[dict[nn.Module, list[Moments]]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        """While a batch of parts runs, normalise it as one image, and keep the statistics."""
        measured: defaultdict[nn.Module, list[Moments]] = defaultdict(list)

        def measure(norm: nn.Module, x: Tensor, groups: int) -> Moments:
            measured[norm].append(Moments.of(x, groups))
            return measured[norm][-1]

        with _moments_from(measure):
            yield
        self._batches.append(measured)

    @cached_property
    def _averages(self) -> dict[nn.Module, list[Moments]]:
        """The moments of each norm at each step."""
        first = self._batches[0]
        return {
            norm: [Moments.average(step) for step in zip(*(batch[norm] for batch in self._batches), strict=True)]
            for norm in first
        }

    @contextmanager
    def apply(self, compiled: bool = False) -> Iterator[None]:
        """While a tile runs, let its norms use the measured statistics.

        Args:
            compiled: the network was compiled, and keeps to it where it runs a single step: the statistics are then
                attributes of the norms, inputs of the compiled graph. Other threads must not run it meanwhile.
        """
        if compiled and all(len(steps) == 1 for steps in self._averages.values()):
            with self._as_attributes():
                yield
            return
        steps: Counter[nn.Module] = Counter()

        def apply(norm: nn.Module, x: Tensor, groups: int) -> Moments:
            steps[norm] += 1
            return self._averages[norm][steps[norm] - 1]

        with _moments_from(apply):
            yield

    @contextmanager
    def _as_attributes(self) -> Iterator[None]:
        for norm, (moments,) in self._averages.items():
            object.__setattr__(norm, "image_moments", moments)
        try:
            yield
        finally:
            for norm in self._averages:
                object.__delattr__(norm, "image_moments")


@contextmanager
def _moments_from(source: _Source) -> Iterator[None]:
    """Inside, norms take their moments from ``source``, and compiled networks run as they are written."""
    token = _SOURCE.set(source)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _SOURCE.reset(token)
