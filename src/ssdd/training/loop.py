"""The training loop: one function from a config to a trained model's folder.

The same command, run again, resumes exactly: data, noise and schedule are functions of (seed, images seen). With
several processes (``torchrun``, ``srun``) each runs this loop on its part of every batch.
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from ..runtime.dtypes import fastest_dtype, torch_dtype
from ..runtime.files import only_one
from ..runtime.peak import peak_flops
from ..runtime.processes import Processes, check_same, join_processes, sum_over_processes
from .config import RunConfig, TrainConfig, nonfinite_limit
from .export import report_nonfinite
from .log import RunLog
from .optimizers import schedule_notes
from .parts import PartSize, PartWatch, dead_parts, table
from .run_folder import check_settings, check_trained_on, forget_start, has_started, record_start, write_settings
from .state import TrainingState, to_device
from .step import Autocast, autocast_for, take_update, training_flops
from .task import Task
from .tokenizer import TokenizerTask
from .watch import StopRequest, TrainingStopped, stop_requests

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)

CHECKED_UPDATES = 10
"""Updates of ``--check``."""


def train(config: TrainConfig, run: Path, device: torch.device | None = None) -> Path:
    """Train a tokenizer; see ``train_task``."""
    return train_task(config, TokenizerTask, run, device)


def train_task(config: C, make_task: Callable[[C], Task], run: Path, device: torch.device | None = None) -> Path:
    """Train until ``config.total_images``; under ``torchrun`` or ``srun`` every process calls this.

    Args:
        config: of the run.
        make_task: what that config means, with fresh or given weights (torch's generator is seeded before).
        run: folder of the run.
        device: by default the process' GPU, or the CPU.

    Returns:
        The folder of the result, ``run / "model"``.

    Raises:
        ValueError: the settings cannot be trained, or ``run`` holds a run of other settings, photographs or weights.
        FloatingPointError: too many updates in a row were not finite.
        TrainingStopped: after SIGTERM, SIGINT, SIGUSR1 or SIGHUP, once a checkpoint is saved.
    """
    with join_processes(device) as processes:
        config.check(processes.count)
        if processes.main:
            check_settings(config, run)  # before anything is written there, and again when nobody else can
        with only_one(run) if processes.main else nullcontext():
            if processes.main:
                check_settings(config, run)
            processes.wait()
            with stop_requests(processes) as stop:
                choose_tf32(config, processes.device)
                torch.manual_seed(config.seed)  # of random weights
                return _train(make_task(config), run, processes, stop)


def _train(task: Task, run: Path, processes: Processes, stop: StopRequest) -> Path:
    config, device = task.config, processes.device
    trained_on = task.provenance()
    check_same(trained_on)
    if has_started(run) and processes.main:
        check_trained_on(run, trained_on)
    elif processes.main:
        forget_start(run)
        write_settings(config, run)  # the first file of a run: others without it would be somebody else's
    processes.wait()
    to_device(task.stage, config, device)
    task.prepare(run, processes)
    autocast = autocast_for(config, device)
    share_of_peak = _announce(task, processes, autocast)  # before a checkpoint is read: spectral norms count its passes
    state = TrainingState(task, processes, run)
    if state.seen >= config.total_images and (run / "model").is_dir():
        logger.info("this run is finished")
        return run / "model"
    if processes.main:
        record_start(config, run, trained_on, processes)
    log = RunLog(run, config, processes, state.seen, share_of_peak)
    watch = PartWatch(task.stage.model)
    batches = task.batches(state.seen, processes, state.data_position)
    if state.seen == 0:
        _look_at_result(state, autocast, log, samples=False, validation=True)

    while state.seen < config.total_images:
        before, begin = state.seen, time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - begin
        logs = log.ends_interval(before + config.batch_size)
        result = take_update(state, batch, autocast, watch if logs else None)
        state.finite.add(result.finite, before)
        log.add(result.values, result.finite, state.seen, waited)
        ended = state.seen >= config.total_images

        if logs:
            counts = state.finite.read()  # here, and where it saves, the loop waits for the device
            counted = {name: sum_over_processes(count) for name, count in task.counts().items()}
            more = {"skipped_updates": counts["skipped"], **counted, "learning_rate": result.rate}
            means = log.write(state.seen, watch.read(), **more)
            if counts["longest"] >= nonfinite_limit(config):
                log.close()
                terms = [name for name, value in result.values.items() if not value.isfinite().all()]
                raise FloatingPointError(report_nonfinite(state, counts, means, terms))
        samples = _passed(config.log.sample_images, before, state.seen) or (ended and config.log.sample_images > 0)
        validation = _passed(task.validation_images, before, state.seen) or ended
        if samples or validation:
            _look_at_result(state, autocast, log, samples, validation)
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


def check_learning(config: C, make_task: Callable[[C], Task], device: torch.device | None = None) -> str:
    """Take a few updates without writing anything. Return gradient and update by part at the first and the last, in the
    main process; in others nothing.
    """
    with join_processes(device) as processes, TemporaryDirectory() as run:
        config.check(processes.count)
        choose_tf32(config, processes.device)
        torch.manual_seed(config.seed)
        task = make_task(config)
        to_device(task.stage, config, processes.device)
        task.prepare(Path(run), processes)
        state = TrainingState(task, processes, Path(run))
        autocast, batches, lines = autocast_for(config, processes.device), task.batches(0, processes), []
        sizes: dict[str, PartSize] = {}
        for update in range(1, CHECKED_UPDATES + 1):
            watch = PartWatch(task.stage.model) if update in (1, CHECKED_UPDATES) else None
            result = take_update(state, next(batches), autocast, watch)
            if watch is not None:
                sizes, loss = watch.read(), float(result.values["total"])
                lines += [f"update {update}, loss {loss:.4g}, gradient {float(result.values['gradient']):.4g}"]
                lines += [table(sizes), ""]
        dead = dead_parts(sizes)
        lines += [f"warning: these parts hardly learn: {', '.join(dead)}" if dead else "every part learns"]
        return "\n".join(lines) if processes.main else ""


def _look_at_result(state: TrainingState, autocast: Autocast, log: RunLog, samples: bool, validation: bool) -> None:
    """Draw a sample grid of the averaged model, or measure it: a call for all processes; the main one does it."""
    weights = state.averaged_weights()
    if not state.processes.main:
        return
    with autocast():
        page = state.task.grid(weights) if samples else None
        scores = state.task.validate(weights, state.run, state.seen) if validation else {}
    if page is not None:
        log.picture(page, state.seen)
    if scores:
        log.validated(scores, state.seen)


def _passed(interval: int, before: int, seen: int) -> bool:
    """Return whether the clock passed a multiple of the interval (0: there is none)."""
    return bool(interval) and before // interval != seen // interval


def choose_tf32(config: RunConfig, device: torch.device) -> None:
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32


def _announce(task: Task, processes: Processes, autocast: Autocast) -> float:
    """Log what is about to run. Return the share of the machine's peak that one image per second uses."""
    stage, config = task.stage, task.config
    with autocast():
        flops = training_flops(stage, config, processes.device)
    if not processes.main:
        return 0.0
    peak = peak_flops(processes.device, torch_dtype(config.precision), budget=0.3)
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
    quick = (torch.float32, fastest_dtype(processes.device))
    if processes.device.type == "cpu" and torch_dtype(config.precision) not in quick:
        logger.warning("%s is slow on this processor: --precision fp32", config.precision)
    for note in schedule_notes(config):
        logger.info(note)
    return share
