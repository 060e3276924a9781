"""The exponential moving average of the weights, by ``torch.optim.swa_utils``, buffers included."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .config import AverageConfig


class _Averaged(AveragedModel):
    """Takes the weight of the old average from the host.

    ``AveragedModel`` hands its counter over on the model's device, a copy that the host waits for in every update.
    """

    keep = 0.0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """average = keep * average + (1 - keep) * model; whole numbers are copied."""
        old, new = ([p.detach() for p in module.parameters()] for module in (self.module, model))
        torch._foreach_lerp_(old, new, 1 - self.keep)
        for a, b in zip(self.module.buffers(), model.buffers(), strict=True):  # apart: FSDP does not shard them
            if a.is_floating_point():
                a.lerp_(b, 1 - self.keep)
            else:
                a.copy_(b)
        self.n_averaged += 1


class Average:
    """Averaged copy of a model, updated once per optimiser step.

    The half-life is in images. It is shorter at first, so that the start is forgotten: after n updates an old
    average keeps at most (1 + n) / (10 + n) of its weight.
    """

    def __init__(self, model: nn.Module, config: AverageConfig, batch_size: int) -> None:
        self.config, self.batch_size = config, batch_size
        self.averaged = _Averaged(model, use_buffers=True).requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """The averaged model."""
        return self.averaged.module

    def update(self, model: nn.Module, seen: int) -> None:
        """After the update that ends at ``seen`` images."""
        self.averaged.keep = self.keep(seen)
        self.averaged.update_parameters(model)

    def keep(self, seen: int) -> float:
        """Weight of the old average after the update that ends at ``seen`` images."""
        updates = (seen - self.config.from_images) / self.batch_size - 1
        if updates < 0:
            return 0.0
        return min(0.5 ** (self.batch_size / self.config.halflife_images), (1 + updates) / (10 + updates))
