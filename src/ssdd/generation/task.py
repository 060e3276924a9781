"""The training of a DiT as the loop sees it: latents, flow matching, grids of samples.

Shapes: B latents of this process.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.decoders import LatentDecoder, load_decoder_of
from ..runtime.processes import Processes
from ..tokenization import LatentDataset
from ..training.checkpoint import read_checkpoint
from ..training.config import read_run_config
from ..training.export import write_result
from ..training.loop import train_task
from ..training.run_folder import check_trained_on
from ..training.stages.base import State
from ..training.task import Task
from ..training.validation import grid
from .config import GenerationConfig
from .data import LatentBatch, LatentStream, latent_batches
from .model import TITLES
from .result import Generator, LatentFacts, save_generator
from .sampling import Sampling, generate_images
from .stage import LatentStage

PREVIEW_STEPS = 20
PREVIEW_GUIDANCE = (1.0, 4.0)
"""A row of a sample grid for each."""


def export_generator(checkpoint: Path, folder: Path) -> None:
    """Write the averaged DiT of a checkpoint as a folder that ``load_generator`` reads, as a guide or to be measured.

    The latents must be where they were. Raises ValueError or OSError with one line where the checkpoint is damaged, or
    the latents are others now.
    """
    run = checkpoint.parents[1]
    stages = {GenerationConfig.stage: GenerationConfig}
    task = GenerationTask(read_run_config((run / "config.json").read_text(), stages, "ssdd generate train"))
    check_trained_on(run, task.provenance())
    generator = Generator(task.stage.result(read_checkpoint(checkpoint)[0]["average"]), task.facts)
    write_result(folder, lambda partial: save_generator(generator, partial))


def train_generator(config: GenerationConfig, run: Path, device: torch.device | None = None) -> Path:
    """Train a DiT on tokenized latents and return the folder of the result; see ``train_task``."""
    return train_task(config, GenerationTask, run, device)


class GenerationTask(Task):
    """Latents of a folder, and the DiT that learns them.

    Args:
        config: of the run.
        data: instead of the folder's.

    Raises:
        ValueError, OSError: the latents cannot be had, or do not fit the settings.
    """

    config: GenerationConfig
    stage: LatentStage
    batch_name = "latents"

    def __init__(self, config: GenerationConfig, data: LatentDataset | None = None) -> None:
        self.config = config
        data = LatentDataset(config.latents) if data is None else data
        self.stream = LatentStream(data, config.seed, config.batch_size)
        self.facts = LatentFacts.of(data)
        self.stage = LatentStage(config, data, self.stream.shapes)
        self._decoder: LatentDecoder | None = None

    @property
    def name(self) -> str:
        return f"{TITLES[self.config.network]}-{self.config.size}"

    def provenance(self) -> dict[str, Any]:
        data = self.stream.data
        return {
            "encoder of the latents": data.model.encoder_sha256,
            # By their statistics: photographs of the same names, encoded anew, have another content but no other plan.
            "latents": {"count": len(data), "sha256": data.digest, "statistics": _digest(dict(data.statistics))},
            "classes in order": {"count": len(data.classes), "sha256": _digest(list(data.classes))},
        }

    def batches(self, seen: int, processes: Processes, position: Any = None) -> Iterator[LatentBatch]:
        config = self.config
        return latent_batches(self.stream, seen, config.batch_size, config.workers, processes.rank, processes.count)

    def on_device(self, piece: LatentBatch, device: torch.device) -> LatentBatch:
        return piece.to(device)

    def batch_at(self, seen: int) -> dict[str, Tensor]:
        return dict(vars(self.stream.batch(range(seen, seen + self.config.batch_size))))

    def prepare(self, run: Path, processes: Processes) -> None:
        if processes.main and self.config.decoder is not None and self.config.log.sample_images:
            config, device = self.config, processes.device
            self._decoder = load_decoder_of(self.facts.tokenizer, config.decoder, device, force=config.force)

    def grid(self, weights: State) -> np.ndarray | None:
        """Return rows of samples of evenly spaced classes, the same noise in each, more guidance from row to row."""
        if self._decoder is None or not self.config.log.sample_count:
            return None
        generator = Generator(self.stage.result(weights).to(self._decoder.device), self.facts)
        count, classes = self.config.log.sample_count, len(self.facts.classes)
        labels: list[int | None] = [None] * count
        if classes:
            labels = [int(label) for label in np.linspace(0, classes - 1, count).round()]
        rows = []
        for guidance in PREVIEW_GUIDANCE if classes else PREVIEW_GUIDANCE[:1]:
            sampling = Sampling(steps=PREVIEW_STEPS, guidance=guidance)
            rows.append(np.concatenate(list(generate_images(generator, self._decoder, labels, sampling))))
        return grid(rows)

    def export(self, weights: State, run: Path, device: torch.device) -> Path:
        generator = Generator(self.stage.result(weights), self.facts)
        return write_result(run / "model", lambda folder: save_generator(generator, folder))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
