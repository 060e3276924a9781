"""Mean and standard deviation of raw latents: what a model's config tells a generative model about them.

Shapes: B batch, c latent channels, h x w latent grid, N = count = B * h * w over all batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

_CONSTANT = 1e-12
"""A deviation of at most this times the mean is rounding of float64, of something that never changes."""


class LatentStatistics:
    """Streaming statistics of raw latents, per channel and over all channels, in float64.

    Batches, of any size and in any order, and other statistics are merged by the update of Chan et al. (1979), which
    does not subtract large sums: a mean far from zero costs no digits.

    Attributes:
        count: N, positions seen of every channel.
        mean: (c,), on the CPU like all the others.
        minimum, maximum: (c,).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = self.minimum = self.maximum = torch.zeros(0, dtype=torch.float64, device="cpu")

    @property
    def channels(self) -> int:
        """c; 0 before the first batch."""
        return len(self.mean)

    @property
    def std(self) -> Tensor:
        """(c,): the root of the mean squared deviation, over N and not N - 1."""
        return (self._squares / self.count).sqrt()

    @property
    def global_mean(self) -> float:
        """Over all channels."""
        return float(self.mean.mean())

    @property
    def global_std(self) -> float:
        """Over all channels: of the values in them and of their means."""
        between = (self.mean - self.mean.mean()).square()
        return float((self._squares / self.count + between).mean().sqrt())

    def update(self, z: Tensor, names: Sequence[object] = ()) -> None:
        """Add raw latents (B, c, h, w) of any floating type, on any device.

        ``names``: of the B images, for the error. Raises ValueError for another shape, or NaN or infinity in it.
        """
        if z.ndim != 4 or 0 in z.shape or not z.is_floating_point() or self.channels not in (0, z.shape[1]):
            channels = self.channels or "c"
            raise ValueError(f"expected latents (B, {channels}, h, w) of floats, found {z.dtype} {tuple(z.shape)}")
        z = z.detach()
        finite = z.flatten(1).isfinite().all(1).tolist()
        if not all(finite):
            first = finite.index(False)
            name = names[first] if names else f"image {first} of the batch"
            raise ValueError(f"{name}: expected a finite latent, found NaN or infinity; try another dtype")
        if z.device.type == "mps":  # it has no float64
            z = z.cpu()
        values = z.double().transpose(0, 1).flatten(1)  # (c, B * h * w)
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        self._combine(values.shape[1], mean.cpu(), squares.cpu(), values.amin(1).cpu(), values.amax(1).cpu())

    def merge(self, other: Self) -> None:
        """Add what another process has seen. Raises ValueError for another number of channels."""
        if self.count and other.count and self.channels != other.channels:
            raise ValueError(f"expected statistics of {self.channels} channels, found {other.channels}")
        self._combine(other.count, other.mean, other._squares, other.minimum, other.maximum)

    def state(self) -> dict[str, Any]:
        """Everything in it, as JSON can hold it without losing a digit. ``from_state`` is the way back."""
        found = {"mean": self.mean, "squares": self._squares, "minimum": self.minimum, "maximum": self.maximum}
        return {"count": self.count, **{name: values.tolist() for name, values in found.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return what ``state`` gave. Raises ValueError for anything else."""
        lists = [state.get(name) for name in ("mean", "squares", "minimum", "maximum")]
        numbers = all(isinstance(v, list) and all(type(x) in (int, float) for x in v) for v in lists)
        count = state.get("count")
        if type(count) is not int or count < 0 or not numbers or len({len(v) for v in lists if v is not None}) != 1:
            raise ValueError("expected statistics of latents: a count and a list of numbers for each moment")
        found = cls()
        found.count = count
        mean, squares, minimum, maximum = (torch.tensor(v, dtype=torch.float64, device="cpu") for v in lists)
        found.mean, found._squares, found.minimum, found.maximum = mean, squares, minimum, maximum
        finite = all(bool(v.isfinite().all()) for v in (mean, squares, minimum, maximum))
        if not finite or bool((squares < 0).any()) or bool(count) != bool(len(mean)):
            raise ValueError("expected finite statistics of latents, found others")
        return found

    def _combine(self, count: int, mean: Tensor, squares: Tensor, minimum: Tensor, maximum: Tensor) -> None:
        if count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self._squares, self.minimum, self.maximum = count, mean, squares, minimum, maximum
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.minimum, self.maximum = self.minimum.minimum(minimum), self.maximum.maximum(maximum)
        self.count = total

    def config(self) -> dict[str, Any]:
        """Config entries of a model, by the names and the convention of diffusers.

        ``normalised = (raw - shift_factor) * scaling_factor``, or per channel
        ``normalised = (raw - latents_mean) / latents_std``. What never changes gets the deviation 1, so that it is 0
        when normalised, and not NaN. Raises ValueError before the first batch.
        """
        if not self.count:
            raise ValueError("expected statistics of latents, found none: no batch was added")
        mean, std = self.mean, self.std
        shift, deviation = self.global_mean, self.global_std
        return {
            "scaling_factor": 1 / (deviation if deviation > _CONSTANT * abs(shift) else 1.0),
            "shift_factor": shift,
            "latents_mean": tuple(mean.tolist()),
            "latents_std": tuple(torch.where(std > _CONSTANT * mean.abs(), std, 1.0).tolist()),
        }
