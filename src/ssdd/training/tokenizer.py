"""The training of a tokenizer as the loop sees it: crops, one of the stages, grids of reconstructions.

Shapes: B images of this process, S side of the crops.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..data.loader import BrokenImages, CropStream, crop_batches
from ..data.pixels import levels_to_values
from ..data.sources import open_source
from ..processes import Processes
from .config import TrainConfig
from .export import export
from .preview import preview, preview_images
from .stages import Stage, build_stage
from .stages.base import State
from .task import Preview


class TokenizerTask:
    """Crops of photographs, and the stage that ``config.stage`` names.

    Raises ValueError or OSError if the data or the weights to start from cannot be had.
    """

    unit = "photographs"
    batch_name = "images"

    def __init__(self, config: TrainConfig) -> None:
        data = config.data
        self.config = config
        self.stream = CropStream(open_source(data.paths), data.resolution, data.scale, data.flip, config.seed)
        self.stage: Stage = build_stage(config)
        self.broken = BrokenImages(data.broken_limit)
        self._shown: Tensor | None = None

    @property
    def name(self) -> str:
        return self.config.stage

    @property
    def items(self) -> int:
        return len(self.stream.source)

    def batches(self, seen: int, processes: Processes) -> Iterator[Tensor]:
        """uint8 (B, 3, S, S)."""
        config = self.config
        return crop_batches(
            self.stream, seen, config.batch_size, config.data.workers, processes.rank, processes.count, self.broken
        )

    def on_device(self, piece: Tensor, device: torch.device) -> Tensor:
        """uint8 (B, 3, S, S) -> float32 in [-1, 1], channels-last."""
        images = levels_to_values(piece.to(device, non_blocking=True))
        return images.contiguous(memory_format=torch.channels_last)

    def batch_at(self, seen: int) -> dict[str, Tensor]:
        return {"images": torch.stack([self.stream[p] for p in range(seen, seen + self.config.batch_size)])}

    def counts(self) -> dict[str, int]:
        return {"broken_images": self.broken.count}

    def open_preview(self, device: torch.device) -> None:
        self._shown = preview_images(self.config).to(device)

    def preview(self, weights: State) -> Preview | None:
        if self._shown is None or not len(self._shown):
            return None
        return preview(self.stage, self.stage.result(weights).to(self._shown.device), self._shown)

    def export(self, weights: State, run: Path, device: torch.device) -> Path:
        return export(self.stage, weights, self.stream, self.config, run, device)
