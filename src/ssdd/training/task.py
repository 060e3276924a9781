"""What the loop trains: a task. The loop knows neither images nor latents; it asks its task for batches by position.

Shapes: B items of this process in a batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..runtime.processes import Processes
from .config import RunConfig
from .stages.base import Objective, State


class Batch(Protocol):
    """Items on the CPU, in order; a tensor is one."""

    def __len__(self) -> int: ...

    def split(self, size: int) -> Sequence[Any]:
        """Return the same in pieces of that size."""
        ...


class Task:
    """A config with all that it means: data, networks, validation, the result.

    What it makes of a position in its data is a function of (seed, position) alone, so that a run that stopped after
    p images goes on with item p.

    Attributes:
        config: of the run.
        stage: what is trained, and on which loss.
        name: what is trained, for the log.
        batch_name: what a batch is called in the report about an update that was not finite.
        validation_images: images seen between two validations; 0 for none.
    """

    config: RunConfig
    stage: Objective
    batch_name: str
    validation_images: int = 0

    @property
    def name(self) -> str:
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        """Return what it is trained on, by content: see ``run_folder``."""
        raise NotImplementedError

    def prepare(self, run: Path, processes: Processes) -> None:
        """Make ready what depends on the data, with the networks on their device: a call for all processes.

        Raises:
            ValueError, OSError: the data cannot be used.
        """

    def batches(self, seen: int, processes: Processes, position: Any = None) -> Iterator[Batch]:
        """Return this process' parts of the batches from ``seen`` on, without end.

        Args:
            seen: images seen until now.
            processes: that share each batch.
            position: what ``data_position`` gave then.
        """
        raise NotImplementedError

    def data_position(self) -> Any:
        """Return where this process is in data that has no positions, as JSON can hold it; None for other data."""
        return None

    def on_device(self, piece: Any, device: torch.device) -> Any:
        """Return a piece of a batch as ``stage.losses`` takes it."""
        raise NotImplementedError

    def batch_at(self, seen: int) -> dict[str, Tensor]:
        """Return the whole global batch at that position, by name, read once more. Raise ValueError if that fails."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Return numbers of this process for the log, by name: summed over processes there."""
        return {}

    def grid(self, weights: State) -> np.ndarray | None:
        """Return a sample grid of an averaged model, uint8 (H, W, 3), in the main process; None: nothing to show."""
        return None

    def validate(self, weights: State, run: Path, seen: int) -> dict[str, float]:
        """Measure an averaged model, in the main process, and keep it if it is the best until now."""
        return {}

    def export(self, weights: State, run: Path, device: torch.device) -> Path:
        """Write ``model/`` in the run's folder from an averaged model's weights. Return it."""
        raise NotImplementedError
