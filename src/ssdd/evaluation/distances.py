"""Features of a set of images, and distances of two sets: Fréchet, KID, CMMD, precision, recall, density, coverage.

The Fréchet distance is between all features. The others compare features one by one, and take a random subset: the
crops whose numbers have the smallest hashes. It is the same for real and reconstructed images, in any order, for any
batch size and number of processes.

Shapes: B features in a batch, N and M features of two sets, D width of a feature.
"""

import copy
import os
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..runtime.files import atomic_path, share
from ..runtime.processes import Processes, gather
from .features import CLIP_FEATURES, Extractor
from .frechet import GaussianStatistics, frechet_distance
from .weights import first_line

SUBSET = 10_000
"""Features of a set that are kept one by one."""

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Random subsets of KID, and features of either set in each: those of torch-fidelity."""

_ENDLESS = 1 << 40
"""Count of a set whose number of features is not known."""

_BLOCK = 1000
"""Features that are compared with a whole set at once: 80 MB for their distances to 10,000."""


class FeatureSet:
    """Statistics of all features of a set of images, and the features of a random subset.

    Attributes:
        statistics: mean and covariance of all features.
        extra: further metadata of a file, for ``save`` and from ``load``.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.statistics = GaussianStatistics(extractor.width, extractor.device, extractor.identity)
        self.extra: dict[str, str] = {}
        self._kept = [(np.empty(0, np.int64), torch.empty(0, extractor.width, device=extractor.device))]
        self._largest = np.iinfo(np.uint64).max  # crops with larger hashes are not in the subset

    def add(self, features: Tensor, numbers: Sequence[int] | np.ndarray) -> None:
        """Add features (B, D) of the crops that have these numbers in the whole set; each crop comes once."""
        self.statistics.update(features)
        numbers = np.asarray(numbers, np.int64)
        chosen = np.flatnonzero(_hash(numbers) <= self._largest)
        self._kept.append((numbers[chosen], _rows(features.detach(), chosen).float()))
        if sum(len(numbers) for numbers, _ in self._kept) >= 2 * SUBSET:  # seldom, because it copies the subset
            self._compact()

    @property
    def subset(self) -> Tensor:
        """Features of the subset in order of the hashes, float32 (n, D): the first m are the subset of size m."""
        return self._compact()[1]

    def _compact(self) -> tuple[np.ndarray, Tensor]:
        """Forget what is not in the subset; return the numbers and features of the rest in order of the hashes."""
        if len(self._kept) > 1:
            numbers = np.concatenate([numbers for numbers, _ in self._kept])
            features = torch.cat([features for _, features in self._kept])
            chosen = np.argsort(_hash(numbers))[:SUBSET]
            self._kept = [(numbers[chosen], _rows(features, chosen))]
            if len(chosen) == SUBSET:
                self._largest = int(_hash(numbers[chosen[-1:]])[0])
        return self._kept[0]

    def reduce(self, processes: Processes) -> "FeatureSet":
        """Return the features of all processes in the main one; all of them must call it."""
        if processes.count == 1:
            return self
        numbers, features = self._compact()
        result = copy.copy(self)
        result._kept = [(n, f.to(features.device)) for n, f in gather((numbers, features.cpu()))]
        result.statistics = self.statistics.reduce()
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, complete or not at all, in place of an earlier one."""
        statistics, (numbers, features) = self.statistics, self._compact()
        tensors = {
            "count": torch.tensor(statistics.count),
            "mean": statistics.mean.cpu(),
            "scatter": statistics.scatter.cpu(),
            "subset": features.cpu(),
            "numbers": torch.from_numpy(numbers),
        }
        with atomic_path(path, overwrite=True) as temporary:
            save_file(tensors, temporary, {**self.extra, "extractor": statistics.extractor})
            share(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str], extractor: Extractor) -> "FeatureSet":
        """Read what ``save`` wrote of an extractor's features."""
        result = cls(extractor)
        statistics, device = result.statistics, extractor.device
        with safe_open(path, "pt") as file:
            result.extra = dict(file.metadata())
            statistics.extractor = result.extra.pop("extractor")
            statistics.count = int(file.get_tensor("count"))
            statistics.mean = file.get_tensor("mean").to(device)
            statistics.scatter = file.get_tensor("scatter").to(device)
            result._kept.append((file.get_tensor("numbers").numpy(), file.get_tensor("subset").to(device)))
        return result


def read_statistics(path: str | os.PathLike[str], extractor: Extractor) -> FeatureSet:
    """Return a set of which others have published mean and covariance alone: no distance but Fréchet's is to it.

    Args:
        path: an ``.npz`` with ``mu`` (D,) and ``sigma`` (D, D), as guided-diffusion and torch-fidelity have it.
        extractor: network that the features are of.

    Raises:
        OSError, ValueError: with one line for another file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if any(np.iscomplexobj(arrays[name]) for name in ("mu", "sigma")):
                raise ValueError("complex numbers")
            mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    except OSError:
        raise
    except Exception as error:  # whatever another file leads to
        raise ValueError(f"{path}: expected an .npz with mu and sigma, found {first_line(error)}") from error
    width = extractor.width
    if mean.shape != (width,) or covariance.shape != (width, width) or not _is_covariance(mean, covariance):
        raise ValueError(
            f"{path}: expected mu ({width},) and sigma ({width}, {width}) of {extractor.name}, finite, sigma a "
            f"covariance, found {tuple(mean.shape)} and {tuple(covariance.shape)}"
        )
    result = FeatureSet(extractor)
    result.extra = {"source": str(path)}
    statistics = result.statistics
    statistics.count = _ENDLESS
    statistics.mean = mean.to(statistics.mean)
    statistics.scatter = covariance.to(statistics.mean) * (_ENDLESS - 1)
    return result


def _is_covariance(mean: Tensor, covariance: Tensor) -> bool:
    """Whether the numbers are finite, and the matrix is symmetric without variances below zero, but for rounding."""
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        return False
    rounding = 1e-3 * float(covariance.abs().max())
    symmetric = float((covariance - covariance.T).abs().max()) <= rounding
    return symmetric and float(torch.linalg.eigvalsh(covariance).min()) >= -rounding


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each number n >= 0: the output n of the generator splitmix64 with seed 0."""
    x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _rows(features: Tensor, rows: np.ndarray) -> Tensor:
    return features[torch.from_numpy(rows).to(features.device)]


def set_distances(real: FeatureSet, fake: FeatureSet, neighbors: int = 5) -> dict[str, float]:
    """Return the distances of two sets of images, without those for which there are too few features.

    Args:
        real, fake: features of one extractor.
        neighbors: k of precision, recall, density and coverage; 3 is usual for generated images.

    Returns:
        ``count``, the features of the smaller set, and ``frechet``. By the features that are kept one by one also
        ``subset``, their number in either set, ``kid``, ``kid_standard_error``, ``kid_subsets``, ``kid_subset_size``,
        ``cmmd`` for features of a CLIP, ``precision``, ``recall``, ``density``, ``coverage`` and ``neighbors``.

    Raises:
        ValueError: the features are of two extractors.
    """
    result: dict[str, float] = {"count": min(real.statistics.count, fake.statistics.count)}
    if result["count"] < 2:
        return result
    result["frechet"] = frechet_distance(real.statistics, fake.statistics)
    x, y = real.subset, fake.subset
    subset = min(len(x), len(y))
    if subset < 2:  # of one set mean and covariance are all that is known
        return result
    x = x[:subset].double()
    y = y[:subset].to(x)
    size = min(KID_SUBSET_SIZE, subset)
    kid = kernel_distances(x, y, KID_SUBSETS, size)
    result |= {"subset": subset, "kid_subsets": KID_SUBSETS, "kid_subset_size": size, "neighbors": neighbors}
    result |= {"kid": float(kid.mean()), "kid_standard_error": float(kid.std()) / KID_SUBSETS**0.5}
    if CLIP_FEATURES in real.statistics.extractor:
        result["cmmd"] = cmmd(x, y)
    return result | manifold_metrics(x, y, neighbors) if subset > neighbors else result


def kernel_distances(x: Tensor, y: Tensor, subsets: int, size: int, seed: int = 0) -> Tensor:
    """Return ``squared_mmd`` of random subsets, float64 (subsets,); their mean is KID (Binkowski et al. 2018).

    Args:
        x, y: float64 features (N, D) and (M, D) on one device.
        subsets: number of pairs of subsets, which are the same on every device.
        size: number of features in each, drawn without repetition.
    """
    random = torch.Generator("cpu").manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        order = torch.randperm(len(features), generator=random, device="cpu")
        return features[order[:size].to(features.device)]

    return torch.stack([squared_mmd(subset(x), subset(y)) for _ in range(subsets)])


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased MMD² of (N, D) and (M, D) with KID's kernel k(x, y) = (x'y / D + 1)³.

    It is the mean of k(x, x') over pairs of two features of x, plus the same of y, minus 2 mean k(x, y); by chance it
    can be below 0.
    """
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return within[0] + within[1] - 2 * xy.mean()


def cmmd(x: Tensor, y: Tensor) -> float:
    """Return CMMD of float64 CLIP embeddings (N, D) and (M, D) (Jayasumana et al. 2024).

    It is 1000 MMD² with the kernel exp(-|x - y|² / (2 * 10²)), biased like the authors': means over all pairs, those of
    a feature with itself included.
    """

    def mean(a: Tensor, b: Tensor) -> float:
        sums = [torch.cdist(rows, b).square().div(-2 * 10**2).exp().sum() for rows in a.split(_BLOCK)]
        return float(torch.stack(sums).sum()) / (len(a) * len(b))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def manifold_metrics(real: Tensor, fake: Tensor, neighbors: int) -> dict[str, float]:
    """Return precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Around every feature lies the open ball that reaches to its k-th nearest neighbor in its own set. Precision is the
    share of fakes in any real ball, recall the share of reals in any fake ball, density the mean number of real balls
    around a fake, by k, and coverage the share of real balls with a fake inside: those of the authors' package
    ``prdc``.

    Args:
        real, fake: float64 features (N, D) and (M, D) on one device.
        neighbors: k, from 1 to the smaller of N and M, less 1.
    """
    real_radii, fake_radii = _radii(real, neighbors), _radii(fake, neighbors)
    balls = torch.zeros(len(fake), device=real.device)
    covered, recalled = [], []
    for rows, radii in zip(real.split(_BLOCK), real_radii.split(_BLOCK), strict=True):
        distances = torch.cdist(rows, fake)  # (block, M)
        inside = distances < radii[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances < fake_radii).any(1))
    shares = {"precision": balls > 0, "recall": torch.cat(recalled), "coverage": torch.cat(covered)}
    return {name: float(hit.double().mean()) for name, hit in shares.items()} | {
        "density": float(balls.double().mean()) / neighbors
    }


def _radii(x: Tensor, neighbors: int) -> Tensor:
    """Return the distance of each feature to its k-th nearest other one, (N,)."""
    # The nearest of all is the feature itself.
    blocks = (torch.cdist(rows, x).topk(neighbors + 1, largest=False).values for rows in x.split(_BLOCK))
    return torch.cat([block[:, -1] for block in blocks])
