"""How much a training step computes, and what share of the machine's peak that is."""

import sys
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..objectives.adversarial import hinge_discriminator_loss
from .config import RunConfig
from .random import BatchRandom
from .stages.base import Objective

_LATE = sys.maxsize
"""A clock at which all networks are at play."""


def training_flops(stage: Objective, config: RunConfig, device: torch.device) -> int:
    """Floating point operations of matrix products and convolutions for one training image, forward and backward.

    Counted on the losses of one image, so that frozen networks are in it, and both players where there is a
    discriminator; a multiplication and an addition are two. What is computed twice to save memory counts once.
    Leaves no gradient behind.
    """
    random = BatchRandom(config.seed, 0, 1, slice(None), device)
    thrifty = [m for m in stage.model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in thrifty:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    with FlopCounterMode(display=False) as counter:
        losses = stage.losses(stage.model, stage.example(device), random, seen=_LATE)
        losses.total.backward()
        if stage.adversary is not None and losses.judged is not None:
            both = torch.cat([losses.judged.real, losses.judged.fake])
            t = None if losses.judged.t is None else torch.cat([losses.judged.t, losses.judged.t])
            hinge_discriminator_loss(*stage.adversary(both, t).chunk(2)).backward()
            stage.adversary.zero_grad(set_to_none=True)
    for module in thrifty:
        module.gradient_checkpointing = True  # type: ignore[assignment]
    stage.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Operations per second of a large square matrix product, the best of several: what this machine can do."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    best, begin = 0.0, time.perf_counter()
    for repeat in range(50):
        elapsed = _timed_product(a)
        if repeat:  # the first one warms up
            best = max(best, 2 * side**3 / elapsed)
        if repeat and time.perf_counter() - begin > seconds:
            break
    return best


def _timed_product(a: Tensor) -> float:
    begin = time.perf_counter()
    torch.mm(a, a)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begin
