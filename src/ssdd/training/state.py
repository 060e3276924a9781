"""Everything that one update depends on and changes: networks, average, optimisers, clock. It is what a checkpoint
holds, and the only place that knows how networks are placed, compiled and spread over processes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoder.optimization import can_compile, has_fused_norms, use_fused_norms
from ..checkpoints.own_code import ForeignEncoder
from ..runtime.processes import Processes, broadcast, gather
from . import checkpoint
from .average import Average
from .config import OptimizerConfig, RunConfig
from .distribution import blocks, full_state, shard, spread
from .optimizers import Update
from .stages.base import Objective
from .task import Task
from .watch import FiniteCount

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network as it is called (perhaps wrapped), and its optimiser."""

    network: nn.Module
    update: Update


class TrainingState:
    """The stage's networks on their device, ready for the update after ``seen`` images.

    Starts from the newest undamaged checkpoint of ``run``, if there is one.

    Raises ValueError if the run cannot go on here, DamagedCheckpoint if there is no good one.
    """

    def __init__(self, task: Task, processes: Processes, run: Path) -> None:
        stage, config = task.stage, task.config
        self.task, self.stage, self.config, self.processes, self.run = task, stage, config, processes, run
        self.average = Average(stage.model, config.average, config.batch_size)
        # Before the model is spread over processes: a checkpoint has it in one piece.
        tensors, numbers = self._read()
        self.seen = int(numbers["images_seen"])
        skipped, in_a_row = int(numbers["skipped_updates"]), int(numbers.get("skipped_in_a_row", 0))
        self.finite = FiniteCount(processes.device, skipped, in_a_row)
        self.saved = self.seen if tensors else -1
        self.data_position = self._position_of(numbers.get("data"))
        if tensors:
            stage.model.load_state_dict(tensors["model"])
            self.average.module.load_state_dict(tensors["average"])
            if stage.adversary is not None:
                stage.adversary.load_state_dict(tensors["adversary"])
        if config.compile:
            compile_networks(stage, config, processes.device)
        network = spread(stage.model, processes, config)
        if config.parallel == "fsdp":
            shard(self.average.module, processes, "fp32")
        self.generator = TrainedNetwork(network, self._update(stage.model, config.optimizer))
        self.adversary: TrainedNetwork | None = None
        if stage.adversary is not None:
            network = spread(stage.adversary, processes, config, ddp=True)
            self.adversary = TrainedNetwork(network, self._update(stage.adversary, discriminator_optimizer(config)))
        if tensors:
            for name, trained in self._trained().items():
                checkpoint.restore_update(trained.update, tensors[name], numbers[name])
            logger.info("resumed at %d images", self.seen)

    def _update(self, model: nn.Module, config: OptimizerConfig) -> Update:
        return Update(model, config, self.config.precision, self.processes.device)

    def _read(self) -> tuple[dict[str, checkpoint.Tensors], dict[str, Any]]:
        """Return tensors and numbers of the checkpoint that the main process finds; none for a new run."""
        folder = broadcast(checkpoint.newest_checkpoint(self.run) if self.processes.main else None)
        if folder is None:
            return {}, {"images_seen": 0, "skipped_updates": 0}
        return checkpoint.read_checkpoint(folder)

    def _position_of(self, positions: Any) -> Any:
        """Return this process' position in streamed data, from those of all processes."""
        if not positions or positions[0] is None:
            return None
        if len(positions) != self.processes.count:
            raise ValueError(
                f"{self.run}: expected the {len(positions)} processes that read this stream until now, found "
                f"{self.processes.count}"
            )
        return positions[self.processes.rank]

    def _trained(self) -> dict[str, TrainedNetwork]:
        """Return the trained networks by the name of the file of their optimiser's state."""
        trained = {"optimizer": self.generator}
        return trained if self.adversary is None else {**trained, "adversary_optimizer": self.adversary}

    def averaged_weights(self) -> dict[str, Tensor]:
        """Return the averaged model's state dict, whole, for the main process: a call for all."""
        return full_state(self.average.module, self.processes.main)

    def trained_weights(self) -> dict[str, Tensor]:
        """Return the model's state dict as it is, whole, for the main process: a call for all."""
        return full_state(self.stage.model, self.processes.main)

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one: a call for all processes; the main one writes."""
        if self.saved == self.seen:
            return
        main = self.processes.main
        tensors = {"model": self.trained_weights(), "average": self.averaged_weights()}
        numbers: dict[str, Any] = {
            "images_seen": self.seen,
            **self.finite.until_now(),
            "data": gather(self.task.data_position()),
        }
        if self.stage.adversary is not None:
            tensors["adversary"] = full_state(self.stage.adversary, main)
        for name, trained in self._trained().items():
            tensors[name], numbers[name] = checkpoint.update_tensors(trained.update, main)
        if main:
            log = self.config.log
            checkpoint.write_checkpoint(checkpoint.checkpoint_folder(self.run, self.seen), tensors, numbers)
            checkpoint.prune_checkpoints(self.run, log.keep_checkpoints, log.milestone_images)
        self.saved = self.seen
        self.processes.wait()


def discriminator_optimizer(config: RunConfig) -> OptimizerConfig:
    """Return the discriminator's optimiser: Adam at its own rate."""
    own = config.discriminator  # type: ignore[attr-defined]
    return OptimizerConfig("adamw", own.learning_rate, own.betas, weight_decay=0.0, clip=config.optimizer.clip)


def to_device(stage: Objective, config: RunConfig, device: torch.device) -> None:
    """Move all networks to the device, channels-last (which FSDP2 does not take); trained ones in training mode."""
    for module in stage.frozen.values():
        _channels_last(module.to(device))
    if stage.adversary is not None:
        _channels_last(stage.adversary.to(device)).train()
    model = stage.model.to(device)
    (model.to(memory_format=torch.contiguous_format) if config.parallel == "fsdp" else _channels_last(model)).train()


def _channels_last(module: nn.Module) -> nn.Module:
    """Lay out tensors of four dimensions channels last, in place; ``Module.to`` refuses a network with some of five."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module


def compile_networks(stage: Objective, config: RunConfig, device: torch.device) -> None:
    """Compile the networks in place, so that names in checkpoints stay; a user's own code is left as it is."""
    if not can_compile(device):
        return
    frozen = [module for module in stage.frozen.values() if not isinstance(module, ForeignEncoder)]
    # Sharded blocks are gathered one by one: each is a graph of its own.
    trained = blocks(stage.model) if config.parallel == "fsdp" else stage.compiled_parts()
    if device.type == "cpu" and has_fused_norms(stage.model):
        # The compiler takes many minutes for our networks there, and convolutions, most of a step, gain nothing.
        for module in (stage.model, *frozen):
            use_fused_norms(module)
        return
    if stage.adversary is not None:
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False  # the adaptive weight goes backward twice through LPIPS
        trained = [*trained, stage.adversary]
    for module in (*trained, *frozen):
        module.compile()
