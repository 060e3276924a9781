"""What a run leaves: the trained model's folder, and a report where it could not go on."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..data.loader import CropStream, crop_batches
from ..data.pixels import levels_to_values
from ..files import share
from ..statistics import LatentStatistics
from .config import TrainConfig
from .stages.base import Stage, State
from .task import Task

logger = logging.getLogger(__name__)

STATISTICS_IMAGES = 256
"""Crops over which the latent's mean and standard deviation are taken at the end."""

_BATCH = 16


@torch.no_grad()
def export(
    stage: Stage, weights: State, stream: CropStream, config: TrainConfig, run: Path, device: torch.device
) -> Path:
    """Writes ``model/`` in the run's folder from an averaged ``stage.model``'s weights. Returns it.

    The latents' statistics come from the encoder's source, or from the crops that would have come next.
    """
    result = stage.result(weights).to(device)
    statistics: dict[str, Any] = dict(stage.statistics)
    if not statistics:
        measured = LatentStatistics()
        batches = crop_batches(stream, config.total_images, _BATCH, config.data.workers)
        for _ in tqdm(range(max(1, STATISTICS_IMAGES // _BATCH)), desc="latent statistics", leave=False):
            measured.update(stage.latents(result, levels_to_values(next(batches).to(device))))
        statistics = measured.config()
    return write_model(run, lambda folder: stage.export(result.to("cpu"), folder, statistics))


def write_model(run: Path, write: Callable[[Path], None]) -> Path:
    """Has ``model/`` in the run's folder written, whole or not at all. Returns it."""
    folder, partial = run / "model", run / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def report_nonfinite(run: Path, task: Task, counts: dict[str, int], means: dict[str, float], weights: State) -> Path:
    """Writes ``nonfinite/`` in the run's folder: the batch of the last skipped update, the weights, the numbers.

    The noise of that update is a function of the seed and of ``images_seen`` (see ``BatchRandom``).
    """
    folder = run / "nonfinite"
    folder.mkdir(exist_ok=True)
    try:
        _save(task.batch_at(counts["seen"]), folder / f"{task.batch_name}.safetensors")
    except ValueError as error:  # of the data
        logger.warning("the batch could not be read again: %s", error)
    _save(weights, folder / "model.safetensors")
    wrong = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    report = {
        "images_seen": counts["seen"],
        "skipped_updates": counts["skipped"],
        "in_a_row": counts["longest"],
        "means_of_finite_updates": means,
        "weights_not_finite": wrong,
        "config": asdict(task.config),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return folder


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    share(path)
