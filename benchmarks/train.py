"""How fast is an update of the tokenizer's training, against the same in NCHW?

Checks docs/performance.md (1.2, and 1.4 in the size of the embedded model) and docs/training.md on ``--compile``, by

    python benchmarks/train.py --compile
    python benchmarks/train.py --compile --rounds 4 --decoder XXS --encoder-width 32 --batch-size 16

It is the training's own update: stage, average and optimiser; only the photographs are replaced by one batch in memory.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import torch
from torch import Tensor

from ssdd.runtime.dtypes import torch_dtype
from ssdd.runtime.memory import keep_freed_memory
from ssdd.runtime.peak import peak_flops
from ssdd.runtime.processes import Processes
from ssdd.training.config import DataConfig, FlowConfig, FlowLoss, ModelConfig, TrainConfig, ValidationConfig
from ssdd.training.loop import choose_tf32
from ssdd.training.state import TrainingState, to_device
from ssdd.training.step import autocast_for, take_update, training_flops
from ssdd.training.tokenizer import TokenizerTask

NCHW, CHANNELS_LAST, COMPILED = "plain NCHW", "channels last", "channels last, compiled"


class BatchTask(TokenizerTask):
    """The training of a tokenizer without photographs."""

    def __init__(self, config: TrainConfig, layout: torch.memory_format) -> None:
        self.config, self.layout, self.stage = config, layout, config.build_stage()

    def on_device(self, piece: Tensor, device: torch.device) -> Tensor:
        return super().on_device(piece, device).contiguous(memory_format=self.layout)


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--latent", default="f8c4")
    parser.add_argument("--decoder", default="S", help="size of the decoder (default: S)")
    parser.add_argument("--encoder-width", type=int, default=128, help="channels of its first level (default: 128)")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lpips", default="squeeze", help="network of LPIPS, or none (default: squeeze)")
    parser.add_argument("--compile", action="store_true", help="one more row: compiled, on a CPU the norms")
    options = common.parse(parser)
    config, device = config_of(options), torch.device(options.device)
    keep_freed_memory()  # as the command does
    choose_tf32(config, device)
    calls = {
        NCHW: update(config, device, torch.contiguous_format),
        CHANNELS_LAST: update(config, device, torch.channels_last),
    }
    if options.compile:
        calls[COMPILED] = update(replace(config, compile=True), device, torch.channels_last)
    task = BatchTask(config, torch.channels_last)
    to_device(task.stage, config, device)
    with autocast_for(config, device)():
        gflop = training_flops(task.stage, config, device) / 1e9
    times, peak = common.take_turns(calls, options), peak_flops(device, torch_dtype(options.dtype))
    rows = common.speed_rows(times, options.image_size, options.batch_size, dict.fromkeys(times, gflop), peak)
    common.report(rows, options)


def config_of(options: argparse.Namespace) -> TrainConfig:
    loss = FlowLoss(lpips=0.0) if options.lpips == "none" else FlowLoss(lpips_network=options.lpips)
    return FlowConfig(
        model=ModelConfig(encoder=options.latent, encoder_width=options.encoder_width, decoder=options.decoder),
        data=DataConfig(resolution=options.image_size),
        validation=ValidationConfig(count=0),
        loss=loss,
        batch_size=options.batch_size,
        precision=options.dtype,
    )


def update(config: TrainConfig, device: torch.device, layout: torch.memory_format) -> Callable[[], object]:
    """Return an update of a training of its own, on noise."""
    torch.manual_seed(config.seed)
    task, side = BatchTask(config, layout), config.data.resolution
    to_device(task.stage, config, device)
    for module in (task.stage.model, *task.stage.frozen.values()):
        module.to(memory_format=layout)
    with TemporaryDirectory() as run:  # a run without a checkpoint
        state = TrainingState(task, Processes(0, 1, device), Path(run))
    images = torch.randint(0, 256, (config.batch_size, 3, side, side), dtype=torch.uint8)
    return lambda: take_update(state, images, autocast_for(config, device))


if __name__ == "__main__":
    main()
