"""How much a training step computes, and what share of the machine's peak that is."""

import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..objectives.adversarial import hinge_discriminator_loss
from .config import RunConfig
from .random import BatchRandom
from .stages.base import Objective

_LATE = sys.maxsize
"""A clock at which all networks are at play."""


def training_flops(stage: Objective, config: RunConfig, device: torch.device) -> int:
    """Return the operations of matrix products and convolutions for one training image, forward and backward.

    Counted on the losses of one image, so that frozen networks are in it, and both players where there is a
    discriminator; a multiplication and an addition are two. What is computed twice to save memory counts once.
    Leaves no gradient behind.
    """
    random = BatchRandom(config.seed, 0, 1, device)
    recomputing = [m for m in stage.model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in recomputing:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    with FlopCounterMode(display=False) as counter:
        losses = stage.losses(stage.model, stage.example(device), random, seen=_LATE)
        losses.total.backward()
        if stage.adversary is not None and (inputs := losses.discriminator_inputs) is not None:
            both = torch.cat([inputs.real, inputs.fake])
            t = None if inputs.t is None else torch.cat([inputs.t, inputs.t])
            hinge_discriminator_loss(*stage.adversary(both, t).chunk(2)).backward()
            stage.adversary.zero_grad(set_to_none=True)
    for module in recomputing:
        module.gradient_checkpointing = True  # type: ignore[assignment]
    stage.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
