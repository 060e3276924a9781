"""Mean and covariance of features, and the Fréchet distance of two sets of features by them.

Everything is computed in float64 on the features' device.

Shapes: B features in a batch, D width of a feature.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor


class GaussianStatistics:
    """Mean and covariance of features that come in batches; batches of any size give the same result.

    Batches are merged by the update of Chan et al. (1979), which does not subtract large sums from one another.

    Args:
        width: D.
        device: where the sums lie.
        extractor: ``Extractor.identity`` of the features; those of two extractors are never mixed.

    Attributes:
        count: number of features.
        mean: float64 (D,).
        scatter: float64 (D, D), the sum over features x of (x - mean)(x - mean)'.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu", extractor: str = "") -> None:
        self.extractor = extractor
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (D, D), exactly symmetric. Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, found {self.count}")
        return (self.scatter + self.scatter.T) / (2 * (self.count - 1))

    def update(self, features: Tensor) -> None:
        """Add features (B, D) of any floating type. Raises ValueError for NaN or infinity."""
        if not bool(features.isfinite().all()):
            raise ValueError("expected finite features, found NaN or infinity")
        if not len(features):
            return
        x = features.detach().to(self.mean.device, torch.float64)
        mean = x.mean(0)
        total = self.count + len(x)
        delta = mean - self.mean
        rows = torch.cat([x - mean, delta[None] * (self.count * len(x) / total) ** 0.5])
        self.scatter.addmm_(rows.T, rows)
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    def reduce(self) -> "GaussianStatistics":
        """Return the statistics of all processes' features together, in every process; all must call it."""
        result = GaussianStatistics(len(self.mean), self.mean.device, self.extractor)
        mine = torch.cat([self.mean, self.mean.new_tensor([self.count])])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        means, counts = torch.stack(parts).split([len(self.mean), 1], dim=1)  # (P, D), (P, 1) for P processes
        result.count = int(counts.sum())
        if result.count > 0:
            result.mean = (means * counts).sum(0) / result.count
        delta = self.mean - result.mean
        result.scatter = torch.addr(self.scatter, delta, delta, alpha=self.count)
        dist.all_reduce(result.scatter)
        return result


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Return the Fréchet distance |mu_a - mu_b|² + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Heusel et al. 2017).

    The trace of the root is the sum of the singular values of R_a' R_b, where A = R_a R_a' and B = R_b R_b'. That
    equals the trace of (A^(1/2) B A^(1/2))^(1/2), is real for singular covariances too, and takes no root of small
    eigenvalues that are nothing but rounding.

    Raises:
        ValueError: the features are of two extractors, or fewer than two.
    """
    if a.extractor != b.extractor:
        raise ValueError(f"expected features of one extractor, found {a.extractor} and {b.extractor}")
    first, second = a.covariance, b.covariance.to(a.mean.device)
    root = torch.linalg.svdvals(_root(first).T @ _root(second)).sum()
    shift = (a.mean - b.mean.to(a.mean.device)).square().sum()
    distance = float(shift + first.trace() + second.trace() - 2 * root)
    if not math.isfinite(distance):
        raise ValueError(f"expected finite features for a Fréchet distance, found a distance of {distance}")
    return max(0.0, distance)


def _root(covariance: Tensor) -> Tensor:
    """Return R (D, rank) with R R' = covariance, without directions whose variance is zero up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()
