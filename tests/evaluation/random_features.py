"""Features for the tests of distances."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ssdd.evaluation.distances import FeatureSet


def features(count: int, width: int = 24, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated, of unequal variances, far from zero: as a network's after its last ReLU."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(count, width, generator=random) @ mixing + 5 + shift


def extractor_of(width: int, identity: str = "sha256 0, none") -> Any:
    """What a set of features needs to know of its extractor."""
    return SimpleNamespace(width=width, device=torch.device("cpu"), identity=identity)


def feature_set(
    x: Tensor, numbers: Sequence[int] | None = None, batch: int = 16, identity: str = "sha256 0, none"
) -> FeatureSet:
    """A set of given features, by default of crops 0, 1, ..."""
    result, numbers = FeatureSet(extractor_of(x.shape[1], identity)), range(len(x)) if numbers is None else numbers
    for start in range(0, len(x), batch):
        result.add(x[start : start + batch], numbers[start : start + batch])
    return result
