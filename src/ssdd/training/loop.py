"""The training loop: one function from a config to a trained model's folder.

The same command, run again, resumes exactly: data, noise and schedule are functions of (seed, images seen).
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..data.loader import CropStream, crop_batches
from ..data.sources import open_source
from . import checkpoint
from .config import OptimizerConfig, TrainConfig, check, differences, to_json
from .random import BatchRandom
from .stages import LatentStatistics, Losses, Stage, build_stage

logger = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...] | list[Tensor]

STATISTICS_IMAGES = 1024
"""Crops over which the latent's mean and standard deviation are taken at the end."""


def train(config: TrainConfig, run: Path, device: torch.device | None = None) -> Path:
    """Trains until ``config.total_images`` and returns the folder of the result, ``run / "model"``.

    Raises ValueError if the settings cannot be trained or ``run`` holds a run with other settings, and
    FloatingPointError if the loss is no longer finite.
    """
    check(config)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check_run(config, run)
    data = config.data
    stream = CropStream(open_source(data.paths), data.resolution, data.scale, data.flip, config.seed)

    # The networks. Weights stay in float32 and channels-last; autocast does the rest.
    torch.manual_seed(config.seed)
    stage = build_stage(config)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(to_json(config))
    model = stage.model.to(device=device, memory_format=torch.channels_last).train()
    if stage.perceptual is not None:
        stage.perceptual.to(device).to(memory_format=torch.channels_last)
    network = torch.compile(model) if config.compile else model

    # Optimiser and average.
    optimizer = build_optimizer(model, config.optimizer)
    average = AveragedModel(model, multi_avg_fn=_ema(config), use_buffers=True)

    # Resume: the newest complete checkpoint, if there is one.
    seen = 0
    if existing := checkpoint.list_checkpoints(run):
        seen = checkpoint.load_checkpoint(existing[-1], model, average, optimizer)
        logger.info("resumed at %d images from %s", seen, existing[-1])

    batches = crop_batches(stream, seen, config.batch_size, data.workers)
    log = _Log(run, config, seen)
    autocast = _autocast(config, device)
    while seen < config.total_images:
        images = _to_device(next(batches), device)
        random = BatchRandom(config.seed, seen, config.batch_size, slice(None), device)

        # One update: losses, gradient, clipped step, average.
        with autocast():
            losses = stage.losses(network, images, random)
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        rate = learning_rate(config, seen)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)

        before, seen = seen, seen + config.batch_size
        log.add(losses, norm, rate, seen)
        if before // config.checkpoint_images != seen // config.checkpoint_images:
            checkpoint.save_checkpoint(run, seen, model, average, optimizer)

    checkpoint.save_checkpoint(run, seen, model, average, optimizer)
    log.close()
    return _export(stage, average.module, batches, config, run, device)


def learning_rate(config: TrainConfig, seen: int) -> float:
    """Rate at ``seen`` images: linear warm-up, plateau, linear decay to zero over the last ``decay_images``."""
    o, at = config.optimizer, seen + config.batch_size
    warmup = min(1.0, at / o.warmup_images) if o.warmup_images else 1.0
    decay = min(1.0, (config.total_images + config.batch_size - at) / o.decay_images) if o.decay_images else 1.0
    return o.learning_rate * min(warmup, max(0.0, decay))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; biases and norms (one dimension) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _ema(config: TrainConfig) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Average with a half-life in images; shorter at first, so that the random start is forgotten."""
    decay = 0.5 ** (config.batch_size / config.ema_halflife_images)

    @torch.no_grad()
    def update(averages: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = float(updates)
        keep = min(decay, (1 + n) / (10 + n))
        floating = [(a, c) for a, c in zip(averages, current, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floating], [c for _, c in floating], 1 - keep)
        for a, c in zip(averages, current, strict=True):
            if not a.is_floating_point():
                a.copy_(c)

    return update


def _autocast(config: TrainConfig, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    if config.precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _to_device(batch: Tensor, device: torch.device) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 in [-1, 1], channels-last, on the device."""
    batch = batch.to(device, non_blocking=True).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


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


@torch.no_grad()
def _export(
    stage: Stage, model: nn.Module, batches: Iterator[Tensor], config: TrainConfig, run: Path, device: torch.device
) -> Path:
    """Latent statistics of the averaged model over fresh crops, then its folder."""
    model.eval()
    statistics = LatentStatistics()
    for _ in range(max(1, STATISTICS_IMAGES // config.batch_size)):
        statistics.update(stage.latents(model, _to_device(next(batches), device)))
    stage.export(model, run / "model", statistics)
    return run / "model"


class _Log:
    """Means over a log interval: a line of ``stats.jsonl`` and the progress bar. Synchronises only there."""

    def __init__(self, run: Path, config: TrainConfig, seen: int) -> None:
        self.path, self.interval = run / "stats.jsonl", config.log_images
        _forget_after(self.path, seen)
        self.bar = tqdm(total=config.total_images, initial=seen, unit="img", smoothing=0.05)
        self.sums: dict[str, Tensor] = {}
        self.steps, self.since, self.started = 0, seen, time.monotonic()

    def add(self, losses: Losses, norm: Tensor, rate: float, seen: int) -> None:
        for name, value in {**losses, "gradient": norm}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.steps += 1
        self.bar.update(seen - self.bar.n)
        if seen // self.interval == self.since // self.interval:
            return
        now = time.monotonic()
        means = {name: (value / self.steps).item() for name, value in self.sums.items()}
        line = {
            "images": seen,
            **means,
            "learning_rate": rate,
            "images_per_second": (seen - self.since) / (now - self.started),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
        if not torch.isfinite(torch.tensor(list(means.values()))).all():
            raise FloatingPointError(
                f"loss or gradient is not finite at {seen} images: {means}; lower the learning rate"
            )
        self.sums, self.steps, self.since, self.started = {}, 0, seen, now

    def close(self) -> None:
        self.bar.close()


def _forget_after(stats: Path, seen: int) -> None:
    """Drops the lines of a run that went on after its last checkpoint: they are about to be written again."""
    if stats.is_file():
        lines = [line for line in stats.read_text().splitlines() if json.loads(line)["images"] <= seen]
        stats.write_text("".join(f"{line}\n" for line in lines))
