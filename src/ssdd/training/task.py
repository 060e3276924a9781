"""What the loop trains: a task. The loop knows neither images nor latents; it asks its task for batches by position.

Shapes: B items of this process in a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..processes import Processes
from .config import RunConfig
from .stages.base import Objective, State


class Batch(Protocol):
    """Items on the CPU, in order; a tensor is one."""

    def __len__(self) -> int: ...

    def split(self, size: int) -> Sequence[Any]:
        """The same in pieces of that size."""
        ...


@dataclass(frozen=True)
class Preview:
    """A sample grid, uint8 (H, W, 3), and numbers about it for the log."""

    page: np.ndarray
    scores: dict[str, float]


class Task(Protocol):
    """A config with all that it means: data, networks, previews, the result.

    What it makes of a position in its data is a function of (seed, position) alone, so that a run that stopped after
    p images goes on with item p.
    """

    unit: str
    """What an item is, in the plural, for messages and checkpoints."""
    batch_name: str
    """What a batch is called in the report about an update that was not finite."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def stage(self) -> Objective: ...

    @property
    def name(self) -> str:
        """What is trained, for the log."""
        ...

    @property
    def items(self) -> int:
        """How many there are: the order of all depends on it."""
        ...

    def batches(self, seen: int, processes: Processes) -> Iterator[Batch]:
        """This process' parts of the batches from position ``seen`` on, without end."""
        ...

    def on_device(self, piece: Any, device: torch.device) -> Any:
        """A piece of a batch as ``stage.losses`` takes it."""
        ...

    def batch_at(self, seen: int) -> dict[str, Tensor]:
        """The whole global batch at that position, by name, read once more. Raises ValueError if that fails."""
        ...

    def counts(self) -> dict[str, int]:
        """Numbers of this process for the log, by name: summed over processes there."""
        ...

    def open_preview(self, device: torch.device) -> None:
        """Makes ready for previews, in the main process, before anything is written. Raises ValueError or OSError."""
        ...

    def preview(self, weights: State) -> Preview | None:
        """A sample grid of an averaged model's weights, in the main process; None if there is nothing to show."""
        ...

    def export(self, weights: State, run: Path, device: torch.device) -> Path:
        """Writes ``model/`` in the run's folder from an averaged model's weights. Returns it."""
        ...
