"""One update: batch -> losses -> backward -> clip -> step -> average; and how much it computes."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..objectives.adversarial import discriminator_loss
from ..runtime.dtypes import torch_dtype
from .config import RunConfig, microbatch_size
from .distribution import accumulating
from .optimizers import discriminator_rate, evaluation_point, learning_rate
from .parts import PartWatch
from .random import BatchRandom, seed_global_generators
from .stages.base import Objective
from .state import TrainingState
from .task import Batch

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepResult:
    """Scalars of an update on the device, for the log; whether it was finite (else it was skipped)."""

    values: dict[str, Tensor]
    finite: Tensor
    rate: float


def take_update(state: TrainingState, batch: Batch, autocast: Autocast, watch: PartWatch | None = None) -> StepResult:
    """Train on this process' part of a batch and move the clock. Nothing here waits for the device with AdamW."""
    config = state.config
    seed_global_generators(config.seed, state.seen, state.processes.rank)
    values = _gradients(state, batch, autocast)
    rate = learning_rate(config, state.seen)
    values["gradient"], finite = state.generator.update.step(rate, watch)
    if state.adversary is not None and "discriminator" in values:
        own_rate = discriminator_rate(config, state.seen)
        values["discriminator_gradient"], also = state.adversary.update.step(own_rate)
        finite = finite & also
    state.seen += config.batch_size
    state.average.update(state.stage.model, state.seen, evaluation_point(state.generator.update))
    return StepResult(values, finite, rate)


def _gradients(state: TrainingState, batch: Batch, autocast: Autocast) -> dict[str, Tensor]:
    """Add up gradients over the microbatches. Return the mean losses."""
    config, device = state.config, state.processes.device
    size = microbatch_size(config, state.processes.count)
    pieces = batch.split(size)
    means: dict[str, Tensor] = {}
    for i, piece in enumerate(pieces):
        last, inputs = i == len(pieces) - 1, state.task.on_device(piece, device)
        first = state.seen + state.processes.rank * len(batch) + i * size  # position in the run
        random = BatchRandom(config.seed, first, len(piece), device)
        with accumulating(state.generator.network, last):
            with autocast():
                losses = state.stage.losses(state.generator.network, inputs, random, state.seen)
            state.generator.update.backward(losses.total, 1 / len(pieces))
        values = {"total": losses.total, **losses.terms}
        if state.adversary is not None and losses.discriminator_inputs is not None:
            with accumulating(state.adversary.network, last):
                with autocast():
                    loss = discriminator_loss(state.adversary.network, losses.discriminator_inputs)
                state.adversary.update.backward(loss, 1 / len(pieces))
            values["discriminator"] = loss
        for name, value in values.items():
            means[name] = means.get(name, 0) + value.detach() / len(pieces)
    return means


def autocast_for(config: RunConfig, device: torch.device) -> Autocast:
    """Return autocast to the config's precision on the device's type, or nothing for fp32."""
    if config.precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch_dtype(config.precision))


def training_flops(stage: Objective, config: RunConfig, device: torch.device) -> int:
    """Return the operations of matrix products and convolutions for one training image, forward and backward.

    They are counted on the losses of one image, so that frozen networks are in it, and the discriminator where there is
    one; a multiplication and an addition are two. What is computed twice to save memory counts once. No gradient stays.
    """
    random = BatchRandom(config.seed, 0, 1, device)
    recomputing = [m for m in stage.model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in recomputing:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    with FlopCounterMode(display=False) as counter:
        losses = stage.losses(stage.model, stage.example(device), random, seen=sys.maxsize)  # all losses have come in
        losses.total.backward()
        if stage.adversary is not None and losses.discriminator_inputs is not None:
            discriminator_loss(stage.adversary, losses.discriminator_inputs).backward()
            stage.adversary.zero_grad(set_to_none=True)
    for module in recomputing:
        module.gradient_checkpointing = True  # type: ignore[assignment]
    stage.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
