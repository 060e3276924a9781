"""What a run leaves behind: a model of its result or of a checkpoint, and a report about a run that diverged."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.identity import identify_weights
from ..runtime.files import write_json
from .checkpoint import list_checkpoints, read_checkpoint, save_tensors
from .config import read_config
from .run_folder import check_trained_on

if TYPE_CHECKING:
    from .state import TrainingState

logger = logging.getLogger(__name__)


def write_result(folder: Path, write: Callable[[Path], None]) -> Path:
    """Have ``write`` make a model's folder, whole or not at all. Return the folder."""
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
    folders = {int(folder.name): folder for folder in list_checkpoints(run)}
    if not (run / "config.json").is_file() or not folders:
        raise FileNotFoundError(f"{run}: expected a run with a checkpoint, found none: it has not come that far")
    if images is not None and images not in folders:
        raise FileNotFoundError(
            f"{run}: expected a checkpoint at {', '.join(map(str, sorted(folders)))} images, found none at {images}"
        )
    return folders[max(folders) if images is None else images]


def export_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write the averaged model of a tokenizer's checkpoint as a folder that ``from_pretrained`` reads.

    The latents' statistics are those that the encoder came with, if any: what a finished run measures needs its
    photographs. Raises ValueError or OSError with one line where the checkpoint is damaged, or what the run started
    from has changed: its frozen encoder is a part of the result.
    """
    run = checkpoint.parents[1]
    try:
        config = read_config((run / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{run / 'config.json'}: {error}") from error
    stage = config.build_stage(objectives=False)
    weights = {name: identify_weights(network) for name, network in stage.given.items()}
    check_trained_on(run, weights, "put these back to export what it has learnt")
    if stage.normalize_latents is not None:
        known = json.loads((run / "latents.json").read_text())
        stage.normalize_latents(tuple(known["latents_mean"]), tuple(known["latents_std"]))
    result = stage.result(read_checkpoint(checkpoint)[0]["average"])
    write_result(folder, lambda partial: stage.export(result, partial, dict(stage.statistics)))


def report_nonfinite(state: "TrainingState", counts: dict[str, int], means: dict[str, float], terms: list[str]) -> str:
    """Write ``nonfinite/`` in the run's folder: the batch of the last skipped update, the weights, the numbers.

    The noise of that update is a function of the seed and of ``images_seen`` (see ``BatchRandom``). All processes call
    this; the main one writes.

    Args:
        state: of the run.
        counts: of skipped updates; see ``FiniteCount``.
        means: of the losses over the last interval.
        terms: losses that were not finite.

    Returns:
        What to tell the user.
    """
    folder, task = state.run / "nonfinite", state.task
    weights = state.trained_weights()
    if state.processes.main:
        folder.mkdir(exist_ok=True)
        try:
            save_tensors(task.batch_at(counts["seen"]), folder / f"{task.batch_name}.safetensors")
        except ValueError as error:  # of the data
            logger.warning("the batch could not be read again: %s", error)
        save_tensors(weights, folder / "model.safetensors")
        report: dict[str, Any] = {
            "images_seen": counts["seen"],
            "skipped_updates": counts["skipped"],
            "in_a_row": counts["longest"],
            "means_of_finite_updates": means,
            "weights_not_finite": [name for name, tensor in weights.items() if not tensor.isfinite().all()],
            "config": asdict(task.config),
        }
        write_json(folder / "report.json", report)
    state.processes.wait()
    where = f" ({', '.join(terms)})" if terms else ""
    advice = "lower --optimizer.learning-rate"
    if state.saved >= 0:
        advice = (
            f"the last checkpoint is at {state.saved} images: start a new run from it (ssdd train export) with a lower "
            "--optimizer.learning-rate"
        )
    return (
        f"{counts['longest']} updates in a row had a loss or gradient that is not finite{where}, up to {state.seen} "
        f"images; what was seen is in {folder}; {advice}"
    )
