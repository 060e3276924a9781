"""Features of a set of pictures as they come in batches, and everything that compares two sets of them.

Shapes: B pictures of H x W pixels, D width of a feature.
"""

import torch
from torch import Tensor

from .distances import kernel_distance, manifold_metrics
from .features import Extractor
from .frechet import GaussianStatistics, frechet_distance

MANIFOLD_LIMIT = 10_000
"""Features of either set that density, coverage, precision, recall and KID are computed on; the first ones."""

KID_SUBSET = 1000
"""Features of a subset of KID, as torch-fidelity's; all of them where there are fewer."""

_NEIGHBOURS = 5


class FeatureSet:
    """Statistics over all features of a set, and the first ``MANIFOLD_LIMIT`` of them as they are."""

    def __init__(self, extractor: Extractor) -> None:
        self.statistics = GaussianStatistics(extractor.width, extractor.device, extractor.identity)
        self._kept: list[Tensor] = []
        self._count = 0

    def add(self, extractor: Extractor, images: Tensor) -> None:
        """images: uint8 (B, H, W, 3). ``extractor``: the one of the beginning."""
        features = extractor(images)
        self.statistics.update(features)
        self._keep(features.cpu())

    def _keep(self, features: Tensor) -> None:
        room = MANIFOLD_LIMIT - self._count
        if room > 0 and len(features):
            self._kept.append(features[:room])
            self._count += len(self._kept[-1])

    def merge(self, other: "FeatureSet") -> None:
        """Adds what the next process has, whose images come after this one's."""
        self.statistics.merge(other.statistics)
        for features in other._kept:
            self._keep(features)

    def on_cpu(self) -> "FeatureSet":
        """Itself, ready to be sent to another process."""
        statistics = GaussianStatistics(self.statistics.width, "cpu", self.statistics.extractor)
        statistics.merge(self.statistics)
        self.statistics = statistics
        return self

    @property
    def kept(self) -> Tensor:
        """float32 (n, D) on the CPU."""
        return torch.cat(self._kept)


def set_distances(real: FeatureSet, fake: FeatureSet) -> dict[str, float | bool]:
    """Frechet and kernel distance, precision, recall, density, coverage; what they are too few for is left out."""
    if min(real.statistics.count, fake.statistics.count) < 2:
        return {}
    frechet = frechet_distance(real.statistics, fake.statistics)
    found: dict[str, float | bool] = {"frechet": frechet.value, "frechet_reliable": frechet.reliable}
    x, y = real.kept, fake.kept
    smaller = min(len(x), len(y))
    kid = kernel_distance(x, y, subset_size=min(KID_SUBSET, smaller))
    found |= {"kid": kid.mean, "kid_standard_error": kid.standard_error}
    if smaller > _NEIGHBOURS:
        manifold = manifold_metrics(x, y, _NEIGHBOURS)
        found |= {name: getattr(manifold, name) for name in ("precision", "recall", "density", "coverage")}
    return found
