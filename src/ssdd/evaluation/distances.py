"""Distances of two sets of features: Fréchet, kernel (KID), and how well two manifolds cover each other.

All of it is computed in float64, on the features' device (CPU or CUDA), in blocks: the memory that it takes beside the
features does not depend on their number.

Shapes: N, M features of the two sets, D width of a feature.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path, share

_BLOCK = 1024
"""Features of either set that are compared at once: 8 MiB for a matrix of distances."""

_COINCIDE = 1e-12
"""Squared distances closer than this times |x|² + |y|² are equal. Rounding makes about 1e-15 of it, more or less by
the place in a block; two passes of one image through a network in float32 differ by 1e-13 of it."""


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
        _check(features, self.width)
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


@dataclass(frozen=True)
class KernelDistance:
    """Over subsets: mean, standard deviation (torch-fidelity's "std"), and standard error of the mean.

    The error is that of drawing subsets from these very features, not of drawing other images.
    """

    mean: float
    deviation: float
    standard_error: float


def kernel_distance(x: Tensor, y: Tensor, subset_size: int = 1000, subsets: int = 100, seed: int = 0) -> KernelDistance:
    """KID (Binkowski et al. 2018): the mean of ``squared_mmd`` over random subsets, each without repetition.

    Args:
        x, y: features (N, D) and (M, D).
        subset_size: features of each set in a subset; from 2 to the smaller of N and M.
        subsets: how many, at least 2.
        seed: the only source of chance; the same subsets on every device.

    Raises:
        ValueError: one of the above does not hold, or a feature is not finite.
    """
    y = _check_pair(x, y)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"expected subsets of 2 to {min(len(x), len(y))} features, found {subset_size}")
    if subsets < 2:
        raise ValueError(f"expected 2 subsets or more, found {subsets}")
    random = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(subsets):
        first, second = (torch.randperm(len(s), generator=random)[:subset_size].to(s.device) for s in (x, y))
        distances.append(_squared_mmd(x[first], y[second]))
    values = torch.stack(distances)
    deviation = float(values.std(correction=0))
    return KernelDistance(float(values.mean()), deviation, deviation / (subsets - 1) ** 0.5)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD² of whole sets (N, D) and (M, D), with the kernel of KID, k(x, y) = (x'y / D + 1)³.

    mean of k(x, x') over pairs of two features of x + the same of y - 2 mean k(x, y). Below 0 by chance at times.
    Raises ValueError for fewer than two features, two widths, NaN or infinity.
    """
    return float(_squared_mmd(x, _check_pair(x, y)))


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    n, m = len(x), len(y)
    within = _kernel_sum(x, None) / (n * (n - 1)) + _kernel_sum(y, None) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: Tensor, y: Tensor | None) -> Tensor:
    """Sum of the kernel over all pairs of x and y; without y over all pairs of two different features of x."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, columns, a, b in _blocks(x, x if y is None else y):
        kernel = (a @ b.T / x.shape[1] + 1).pow_(3)
        if y is None and rows == columns:
            kernel.fill_diagonal_(0)
        total += kernel.sum()
    return total


@dataclass(frozen=True)
class ManifoldMetrics:
    """How two sets cover each other; 1 for equal sets. All in [0, 1] but density, which is at least 0."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: Tensor, fake: Tensor, neighbours: int = 5) -> ManifoldMetrics:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Around every feature lies the open ball that reaches to its k-th nearest neighbour in its own set. Precision: share
    of fakes in any real ball; recall: of reals in any fake ball; density: real balls around a fake, mean, by k;
    coverage: share of real balls with a fake inside. Balls are open as in the authors' package ``prdc``, but a centre
    always lies in its own, also where k duplicates have shrunk it to a point. Distances that differ by less than
    rounding are equal, so that ties fall the same way whatever the order of features.

    Args:
        real, fake: features (N, D) and (M, D).
        neighbours: k, from 1 to the smaller of N and M, less 1.

    Raises:
        ValueError: one of the above does not hold, or a feature is not finite.
    """
    fake = _check_pair(real, fake)
    if not 1 <= neighbours < min(len(real), len(fake)):
        raise ValueError(f"expected 1 to {min(len(real), len(fake)) - 1} neighbours, found {neighbours}")
    centre = real[:_BLOCK].double().mean(0)  # any point near by will do: far from zero, distances lose digits
    real_radii, fake_radii = _radii(real, centre, neighbours), _radii(fake, centre, neighbours)
    covered, recalled = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    balls = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    for rows, columns, squared, rounding in _squared_distances(real, fake, centre):
        inside = _inside(squared, rounding, real_radii[rows, None])
        balls[columns] += inside.sum(0)
        covered[rows] |= inside.any(1)
        recalled[rows] |= _inside(squared, rounding, fake_radii[columns]).any(1)
    precision, recall, coverage = (float(hit.double().mean()) for hit in (balls > 0, recalled, covered))
    return ManifoldMetrics(precision, recall, float(balls.double().mean()) / neighbours, coverage)


def _inside(squared: Tensor, rounding: Tensor, radii: Tensor) -> Tensor:
    return (squared < radii - rounding) | (squared <= rounding)


def _radii(x: Tensor, centre: Tensor, neighbours: int) -> Tensor:
    """Squared distance from each feature to its k-th nearest other one: (N)."""
    nearest = torch.full((len(x), neighbours), torch.inf, dtype=torch.float64, device=x.device)
    for rows, columns, squared, _ in _squared_distances(x, x, centre):
        if rows == columns:
            squared.fill_diagonal_(torch.inf)
        nearest[rows] = torch.cat([nearest[rows], squared], 1).topk(neighbours, largest=False).values
    return nearest.amax(1)


def _squared_distances(x: Tensor, y: Tensor, centre: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Blocks of |x - y|² with the difference that counts as rounding; their rows and columns."""
    for rows, columns, a, b in _blocks(x, y):
        a, b = a - centre, b - centre
        lengths = a.square().sum(1)[:, None] + b.square().sum(1)
        yield rows, columns, torch.addmm(lengths, a, b.T, alpha=-2).clamp_min_(0), lengths * _COINCIDE


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """All pairs of blocks of two sets in float64, with the slices that they come from."""
    for top in range(0, len(x), _BLOCK):
        a = x[top : top + _BLOCK].double()
        for left in range(0, len(y), _BLOCK):
            yield slice(top, top + _BLOCK), slice(left, left + _BLOCK), a, y[left : left + _BLOCK].double()


def _check(features: Tensor, width: int) -> None:
    if features.ndim != 2 or features.shape[1] != width or not features.is_floating_point():
        raise ValueError(f"expected float features (B, {width}), found {features.dtype} {tuple(features.shape)}")
    if not all(bool(block.isfinite().all()) for block in features.split(_BLOCK)):
        raise ValueError("expected finite features, found NaN or infinity")


def _check_pair(x: Tensor, y: Tensor) -> Tensor:
    """y on the device of x. Raises ValueError."""
    for features in (x, y):
        _check(features, x.shape[-1])
        if len(features) < 2:
            raise ValueError(f"expected two features or more in each set, found {len(x)} and {len(y)}")
    return y.to(x.device)


def _same_kind(a: GaussianStatistics, b: GaussianStatistics) -> str:
    """The extractor of both. Raises ValueError."""
    if a.width != b.width:
        raise ValueError(f"expected features of one width, found {a.width} and {b.width}")
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise ValueError(f"expected features of one extractor, found {a.extractor} and {b.extractor}")
    return a.extractor or b.extractor
