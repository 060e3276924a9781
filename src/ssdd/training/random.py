"""Random draws of a training step: a function of (seed, images seen), equal for any number of processes."""

import numpy as np
import torch
from torch import Tensor


class BatchRandom:
    """Draws for the whole global batch and keeps this process' part, so that how the batch is cut does not matter.

    Args:
        seed: of the run.
        images_seen: clock at the start of the step.
        batch_size: images of the global batch.
        part: this process' images, a slice of the global batch.
        device: where the draws are wanted (the CPU and CUDA streams differ).
    """

    def __init__(self, seed: int, images_seen: int, batch_size: int, part: slice, device: torch.device) -> None:
        state = np.random.SeedSequence([seed, images_seen]).generate_state(1, np.uint64)
        self.generator = torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))
        self.batch_size, self.part, self.device = batch_size, part, device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws, (images of this part, *shape)."""
        draws = torch.randn(self.batch_size, *shape, generator=self.generator, device=self.device)
        return draws[self.part]
