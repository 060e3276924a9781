"""The exponential moving average of the weights, by ``torch.optim.swa_utils``, buffers included."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .config import AverageConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """Averaged copy of a model, updated once per optimiser step.

    The half-life is in images. It is shorter at first, so that the start is forgotten: after n updates an old
    average keeps at most (1 + n) / (10 + n) of its weight.
    """

    def __init__(self, model: nn.Module, config: AverageConfig, batch_size: int) -> None:
        self.config, self.batch_size = config, batch_size
        self.averaged = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True).requires_grad_(False)
        self._keep = 0.0

    @property
    def module(self) -> nn.Module:
        """The averaged model."""
        return self.averaged.module

    def update(self, model: nn.Module, seen: int) -> None:
        """After the update that ends at ``seen`` images."""
        self._keep = self.keep(seen)
        self.averaged.update_parameters(model)

    def keep(self, seen: int) -> float:
        """Weight of the old average after the update that ends at ``seen`` images."""
        # Counted here and not read from AveragedModel's counter, which would wait for the device.
        updates = (seen - self.config.from_images) / self.batch_size - 1
        if updates < 0:
            return 0.0
        return min(0.5 ** (self.batch_size / self.config.halflife_images), (1 + updates) / (10 + updates))

    @torch.no_grad()
    def _update(self, averages: Tensors, current: Tensors, _: Tensor | int) -> None:
        if averages[0].is_floating_point():  # tensors come grouped by dtype
            torch._foreach_lerp_(averages, current, 1 - self._keep)
        else:
            torch._foreach_copy_(averages, current)
