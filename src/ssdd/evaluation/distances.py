"""Distances of two sets of features, pair by pair: kernel (KID), and how well two manifolds cover each other.

All of it is computed in float64, on the features' device (CPU or CUDA), in blocks: the memory that it takes beside the
features does not depend on their number.

Shapes: N, M features of the two sets, D width of a feature.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1024
"""Features of either set that are compared at once: 8 MiB for a matrix of distances."""

_COINCIDE = 1e-12
"""Squared distances closer than this times |x|² + |y|² are equal. Rounding makes about 1e-15 of it, more or less by
the place in a block; two passes of one image through a network in float32 differ by 1e-13 of it."""


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


def check_features(features: Tensor, width: int) -> None:
    """Raises ValueError unless they are (B, D) of any floating type, all finite."""
    if features.ndim != 2 or features.shape[1] != width or not features.is_floating_point():
        raise ValueError(f"expected float features (B, {width}), found {features.dtype} {tuple(features.shape)}")
    if not all(bool(block.isfinite().all()) for block in features.split(_BLOCK)):
        raise ValueError("expected finite features, found NaN or infinity")


def _check_pair(x: Tensor, y: Tensor) -> Tensor:
    """y on the device of x. Raises ValueError."""
    for features in (x, y):
        check_features(features, x.shape[-1])
        if len(features) < 2:
            raise ValueError(f"expected two features or more in each set, found {len(x)} and {len(y)}")
    return y.to(x.device)
