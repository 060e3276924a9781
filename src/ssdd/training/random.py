"""Random draws of a training step: a function of (seed, position of the image in the run) alone.

So how a batch is cut over processes and microbatches does not matter, and nobody draws for others.
"""

import random

import numpy as np
import torch
from torch import Tensor

from ..nn.noise import image_generators


class BatchRandom:
    """Draws for some images of a run.

    Args:
        seed: of the run.
        first: position of the first image: how many the run has seen before it.
        count: B, number of images.
        device: where the draws are made (the CPU and CUDA streams differ).
    """

    def __init__(self, seed: int, first: int, count: int, device: torch.device) -> None:
        self.device = device
        self.generators = image_generators(seed, range(first, first + count), device)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal draws, (B, *shape)."""
        return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """Return draws from [0, 1), (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=g, device=self.device) for g in self.generators])


def seed_global_generators(seed: int, images_seen: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's own generators for one step.

    Nothing here draws from them, but a user's encoder or loss may: with this, a resumed run repeats that as well.
    """
    state = np.random.SeedSequence([seed, images_seen, rank + 1]).generate_state(3, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))
