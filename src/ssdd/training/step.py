"""One update: gradients over the microbatches, clipped steps of the networks at play, the average."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.adversarial import hinge_discriminator_loss
from .config import RunConfig, microbatch_size
from .distribution import accumulating
from .optimizers import learning_rate
from .random import BatchRandom, seed_global_generators
from .stages.base import Judged
from .state import Player, TrainingState
from .task import Batch

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Taken:
    """What an update was: scalars on the device, for the log; whether it was finite (else it was skipped)."""

    values: dict[str, Tensor]
    finite: Tensor
    rate: float


def take_update(state: TrainingState, batch: Batch, autocast: Autocast) -> Taken:
    """Trains on this process' part of a batch and moves the clock. Does not wait for the device."""
    config = state.config
    seed_global_generators(config.seed, state.seen, state.processes.rank)
    values = _gradients(state, batch, autocast)
    rate = learning_rate(config, state.seen)
    values["gradient"], finite = state.generator.update.step(rate)
    if state.adversary is not None and "discriminator" in values:
        values["discriminator_gradient"], also = state.adversary.update.step(rate)
        finite = finite & also
    state.seen += config.batch_size
    state.average.update(state.stage.model, state.seen)
    return Taken(values, finite, rate)


def _gradients(state: TrainingState, batch: Batch, autocast: Autocast) -> dict[str, Tensor]:
    """Adds up gradients over the microbatches. Returns the mean losses."""
    config, rank, device = state.config, state.processes.rank, state.processes.device
    size = microbatch_size(config, state.processes.count)
    pieces = batch.split(size)
    means: dict[str, Tensor] = {}
    for i, piece in enumerate(pieces):
        last, inputs = i == len(pieces) - 1, state.task.on_device(piece, device)
        first = rank * len(batch) + i * size
        part = slice(first, first + len(piece))
        random = BatchRandom(config.seed, state.seen, config.batch_size, part, device)
        with accumulating(state.generator.network, last):
            with autocast():
                losses = state.stage.losses(state.generator.network, inputs, random, state.seen)
            state.generator.update.backward(losses.total, 1 / len(pieces))
        found = {"total": losses.total, **losses.terms}
        if state.adversary is not None and losses.judged is not None:
            found["discriminator"] = _judge(state.adversary, losses.judged, 1 / len(pieces), last, autocast)
        for name, value in found.items():
            means[name] = means.get(name, 0) + value.detach() / len(pieces)
    return means


def _judge(adversary: Player, judged: Judged, scale: float, last: bool, autocast: Autocast) -> Tensor:
    """The discriminator's loss, and its gradients. Real and fake in one pass: one power iteration, one DDP pass."""
    t = None if judged.t is None else torch.cat([judged.t, judged.t])
    with accumulating(adversary.network, last):
        with autocast():
            logits = adversary.network(torch.cat([judged.real, judged.fake]), t)
        loss = hinge_discriminator_loss(*logits.float().chunk(2))
        adversary.update.backward(loss, scale)
    return loss


def autocast_for(config: RunConfig, device: torch.device) -> Autocast:
    """bf16 autocast on the device's type, or nothing."""
    if config.precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)
