"""Features for the tests of distances."""

import torch
from torch import Tensor


def features(count: int, width: int = 24, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated, of unequal variances, far from zero: as a network's after its last ReLU."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return torch.randn(count, width, generator=random) @ mixing + 5 + shift
