"""What the loop trains: a task. The loop knows neither images nor latents; it asks its task for batches by position.

Shapes: B items of this process in a batch.
"""

from collections.abc import Iterator, Sequence
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
        """Return the same in pieces of that size."""
        ...


class Task(Protocol):
    """A config with all that it means: data, networks, validation, the result.

    What it makes of a position in its data is a function of (seed, position) alone, so that a run that stopped after
    p images goes on with item p.
    """

    batch_name: str
    """What a batch is called in the report about an update that was not finite."""
    validation_images: int
    """Images seen between two validations; 0 for none."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def stage(self) -> Objective: ...

    @property
    def name(self) -> str:
        """What is trained, for the log."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return what it is trained on, by content: see ``provenance``."""
        ...

    def prepare(self, run: Path, processes: Processes) -> None:
        """Make ready what depends on the data, with the networks on their device: a call for all processes.

        Raises ValueError or OSError.
        """
        ...

    def batches(self, seen: int, processes: Processes, position: Any = None) -> Iterator[Batch]:
        """Return this process' parts of the batches from ``seen`` on, without end.

        ``position``: what ``data_position`` gave then.
        """
        ...

    def data_position(self) -> Any:
        """Return where this process is in data that has no positions, as JSON can hold it; None for other data."""
        ...

    def on_device(self, piece: Any, device: torch.device) -> Any:
        """Return a piece of a batch as ``stage.losses`` takes it."""
        ...

    def batch_at(self, seen: int) -> dict[str, Tensor]:
        """Return the whole global batch at that position, by name, read once more. Raises ValueError if that fails."""
        ...

    def counts(self) -> dict[str, int]:
        """Return numbers of this process for the log, by name: summed over processes there."""
        ...

    def grid(self, weights: State) -> np.ndarray | None:
        """Return a sample grid of an averaged model, uint8 (H, W, 3), in the main process; None: nothing to show."""
        ...

    def validate(self, weights: State, run: Path, seen: int) -> dict[str, float]:
        """Measure an averaged model, in the main process, and keep it if it is the best until now."""
        ...

    def export(self, weights: State, run: Path, device: torch.device) -> Path:
        """Write ``model/`` in the run's folder from an averaged model's weights. Return it."""
        ...
