"""What a run leaves behind: a model of its result or of a checkpoint, and a report about a run that diverged."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from ..files import share
from . import checkpoint
from .config import read_config
from .stages.base import State

if TYPE_CHECKING:
    from .task import Task

logger = logging.getLogger(__name__)

STATISTICS_IMAGES = 256
"""Crops over which the latent's mean and standard deviation are taken at the end."""


def write_result(folder: Path, write: Callable[[Path], None]) -> Path:
    """Have a model's folder written, whole or not at all. Return it."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def find_checkpoint(run: Path, images: int | None = None) -> Path:
    """Return a run's checkpoint at so many images, or its newest. Raise FileNotFoundError with one line."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: expected a run's folder, found none")
    folders = {int(folder.name): folder for folder in checkpoint.list_checkpoints(run)}
    if not (run / "config.json").is_file() or not folders:
        raise FileNotFoundError(f"{run}: expected a run with a checkpoint, found none: it has not come that far")
    if images is not None and images not in folders:
        raise FileNotFoundError(
            f"{run}: expected a checkpoint at {', '.join(map(str, sorted(folders)))} images, found none at {images}"
        )
    return folders[max(folders) if images is None else images]


def export_checkpoint(run: Path, folder: Path, images: int | None = None) -> int:
    """Write the averaged model of a tokenizer's checkpoint as a folder that ``from_pretrained`` reads.

    Args:
        run: folder of a run, finished or not.
        folder: of the model.
        images: of the checkpoint; None for the newest.

    Returns how many images it has seen. The latents' statistics are those that the encoder came with, if any: what a
    finished run measures needs its photographs. Raises ValueError or OSError with one line.
    """
    found = find_checkpoint(run, images)
    try:
        config = read_config((run / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{run / 'config.json'}: {error}") from error
    stage = config.build_stage(objectives=False)
    if stage.normalize_latents is not None:
        known = json.loads((run / "latents.json").read_text())
        stage.normalize_latents(tuple(known["latents_mean"]), tuple(known["latents_std"]))
    weights: State = checkpoint.read_checkpoint(found)[0]["average"]
    result = stage.result(weights)
    write_result(folder, lambda partial: stage.export(result, partial, dict(stage.statistics)))
    return int(found.name)


def report_nonfinite(run: Path, task: "Task", counts: dict[str, int], means: dict[str, float], weights: State) -> Path:
    """Write ``nonfinite/`` in the run's folder: the batch of the last skipped update, the weights, the numbers.

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
    report: dict[str, Any] = {
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
