"""The largest rate of products of this machine."""

import torch

from ssdd.runtime.peak import peak_flops


def test_peak_is_of_the_best_size() -> None:
    """A size that is too small for the machine decides."""
    small, both = (peak_flops(torch.device("cpu"), torch.float32, sides) for sides in ((8,), (8, 256)))
    assert 0 < small < both
