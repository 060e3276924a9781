"""Mean and covariance of features, and the Fréchet distance of two sets by them.

All of it is computed in float64, on the features' device (CPU or CUDA).

Shapes: D width of a feature.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path, share
from .distances import check_features

_BLOCK = 1024
"""Features that are added at once: the memory for it does not depend on their number."""


class GaussianStatistics:
    """Mean and covariance of features that come in batches, in float64; batches of any size give the same result.

    Batches and other statistics are merged by the update of Chan et al. (1979), which does not subtract large sums.

    Args:
        width: D.
        device: where the sums lie.
        extractor: says whose features these are (``Extractor.identity``); those of two are never mixed.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu", extractor: str = "") -> None:
        self.extractor = extractor
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (D, D), exactly symmetric. Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, found {self.count}")
        return (self._scatter + self._scatter.T) / (2 * (self.count - 1))

    def update(self, features: Tensor) -> None:
        """Adds features (B, D) of any floating type. Raises ValueError for another shape, NaN or infinity."""
        check_features(features, self.width)
        for block in features.detach().split(_BLOCK):
            x = block.to(self.mean.device, torch.float64)
            mean = x.mean(0)
            x = x - mean
            self._combine(len(x), mean, x.T @ x)

    def merge(self, other: Self) -> None:
        """Adds what another process has counted. Raises ValueError for another width or extractor."""
        self.extractor = _same_kind(self, other)
        self._combine(other.count, other.mean.to(self.mean), other._scatter.to(self.mean))

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self._scatter = torch.addr(self._scatter + scatter, delta, delta, alpha=self.count * count / total)
        self.count = total

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int, extractor: str = "") -> Self:
        """Statistics that others published: mean (D), unbiased covariance (D, D), of ``count`` features."""
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"expected (D) and (D, D), found {tuple(mean.shape)} and {tuple(covariance.shape)}")
        statistics = cls(len(mean), mean.device, extractor)
        statistics._combine(count, mean.double(), covariance.double() * (count - 1))
        return statistics

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes a safetensors file, complete or not at all. Raises OutputExists or OSError."""
        tensors = {"count": torch.tensor(self.count), "mean": self.mean.cpu(), "scatter": self._scatter.cpu()}
        with atomic_path(path, overwrite) as temporary:
            save_file(tensors, temporary, {"extractor": self.extractor})
            share(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Reads what ``save`` wrote, bit by bit. Raises OSError, or ValueError with one line for another file."""
        Path(path).stat()  # an absent file is named by the usual error
        try:
            with safe_open(path, "pt") as file:
                count, mean, scatter = (file.get_tensor(key) for key in ("count", "mean", "scatter"))
                statistics = cls(len(mean), device, (file.metadata() or {}).get("extractor", ""))
        except SafetensorError as error:
            raise ValueError(f"{path} has no statistics of features ({error})".replace("\n", " ")) from error
        statistics.count, statistics.mean, statistics._scatter = int(count), mean.to(device), scatter.to(device)
        return statistics


@dataclass(frozen=True)
class FrechetDistance:
    """The distance, at least 0, and whether both sets have more features than a feature has numbers.

    With fewer the covariances are singular and the distance mostly tells how few there were.
    """

    value: float
    reliable: bool


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> FrechetDistance:
    """Fréchet distance of two Gaussians: |mu_a - mu_b|² + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017).

    The root's trace is the sum of the singular values of R_a' R_b, where A = R_a R_a' and B = R_b R_b': equal to
    that of (A^(1/2) B A^(1/2))^(1/2), always real, also for singular covariances, and without the root of small
    eigenvalues that are nothing but rounding. Raises ValueError for two widths or extractors.
    """
    _same_kind(a, b)
    first, second = a.covariance, b.covariance.to(a.mean)
    root = torch.linalg.svdvals(_root(first).T @ _root(second)).sum()
    shift = (a.mean - b.mean.to(a.mean)).square().sum()
    value = shift + first.trace() + second.trace() - 2 * root
    return FrechetDistance(max(0.0, float(value)), min(a.count, b.count) > a.width)


def _root(covariance: Tensor) -> Tensor:
    """R (D, rank) with R R' = covariance; directions whose variance is within rounding of zero are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()


def _same_kind(a: GaussianStatistics, b: GaussianStatistics) -> str:
    """The extractor of both. Raises ValueError."""
    if a.width != b.width:
        raise ValueError(f"expected features of one width, found {a.width} and {b.width}")
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise ValueError(f"expected features of one extractor, found {a.extractor} and {b.extractor}")
    return a.extractor or b.extractor
