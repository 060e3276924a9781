"""Everything that one update depends on and changes: networks, average, optimisers, clock. It is what a checkpoint
holds, and the only place that knows how networks are placed, compiled and spread over processes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.own_code import ForeignEncoder
from ..optimization import can_compile, has_fused_norms, use_fused_norms
from ..processes import Processes, all_agree, told_by_main
from . import checkpoint
from .average import Average
from .config import RunConfig
from .distribution import blocks, shard, spread, whole_state
from .optimizers import Update
from .stages.base import Objective
from .task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Player:
    """A trained network as it is called (perhaps wrapped), and its optimiser."""

    network: nn.Module
    update: Update


class TrainingState:
    """The stage's networks on their device, ready for the update after ``seen`` images.

    Starts from the newest undamaged checkpoint of ``run``, if there is one.

    Raises ValueError if that run had another number of items, DamagedCheckpoint if there is no good one.
    """

    def __init__(self, task: Task, processes: Processes, run: Path) -> None:
        stage, config = task.stage, task.config
        self.task, self.stage, self.config, self.processes, self.run = task, stage, config, processes, run
        self.average = Average(stage.model, config.average, config.batch_size)
        # Before the model is spread over processes: a checkpoint has it in one piece.
        tensors, numbers = self._read()
        self.seen, self.skipped = int(numbers["images_seen"]), int(numbers["skipped_updates"])
        self.saved = self.seen if tensors else -1
        if tensors:
            stage.model.load_state_dict(tensors["model"])
            self.average.averaged.load_state_dict(tensors["average"])
            if stage.adversary is not None:
                stage.adversary.load_state_dict(tensors["adversary"])
        if config.compile:
            compile_networks(stage, config, processes.device)
        network = spread(stage.model, processes, config.parallel)
        if config.parallel == "fsdp":
            shard(self.average.module, processes)
        self.generator = Player(network, Update(stage.model, config.optimizer, config.precision, processes.device))
        self.adversary: Player | None = None
        if stage.adversary is not None:
            network = spread(stage.adversary, processes, "ddp")
            self.adversary = Player(network, Update(stage.adversary, config.optimizer, config.precision, processes.device))
        if tensors:
            for name, player in self._players().items():
                checkpoint.restore_optimizer(player.update.optimizer, tensors[name], numbers[name])
            logger.info("resumed at %d images", self.seen)

    def _read(self) -> tuple[dict[str, checkpoint.Tensors], dict[str, Any]]:
        """Tensors and numbers of the checkpoint that the main process finds, in all processes; none for a new run."""
        folder = told_by_main(checkpoint.newest_checkpoint(self.run) if self.processes.main else None)
        if folder is None:
            return {}, {"images_seen": 0, "skipped_updates": 0}
        try:
            tensors, numbers = checkpoint.read_checkpoint(folder)
        except checkpoint.DamagedCheckpoint as error:
            all_agree(False)
            raise checkpoint.DamagedCheckpoint(f"{error} (seen by process {self.processes.rank})") from error
        if not all_agree(True):
            raise checkpoint.DamagedCheckpoint(f"{folder}: another process could not read it")
        unit = self.task.unit
        if numbers.get(unit) != self.task.items:
            raise ValueError(
                f"{self.run}: expected the {numbers.get(unit)} {unit} that this run began with, found "
                f"{self.task.items}: the order of all of them would change; choose another --out folder"
            )
        return tensors, numbers

    def _players(self) -> dict[str, Player]:
        """By the name of the file of their optimiser's state."""
        players = {"optimizer": self.generator}
        return players if self.adversary is None else {**players, "adversary_optimizer": self.adversary}

    def averaged_weights(self) -> dict[str, Tensor]:
        """The averaged model's state dict, whole, for the main process: a call for all."""
        return whole_state(self.average.module, self.processes.main)

    def trained_weights(self) -> dict[str, Tensor]:
        """The model's state dict as it is, whole, for the main process: a call for all."""
        return whole_state(self.stage.model, self.processes.main)

    def save(self) -> None:
        """A checkpoint of this moment, unless there is one: a call for all processes; the main one writes."""
        if self.saved == self.seen:
            return
        main = self.processes.main
        tensors = {"model": self.trained_weights(), "average": whole_state(self.average.averaged, main)}
        numbers: dict[str, Any] = {
            "images_seen": self.seen,
            "skipped_updates": self.skipped,
            self.task.unit: self.task.items,
        }
        if self.stage.adversary is not None:
            tensors["adversary"] = whole_state(self.stage.adversary, main)
        for name, player in self._players().items():
            tensors[name], numbers[name] = checkpoint.optimizer_tensors(player.update.optimizer, main)
        if main:
            log = self.config.log
            checkpoint.write_checkpoint(checkpoint.checkpoint_folder(self.run, self.seen), tensors, numbers)
            checkpoint.prune_checkpoints(self.run, log.keep_checkpoints, log.milestone_images)
        self.saved = self.seen
        self.processes.wait()


def place(stage: Objective, config: RunConfig, device: torch.device) -> None:
    """All networks to the device, channels-last (which FSDP2 does not take); the trained ones in training mode."""
    form = torch.contiguous_format if config.parallel == "fsdp" else torch.channels_last
    for module in stage.frozen.values():
        module.to(device).to(memory_format=torch.channels_last)
    if stage.adversary is not None:
        stage.adversary.to(device).to(memory_format=torch.channels_last).train()
    stage.model.to(device).to(memory_format=form).train()


def compile_networks(stage: Objective, config: RunConfig, device: torch.device) -> None:
    """``torch.compile`` in place, so that names in checkpoints stay. A user's own encoder is left as it is."""
    own = [module for module in stage.frozen.values() if not isinstance(module, ForeignEncoder)]
    # Sharded blocks are gathered one by one: each is a graph of its own.
    trained = blocks(stage.model) if config.parallel == "fsdp" else stage.compiled_parts()
    if device.type == "cpu" and has_fused_norms(stage.model):
        # The compiler takes many minutes for our networks there, and convolutions, most of a step, gain nothing.
        if can_compile(device):
            for module in (stage.model, *own):
                use_fused_norms(module)
        return
    if stage.adversary is not None:
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False  # the adaptive weight goes backward twice through LPIPS
        trained = [*trained, stage.adversary]
    for module in (*trained, *own):
        module.compile()
