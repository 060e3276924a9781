"""Random draws of a training step: a function of (seed, images seen), equal for any number of processes."""

import random

import numpy as np
import torch
from torch import Tensor


class BatchRandom:
    """Draws for the whole global batch and keeps one part, so that how the batch is cut does not matter.

    Args:
        seed: of the run.
        images_seen: clock at the start of the step.
        batch_size: images of the global batch.
        part: the images of one forward pass of this process, a slice of the global batch.
        device: where the draws are wanted (the CPU and CUDA streams differ).
    """

    def __init__(self, seed: int, images_seen: int, batch_size: int, part: slice, device: torch.device) -> None:
        state = np.random.SeedSequence([seed, images_seen]).generate_state(1, np.uint64)
        self.generator = torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))
        self.batch_size, self.part, self.device = batch_size, part, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws, (images of this part, *shape)."""
        return self._part_of(torch.randn(self.batch_size, *shape, generator=self.generator, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        """Draws from [0, 1), (images of this part, *shape)."""
        return self._part_of(torch.rand(self.batch_size, *shape, generator=self.generator, device=self.device))

    def _part_of(self, draws: Tensor) -> Tensor:
        part = draws[self.part]
        return draws if len(part) == self.batch_size else part.clone()  # a view would keep the whole batch alive


def seed_global_generators(seed: int, images_seen: int, rank: int) -> None:
    """Seeds Python's, NumPy's and torch's own generators for one step.

    Nothing here draws from them, but a user's encoder may: with this, a resumed run repeats that as well.
    """
    state = np.random.SeedSequence([seed, images_seen, rank + 1]).generate_state(3, np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))
