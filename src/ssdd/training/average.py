"""The exponential moving average of the weights, buffers included."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import AverageConfig


class Average:
    """Averaged copy of a model, updated once per optimiser step.

    The half-life is in images. It is shorter at first, so that the start is forgotten: after n updates an old
    average keeps at most (1 + n) / (10 + n) of its weight.
    """

    def __init__(self, model: nn.Module, config: AverageConfig, batch_size: int) -> None:
        self.config, self.batch_size = config, batch_size
        self.module = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, seen: int, points: Mapping[Tensor, Tensor] | None = None) -> None:
        """Move the average towards the model, after the update that ends at ``seen`` images.

        Args:
            model: that is trained.
            seen: images seen until now.
            points: what stands for a parameter instead of itself, as of ``evaluation_point``.
        """
        keep, points = self.keep(seen), points or {}
        old = [p.detach() for p in self.module.parameters()]
        new = [points.get(p, p).detach() for p in model.parameters()]
        torch._foreach_lerp_(old, new, 1 - keep)
        for a, b in zip(self.module.buffers(), model.buffers(), strict=True):  # apart: FSDP does not shard them
            if a.is_floating_point():
                a.lerp_(b, 1 - keep)
            else:
                a.copy_(b)

    def keep(self, seen: int) -> float:
        """Return the weight of the old average after the update that ends at ``seen`` images."""
        updates = (seen - self.config.from_images) / self.batch_size - 1
        if updates < 0:
            return 0.0
        return min(0.5 ** (self.batch_size / self.config.halflife_images), (1 + updates) / (10 + updates))
