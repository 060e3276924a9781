"""How fast is an update of the tokenizer's training, against the same without its memory layout and compiler?

It is the training package's own step, on its own stage, average and optimiser; only the photographs are replaced by one
batch in memory.

Shapes: B images of a batch, S side of an image.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..dtypes import DTYPES
from ..memory import keep_freed_memory
from ..nn.presets import decoder_size, encoder_size
from ..objectives.perceptual import backbone_path
from ..peak import peak_flops
from ..processes import Processes
from ..training.config import DataConfig, FlowConfig, FlowLoss, ModelConfig, TrainConfig, ValidationConfig
from ..training.loop import choose_tf32
from ..training.state import TrainingState, to_device
from ..training.step import autocast_for, take_update, training_flops
from ..training.tokenizer import TokenizerTask
from .config import TrainingBench
from .setting import Setting, this_setting
from .throughput import Speed, Speeds, peak_memory
from .timing import take_turns

PLAIN = "plain NCHW"
ROWS = (PLAIN, "channels last")
COMPILED = "channels last, compiled"


class BatchTask(TokenizerTask):
    """The training of a tokenizer on one batch of noise. plain: in NCHW."""

    def __init__(self, config: TrainConfig, plain: bool) -> None:
        self.config, self.plain = config, plain
        self.stage = config.build_stage()
        side, generator = config.data.resolution, torch.Generator().manual_seed(config.seed)
        self.images = torch.randint(0, 256, (config.batch_size, 3, side, side), generator=generator, dtype=torch.uint8)

    def batches(self, seen: int, processes: Processes, position: Any = None) -> Iterator[Tensor]:
        """Return uint8 (B, 3, S, S), always the same."""
        while True:
            yield self.images

    def on_device(self, piece: Tensor, device: torch.device) -> Tensor:
        images = super().on_device(piece, device)
        return images.contiguous() if self.plain else images


def check_training_bench(settings: TrainingBench) -> None:
    """Raises ValueError with one line for settings that cannot be measured."""
    if min(settings.image_size, settings.batch_size, settings.rounds) < 1 or settings.seconds < 0:
        raise ValueError("expected an image size, batch size and rounds of at least 1, and seconds from 0")
    decoder_size(settings.decoder)
    factor = encoder_size(settings.latent, settings.encoder_width).factor
    if settings.image_size % factor:
        raise ValueError(f"expected an image size that is a multiple of {factor}, found {settings.image_size}")
    path = backbone_path(settings.lpips_network)
    if settings.lpips and not path.is_file():
        raise ValueError(
            f"LPIPS-{settings.lpips_network} needs {path}, which is missing: put torchvision's file there (or set "
            "TORCH_HOME), or pass --no-lpips"
        )


def training_setting(settings: TrainingBench, device: torch.device) -> Setting:
    """Makes the process ready, the same for all rows, and says what was done."""
    return this_setting(
        "train",
        device,
        dtype=settings.precision,
        compile=settings.compile,
        mode="training",
        freed_memory_kept=device.type == "cpu" and keep_freed_memory(),
        latent=settings.latent,
        decoder=settings.decoder,
        encoder_width=settings.encoder_width,
        lpips=settings.lpips_network if settings.lpips else "none",
    )


def bench_training(settings: TrainingBench, device: torch.device, step: Callable[[], object] = lambda: None) -> Speeds:
    """Updates in NCHW, in channels-last, and compiled if that is asked for. Raises ValueError with one line.

    step: called ``rounds + 1`` times for each row.
    """
    check_training_bench(settings)
    setting, config = training_setting(settings, device), _config(settings)
    choose_tf32(config, device)
    peak = peak_flops(device, DTYPES[settings.precision])
    works = {name: _update(replace(config, compile=False), device, name == PLAIN) for name in ROWS}
    if settings.compile:
        works[COMPILED] = _update(replace(config, compile=True), device, plain=False)
    gflop = _gflop(config, device)
    memory = {name: peak_memory(work, device) for name, work in works.items()}
    times = take_turns({name: (work,) for name, work in works.items()}, settings.rounds, device, step, settings.seconds)
    size, batch = settings.image_size, settings.batch_size
    rows = [Speed(name, size, batch, times[name][0], gflop, memory[name]) for name in works]
    return Speeds(setting, peak, PLAIN, rows, [])


def _config(settings: TrainingBench) -> TrainConfig:
    loss = FlowLoss(lpips_network=settings.lpips_network)
    return FlowConfig(
        model=ModelConfig(encoder=settings.latent, encoder_width=settings.encoder_width, decoder=settings.decoder),
        data=DataConfig(resolution=settings.image_size),
        validation=ValidationConfig(count=0),
        loss=loss if settings.lpips else replace(loss, lpips=0.0),
        batch_size=settings.batch_size,
        precision=settings.precision,
    )


def _gflop(config: TrainConfig, device: torch.device) -> float:
    """Of one image, forward and backward."""
    task = BatchTask(config, plain=False)
    to_device(task.stage, config, device)
    with autocast_for(config, device)():
        return training_flops(task.stage, config, device) / 1e9


def _update(config: TrainConfig, device: torch.device, plain: bool) -> Callable[[], object]:
    """One update of a training of its own."""
    torch.manual_seed(config.seed)
    task = BatchTask(config, plain)
    to_device(task.stage, config, device)
    for module in (task.stage.model, *task.stage.frozen.values()) if plain else ():
        module.to(memory_format=torch.contiguous_format)
    with TemporaryDirectory() as run:  # a run without a checkpoint
        state = TrainingState(task, Processes(0, 1, device), Path(run))
    autocast = autocast_for(config, device)
    return lambda: take_update(state, task.images, autocast)
