"""The training loop: one function from a config to a trained model's folder.

The same command, run again, resumes exactly: data, noise and schedule are functions of (seed, images seen). With
several processes (``torchrun``) each runs this loop on its part of every batch.
"""

import json
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.loader import BrokenImages, CropStream, crop_batches
from ..data.sources import open_source
from ..files import atomic_path
from ..objectives.adversarial import hinge_discriminator_loss
from . import checkpoint
from .average import Average
from .config import TrainConfig, check, differences, microbatch_size, to_json
from .distribution import Processes, accumulating, join_processes, shard, spread, whole_state
from .environment import describe_environment
from .export import export, report_nonfinite
from .flops import measured_peak, training_flops
from .foreign import ForeignEncoder
from .log import RunLog
from .optimizers import Update, learning_rate, poisoned_backward
from .preview import preview, preview_images, save_preview
from .random import BatchRandom, seed_global_generators
from .stages import Stage, build_stage
from .watch import FiniteCount, StopRequest, TrainingStopped, stop_requests

logger = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[object]]


def train(config: TrainConfig, run: Path, device: torch.device | None = None) -> Path:
    """Trains until ``config.total_images`` and returns the folder of the result, ``run / "model"``.

    Under ``torchrun`` it is called by every process. ``device``: by default the process' GPU, or the CPU.

    Raises ValueError if the settings cannot be trained or ``run`` holds a run with other settings,
    FloatingPointError after too many updates in a row that were not finite, and TrainingStopped after SIGTERM or
    SIGINT, once a checkpoint is saved.
    """
    with join_processes(device) as processes:
        check(config, processes.count)
        if processes.main:
            _check_run(config, run)
        processes.wait()
        with stop_requests(processes) as stop:
            return _train(config, run, processes, stop)


def _train(config: TrainConfig, run: Path, processes: Processes, stop: StopRequest) -> Path:
    device, data = processes.device, config.data
    stream = CropStream(open_source(data.paths), data.resolution, data.scale, data.flip, config.seed)

    # The networks. Weights stay in float32; autocast does the rest.
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32
    torch.manual_seed(config.seed)
    stage = build_stage(config)
    model = _place(stage, device, contiguous=config.parallel == "fsdp")
    autocast = _autocast(config, device)
    if processes.main:
        _record_start(config, run, processes)
    share_of_peak = _announce(stage, config, processes, autocast)

    # The average, and what a checkpoint has of all of it; only then is the model spread over processes.
    average = Average(model, config.average, config.batch_size)
    loaded = checkpoint.newest_checkpoint(run)
    tensors, state = loaded or ({}, {"images_seen": 0})
    if loaded:
        model.load_state_dict(tensors["model"])
        average.averaged.load_state_dict(tensors["average"])
        if stage.adversary is not None:
            stage.adversary.load_state_dict(tensors["adversary"])
    if config.compile:
        _compile(stage)
    network = spread(model, processes, config.parallel)
    if config.parallel == "fsdp":
        shard(average.module, processes)
    trained = {"": (network, Update(model, config.optimizer))}
    if stage.adversary is not None:
        trained["adversary"] = (spread(stage.adversary, processes, "ddp"), Update(stage.adversary, config.optimizer))
    for name, (_, update) in trained.items():
        if loaded:
            checkpoint.restore_optimizer(update.optimizer, tensors[_optimizer_file(name)], state[_optimizer_file(name)])
    seen = int(state["images_seen"])
    del loaded, tensors
    if seen:
        logger.info("resumed at %d images", seen)
    if seen >= config.total_images and (run / "model").is_dir():
        logger.info("this run is finished")
        return run / "model"

    def save() -> None:
        """A checkpoint of this moment; all processes take part, the main one writes."""
        content = {"model": whole_state(model), "average": whole_state(average.averaged)}
        state: dict[str, Any] = {"images_seen": seen}
        if stage.adversary is not None:
            content["adversary"] = stage.adversary.state_dict()
        for name, (_, update) in trained.items():
            file = _optimizer_file(name)
            content[file], state[file] = checkpoint.optimizer_tensors(update.optimizer)
        if processes.main:
            checkpoint.write_checkpoint(checkpoint.checkpoint_folder(run, seen), content, state)
            checkpoint.prune_checkpoints(run, config.log.keep_checkpoints, config.log.milestone_images)
        processes.wait()

    broken = BrokenImages(data.broken_limit)
    batches = crop_batches(stream, seen, config.batch_size, data.workers, processes.rank, processes.count, broken)
    fixed = preview_images(config).to(device) if processes.main and config.log.sample_images else None
    finite_count = FiniteCount(device)
    log = RunLog(run, config, processes, seen, share_of_peak)
    saved = -1
    while seen < config.total_images:
        # One update: losses and gradients over the microbatches, clipped step, average.
        seed_global_generators(config.seed, seen, processes.rank)
        adversary = trained["adversary"][0] if "adversary" in trained else None
        losses = _gradients(stage, network, adversary, next(batches), seen, config, processes, autocast)
        rate = learning_rate(config, seen)
        norm, finite = trained[""][1].step(rate)
        if "discriminator" in losses:
            losses["discriminator_gradient"], _ = trained["adversary"][1].step(rate)
        finite_count.add(finite, seen)
        before, seen = seen, seen + config.batch_size
        average.update(model, seen)

        # What is seen of it, and what is kept.
        if log.add({**losses, "gradient": norm}, finite, seen):
            counts = finite_count.read()
            means = log.write(seen, learning_rate=rate, skipped_updates=counts["skipped"], broken_images=broken.count)
            if counts["longest"] >= config.nonfinite_limit:
                if processes.main:
                    report_nonfinite(run, stream, config, counts, means, model if config.parallel == "ddp" else None)
                raise FloatingPointError(
                    f"{counts['longest']} updates in a row had a loss or gradient that is not finite, up to {seen} "
                    f"images; what was seen is in {run / 'nonfinite'}; lower --optimizer.learning-rate"
                )
        if _passed(config.log.sample_images, before, seen) or (
            config.log.sample_images and seen >= config.total_images
        ):
            weights = whole_state(average.module)
            if fixed is not None:
                with autocast():
                    page, scores = preview(stage, stage.result(weights).to(device), fixed)
                save_preview(page, run, seen)
                log.picture(page, seen)
                log.scalars(scores, seen)
        if _passed(config.log.checkpoint_images, before, seen):
            save()
            saved = seen
        if number := stop.agreed():
            if saved != seen:
                save()
            log.close()
            raise TrainingStopped(number, seen)

    if saved != seen:
        save()
    log.close()
    weights = whole_state(average.module)
    if processes.main:
        export(stage, weights, stream, config, run, device)
    processes.wait()
    return run / "model"


def _gradients(
    stage: Stage,
    network: nn.Module,
    adversary: nn.Module | None,
    crops: Tensor,
    seen: int,
    config: TrainConfig,
    processes: Processes,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """Adds up the gradients of one update over the microbatches of this process. Returns the mean losses.

    crops: uint8 (B, 3, S, S), this process' part of the batch.
    """
    size = microbatch_size(config, processes.count)
    pieces = crops.split(size)
    means: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        means[name] = means.get(name, 0) + value.detach() / len(pieces)

    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        images = _to_device(piece, processes.device)
        first = processes.rank * len(crops) + i * size
        part = slice(first, first + len(piece))
        random = BatchRandom(config.seed, seen, config.batch_size, part, processes.device)
        with accumulating(network, last):
            with autocast():
                losses = stage.losses(network, images, random, seen)
            poisoned_backward(losses.total, 1 / len(pieces))
        for name, value in {"total": losses.total, **losses.terms}.items():
            add(name, value)
        if adversary is not None and (judged := losses.judged) is not None:
            t = None if judged.t is None else torch.cat([judged.t, judged.t])
            with accumulating(adversary, last):
                with autocast():
                    real, fake = adversary(torch.cat([judged.real, judged.fake]), t).float().chunk(2)
                loss = hinge_discriminator_loss(real, fake)
                poisoned_backward(loss, 1 / len(pieces))
            add("discriminator", loss)
    return means


def _place(stage: Stage, device: torch.device, contiguous: bool) -> nn.Module:
    """All networks on the device, channels-last (which FSDP does not take); the trained ones in training mode."""
    form = torch.contiguous_format if contiguous else torch.channels_last
    for module in stage.frozen.values():
        module.to(device).to(memory_format=torch.channels_last)
    if stage.adversary is not None:
        stage.adversary.to(device).to(memory_format=torch.channels_last).train()
    return stage.model.to(device).to(memory_format=form).train()


def _compile(stage: Stage) -> None:
    """In place, so that names in checkpoints stay. A user's own encoder is left as it is."""
    if stage.adversary is not None:
        import torch._functorch.config

        # the adaptive weight goes backward twice through one graph
        torch._functorch.config.donated_buffer = False
    own = [module for module in stage.frozen.values() if not isinstance(module, ForeignEncoder)]
    for module in (stage.model, stage.adversary, *own):
        if module is not None:
            module.compile()


def _autocast(config: TrainConfig, device: torch.device) -> Autocast:
    if config.precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _to_device(batch: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 in [-1, 1], channels-last, on the device."""
    batch = batch.to(device, non_blocking=True).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def _passed(interval: int, before: int, seen: int) -> bool:
    """Did the clock pass a multiple of the interval (0: there is none)?"""
    return bool(interval) and before // interval != seen // interval


def _optimizer_file(name: str) -> str:
    return f"{name}_optimizer".lstrip("_")


def _check_run(config: TrainConfig, run: Path) -> None:
    """Raises ValueError if the folder holds anything but this very run."""
    saved = run / "config.json"
    if saved.is_file():
        if changed := differences(config, saved.read_text()):
            raise ValueError(
                f"{run} holds a run with other settings ({'; '.join(changed)}): choose another --out folder"
            )
    elif run.is_dir() and any(run.iterdir()):
        raise ValueError(f"{run}: expected a new folder or a run's, found other files: choose another --out folder")


def _record_start(config: TrainConfig, run: Path, processes: Processes) -> None:
    """The resolved config, and a line about this start's environment."""
    with atomic_path(run / "config.json", overwrite=True) as path:
        path.write_text(to_json(config))
    with (run / "environment.jsonl").open("a") as file:
        file.write(json.dumps(describe_environment(processes)) + os.linesep)


def _announce(stage: Stage, config: TrainConfig, processes: Processes, autocast: Autocast) -> float:
    """Says what is about to run. Returns the share of the machine's peak that one image per second uses."""
    with autocast():
        flops = training_flops(stage, config, processes.device)
    if not processes.main:
        return 0.0
    peak = measured_peak(processes.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    trained = sum(p.numel() for p in stage.model.parameters())
    frozen = sum(p.numel() for module in stage.frozen.values() for p in module.parameters())
    share = flops / (peak * processes.count)
    tf32 = (", TF32 on" if config.tf32 else ", TF32 off") if processes.device.type == "cuda" else ""
    logger.info(
        "%s: %s trained and %s frozen parameters, %.4g GFLOP a training image; %s%s on %d x %s, whose largest matrix "
        "product runs at %.3g TFLOP/s: %.4g images/s would be its peak",
        config.stage, f"{trained:,}", f"{frozen:,}", flops / 1e9, config.precision, tf32, processes.count,
        processes.device.type, peak / 1e12, 1 / share,
    )  # fmt: skip
    return share
