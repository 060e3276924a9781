"""The training loop: one function from a config to a trained model's folder.

The same command, run again, resumes exactly: data, noise and schedule are functions of (seed, images seen). With
several processes (``torchrun``) each runs this loop on its part of every batch.
"""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from ..dtypes import DTYPES
from ..files import atomic_path, only_one
from ..peak import peak_flops
from ..processes import Processes, join_processes, sum_over_processes
from .config import RunConfig, TrainConfig, check, differences, nonfinite_limit, to_json
from .environment import describe_environment
from .export import report_nonfinite
from .flops import training_flops
from .log import RunLog
from .preview import save_preview
from .state import TrainingState, place
from .step import Autocast, autocast_for, take_update
from .task import Task
from .tokenizer import TokenizerTask
from .watch import FiniteCount, StopRequest, TrainingStopped, stop_requests

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)


def train(config: TrainConfig, run: Path, device: torch.device | None = None) -> Path:
    """Trains a tokenizer; see ``train_task``."""
    return train_task(config, TokenizerTask, check, run, device)


def train_task(
    config: C,
    make_task: Callable[[C], Task],
    check: Callable[[C, int], None],
    run: Path,
    device: torch.device | None = None,
) -> Path:
    """Trains until ``config.total_images`` and returns the folder of the result, ``run / "model"``.

    Under ``torchrun`` it is called by every process.

    Args:
        config: of the run.
        make_task: what that config means, with fresh or given weights (torch's generator is seeded before).
        check: raises ValueError if so many processes cannot train the settings.
        run: folder of the run.
        device: by default the process' GPU, or the CPU.

    Raises ValueError if the settings cannot be trained or ``run`` holds a run with other settings,
    FloatingPointError after too many updates in a row that were not finite, and TrainingStopped after SIGTERM or
    SIGINT, once a checkpoint is saved.
    """
    with join_processes(device) as processes:
        check(config, processes.count)
        if processes.main:
            _check_run(config, run)  # before anything is written there, and again when nobody else can
        with only_one(run) if processes.main else nullcontext():
            if processes.main:
                _check_run(config, run)
            processes.wait()
            with stop_requests(processes) as stop:
                choose_tf32(config, processes.device)
                torch.manual_seed(config.seed)  # of random weights
                return _train(make_task(config), run, processes, stop)


def _train(task: Task, run: Path, processes: Processes, stop: StopRequest) -> Path:
    config, device = task.config, processes.device
    place(task.stage, config, device)
    autocast = autocast_for(config, device)
    if processes.main and config.log.sample_images:
        task.open_preview(device)
    if processes.main:
        _record_start(config, run, processes)
    share_of_peak = _announce(task, processes, autocast)

    state = TrainingState(task, processes, run)
    if state.seen >= config.total_images and (run / "model").is_dir():
        logger.info("this run is finished")
        return run / "model"
    batches = task.batches(state.seen, processes)
    finite_count = FiniteCount(device, state.skipped)
    log = RunLog(run, config, processes, state.seen, share_of_peak)

    while state.seen < config.total_images:
        before = state.seen
        taken = take_update(state, next(batches), autocast)
        finite_count.add(taken.finite, before)
        ended = state.seen >= config.total_images

        if log.add(taken.values, taken.finite, state.seen):
            counts = finite_count.read()  # here, and nowhere else, the loop waits for the device
            state.skipped = counts["skipped"]
            counted = {name: sum_over_processes(count) for name, count in task.counts().items()}
            more = {"skipped_updates": state.skipped, **counted, "learning_rate": taken.rate}
            means = log.write(state.seen, **more)
            if counts["longest"] >= nonfinite_limit(config):
                log.close()
                raise FloatingPointError(_explain_nonfinite(state, counts, means))
        if _passed(config.log.sample_images, before, state.seen) or (ended and config.log.sample_images):
            _preview(state, autocast, log)
        if _passed(config.log.checkpoint_images, before, state.seen):
            state.save()
        if number := stop.agreed():
            state.save()
            log.close()
            raise TrainingStopped(number, state.seen)

    state.save()
    log.close()
    weights = state.averaged_weights()
    if processes.main:
        task.export(weights, run, device)
    processes.wait()
    return run / "model"


def _preview(state: TrainingState, autocast: Autocast, log: RunLog) -> None:
    """A sample grid of the averaged model: a call for all processes; the main one draws."""
    weights = state.averaged_weights()
    if not state.processes.main:
        return
    with autocast():
        found = state.task.preview(weights)
    if found is not None:
        save_preview(found.page, state.run, state.seen)
        log.picture(found.page, state.seen)
        log.scalars(found.scores, state.seen)


def _passed(interval: int, before: int, seen: int) -> bool:
    """Did the clock pass a multiple of the interval (0: there is none)?"""
    return bool(interval) and before // interval != seen // interval


def choose_tf32(config: RunConfig, device: torch.device) -> None:
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32


def _check_run(config: RunConfig, run: Path) -> None:
    """Raises ValueError if the folder holds anything but this very run."""
    saved = run / "config.json"
    if saved.is_file():
        started = any((run / "checkpoints").glob("*")) or (run / "model").exists()
        try:
            changed = differences(config, saved.read_text())
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{saved}: expected the settings of a run, found something else ({error})") from error
        if changed and started:  # a run that never came to its first checkpoint has nothing to lose
            raise ValueError(
                f"{run} holds a run with other settings ({'; '.join(changed)}): choose another --out folder"
            )
    elif run.is_dir() and any(not p.name.startswith(".") for p in run.iterdir()):  # hidden: ours, of a killed process
        raise ValueError(f"{run}: expected a new folder or a run's, found other files: choose another --out folder")


def _record_start(config: RunConfig, run: Path, processes: Processes) -> None:
    """The resolved config, and a line about this start's environment."""
    with atomic_path(run / "config.json", overwrite=True) as path:
        path.write_text(to_json(config))
    with (run / "environment.jsonl").open("a") as file:
        file.write(json.dumps(describe_environment(processes)) + "\n")


def _announce(task: Task, processes: Processes, autocast: Autocast) -> float:
    """Says what is about to run. Returns the share of the machine's peak that one image per second uses."""
    stage, config = task.stage, task.config
    with autocast():
        flops = training_flops(stage, config, processes.device)
    if not processes.main:
        return 0.0
    peak = peak_flops(processes.device, DTYPES[config.precision], budget=0.3)
    trained = sum(p.numel() for p in stage.model.parameters())
    frozen = sum(p.numel() for module in stage.frozen.values() for p in module.parameters())
    share = flops / (peak * processes.count)
    tf32 = (", TF32 on" if config.tf32 else ", TF32 off") if processes.device.type == "cuda" else ""
    logger.info(
        "%s: %s trained and %s frozen parameters, %.4g GFLOP a training image; %s%s on %d x %s, whose quickest "
        "product runs at %.3g TFLOP/s: %.4g images/s would be its peak",
        task.name, f"{trained:,}", f"{frozen:,}", flops / 1e9, config.precision, tf32, processes.count,
        processes.device.type, peak / 1e12, 1 / share,
    )  # fmt: skip
    return share


def _explain_nonfinite(state: TrainingState, counts: dict[str, int], means: dict[str, float]) -> str:
    """Leaves ``nonfinite/`` in the run's folder. Returns what to tell the user."""
    weights = state.trained_weights()
    if state.processes.main:
        report_nonfinite(state.run, state.task, counts, means, weights)
    state.processes.wait()
    return (
        f"{counts['longest']} updates in a row had a loss or gradient that is not finite, up to {state.seen} images; "
        f"what was seen is in {state.run / 'nonfinite'}; lower --optimizer.learning-rate"
    )
