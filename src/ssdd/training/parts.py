"""How much each part of a network learns: root mean squares of its gradient and of its last update."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..runtime.text import aligned
from .distribution import local_part, sum_of_parts

DEAD = 1e-5
"""A part whose gradient is below this share of the largest part's hardly learns."""


@dataclass(frozen=True)
class PartSize:
    """How much a part learns.

    Attributes:
        gradient: root mean square of its gradient before clipping.
        update: root mean square of its weights' change over that of its weights.
        share: its share of all weights.
    """

    gradient: float
    update: float
    share: float


def part_name(parameter: str) -> str:
    """Return the part that a parameter belongs to: a level, the middle, an end; ``decoder.up.0`` for instance."""
    words = parameter.split(".")[:-1] or [parameter]
    return ".".join(words[:3] if len(words) > 2 and words[2].isdigit() and not words[1].isdigit() else words[:2])


class PartWatch:
    """Measures one update of a network: ``before_step``, the optimiser's step, ``after_step``, ``read``.

    It keeps a copy of the weights in between; ``read`` waits for the device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, list[nn.Parameter]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                self.parameters.setdefault(part_name(name), []).append(p)
        self._gradients: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._changes: dict[str, Tensor] = {}
        self._before: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Note gradients and weights; gradients are not clipped yet."""
        for part, parameters in self.parameters.items():
            self._gradients[part] = _squares([p.grad for p in parameters if p.grad is not None])
            self._weights[part] = _squares(parameters)
            self._before |= {p: p.detach().clone() for p in parameters}

    @torch.no_grad()
    def after_step(self) -> None:
        """Note what the step has changed."""
        for part, parameters in self.parameters.items():
            self._changes[part] = _squares([p.detach() - self._before[p] for p in parameters])
        self._before.clear()

    def read(self) -> dict[str, PartSize]:
        """Return the sizes by part, in the network's order."""
        counts = {part: sum(p.numel() for p in parameters) for part, parameters in self.parameters.items()}
        total = sum(counts.values())
        sizes = {}
        for part, count in counts.items():
            gradient, weight, change = (float(v[part]) for v in (self._gradients, self._weights, self._changes))
            sizes[part] = PartSize((gradient / count) ** 0.5, (change / max(weight, 1e-30)) ** 0.5, count / total)
        return sizes


def dead_parts(sizes: dict[str, PartSize]) -> list[str]:
    """Return the parts that hardly learn beside the others."""
    largest = max((size.gradient for size in sizes.values()), default=0.0)
    return [part for part, size in sizes.items() if size.gradient < DEAD * largest]


def table(sizes: dict[str, PartSize]) -> str:
    """Return gradient and update by part as lines of text."""
    rows = [(part, f"{s.share:.1%}", f"{s.gradient:.2e}", f"{s.update:.2e}") for part, s in sizes.items()]
    return "\n".join(aligned([("part", "weights", "gradient (rms)", "update / weight"), *rows]))


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares over all tensors, whole ones."""
    if not tensors:
        return torch.zeros(())
    sums = torch.stack([local_part(t).detach().float().square().sum() for t in tensors])
    return sum_of_parts(sums.sum(), tensors[0])
