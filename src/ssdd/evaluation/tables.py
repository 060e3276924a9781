"""The table of every single crop's metrics, and the means and intervals that come out of it.

Shapes: n crops, M metrics, R resamples of the bootstrap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .image_metrics import psnr
from .protocols import CropKey

AMOUNTS = {"pooled_psnr": "pixels", "high_frequency_ratio": "high_frequency_energy"}
"""Metrics in whose mean a crop counts by an amount of its own: so the ratio is that of all crops' energies, and the
rounding of smooth crops, which have hardly any, does not decide it."""


@dataclass(frozen=True)
class Estimate:
    """Mean over ``count`` crops, its 95 % interval, and how many infinite values are left out of both."""

    mean: float
    low: float
    high: float
    count: int
    infinite: int


class ImageMetricTable:
    """Metrics by crop, in the set's order whatever the order of arrival.

    A crop with NaN in any metric is ``invalid``: named here, and left out of every number.
    """

    def __init__(self) -> None:
        self._rows: dict[CropKey, dict[str, float]] = {}

    def add(self, keys: Sequence[CropKey], metrics: Mapping[str, np.ndarray]) -> None:
        """(B,) by metric, as by ``BatchMetrics``, and more of your own. Raises ValueError for a crop that is there.

        ``mse`` and ``pixels`` must be among them; any other that a batch has not is undefined for its crops.
        """
        for key, *row in zip(keys, *(column.tolist() for column in metrics.values()), strict=True):
            self._put(key, dict(zip(metrics, row, strict=True)))

    def merge(self, other: "ImageMetricTable") -> None:
        """Take in another process' crops. Raises ValueError for one that is there already."""
        for key, row in other._rows.items():
            self._put(key, row)

    def _put(self, key: CropKey, row: dict[str, float]) -> None:
        if key in self._rows:
            raise ValueError(f"expected every crop once, found {key} again")
        self._rows[key] = row

    @property
    def keys(self) -> list[CropKey]:
        """The valid crops, in order."""
        return sorted(key for key, row in self._rows.items() if not any(map(math.isnan, row.values())))

    @property
    def invalid(self) -> list[CropKey]:
        """The crops whose reconstruction, or a metric of it, is not a number; in order."""
        return sorted(self._rows.keys() - set(self.keys))

    @property
    def names(self) -> list[str]:
        """The metrics, and ``pixels``."""
        return list(dict.fromkeys(name for row in self._rows.values() for name in row))

    def column(self, name: str) -> np.ndarray:
        """(n,) float64 for ``keys``; NaN where the metric is undefined."""
        return np.array([self._rows[key].get(name, math.nan) for key in self.keys])

    @property
    def pooled_psnr(self) -> float:
        """PSNR in dB of the MSE over all pixels of all crops; NaN without any."""
        mse, pixels = self.column("mse"), self.column("pixels")
        return float(psnr((mse * pixels).sum() / pixels.sum())) if len(mse) else math.nan

    def summary(self, seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
        """Estimates by metric, and of ``pooled_psnr``; NaN for a metric without a finite value.

        The mean is over the crops where a metric is defined and finite (the PSNR of equal images is not). Intervals
        are percentiles of the bootstrap over images: crops of one image are not independent, so they are drawn
        together.
        """
        names, keys = self._averaged(), self.keys
        values = self._matrix([*names, "mse"], keys)
        weights = self._weights([*names, "pooled_psnr"], keys) * np.isfinite(values)
        *estimates, pooled = _estimates(values, weights, keys, seed, resamples)
        mean, low, high = psnr(np.array([pooled.mean, pooled.high, pooled.low])).tolist()
        return dict(zip(names, estimates, strict=True)) | {"pooled_psnr": Estimate(mean, low, high, pooled.count, 0)}

    def minus(self, other: "ImageMetricTable", seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
        """Mean differences to another table, crop by crop, by metric: over the crops where both are finite.

        The images' own differences cancel, so that these intervals are much shorter than those of two summaries.
        """
        both = set(other.keys)
        keys = [key for key in self.keys if key in both]
        names = [name for name in self._averaged() if name in other.names]
        with np.errstate(invalid="ignore"):
            values = self._matrix(names, keys) - other._matrix(names, keys)
        estimates = _estimates(values, self._weights(names, keys) * np.isfinite(values), keys, seed, resamples)
        return dict(zip(names, estimates, strict=True))

    def _averaged(self) -> list[str]:
        """The metrics without the amounts that crops are weighted by."""
        return [name for name in self.names if name not in AMOUNTS.values()]

    def _weights(self, names: list[str], keys: list[CropKey]) -> np.ndarray:
        """(n, M): how much each crop counts in the mean of each metric."""
        weights = np.ones((len(keys), len(names)))
        for i, name in enumerate(names):
            if AMOUNTS.get(name) in self.names:
                weights[:, i] = self._matrix([AMOUNTS[name]], keys)[:, 0]
        return weights

    def _matrix(self, names: list[str], keys: list[CropKey]) -> np.ndarray:
        rows = [[self._rows[key].get(name, math.nan) for name in names] for key in keys]
        return np.array(rows).reshape(-1, len(names))

    def worst(self, name: str, count: int = 5) -> list[tuple[CropKey, float]]:
        """The crops farthest from a perfect reconstruction by the metric, the worst first."""
        values = self.column(name)
        order = [i for i in np.argsort(-_badness(name, values), kind="stable") if not math.isnan(values[i])]
        keys = self.keys
        return [(keys[i], float(values[i])) for i in order[:count]]

    def best(self, name: str, count: int = 5) -> list[tuple[CropKey, float]]:
        """The crops closest to a perfect reconstruction by the metric, the best first."""
        return self.worst(name, len(self._rows))[::-1][:count]


def _badness(name: str, values: np.ndarray) -> np.ndarray:
    if name.startswith(("psnr", "ssim")):
        return -values
    return np.abs(values - 1.0 if name == "high_frequency_ratio" else values)


def _estimates(
    values: np.ndarray, weights: np.ndarray, keys: list[CropKey], seed: int, resamples: int
) -> list[Estimate]:
    """Of each column of values (n, M), weighted by (n, M), the crops of an image drawn together."""
    counts, infinite = (weights > 0).sum(0), np.isinf(values).sum(0)
    sums = np.where(weights > 0, values, 0.0) * weights
    _, images = np.unique([key.image for key in keys], return_inverse=True)
    drawn = bootstrap_means(sums, weights, images, seed, resamples)
    with np.errstate(invalid="ignore"):
        means = sums.sum(0) / weights.sum(0)
    found = zip(means, *_interval(drawn), counts, infinite, strict=True)
    return [Estimate(float(m), float(a), float(b), int(n), int(i)) for m, a, b, n, i in found]


def bootstrap_means(sums: np.ndarray, weights: np.ndarray, groups: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of resamples that draw whole groups: (R, M), NaN where all that was drawn weighs nothing.

    sums, weights: (n, M) float64; groups: (n,) int from 0. A mean is the sum of ``sums`` over that of ``weights``.
    """
    members = 1 + int(groups.max(initial=-1))
    grouped = np.zeros((members, 2 * sums.shape[1]))
    np.add.at(grouped, groups, np.concatenate([sums, weights], axis=1))
    random = np.random.default_rng(seed)
    totals = np.zeros((resamples, grouped.shape[1]))
    for i in range(resamples if members else 0):
        totals[i] = np.bincount(random.integers(members, size=members), minlength=members) @ grouped
    with np.errstate(invalid="ignore"):
        return totals[:, : sums.shape[1]] / totals[:, sums.shape[1] :]


def _interval(drawn: np.ndarray) -> np.ndarray:
    """Percentiles 2.5 and 97.5 of each column of (R, M), of what is not NaN: (2, M)."""
    columns = (c[~np.isnan(c)] for c in drawn.T)
    return np.array([np.percentile(c, (2.5, 97.5)) if len(c) else (math.nan, math.nan) for c in columns]).T
