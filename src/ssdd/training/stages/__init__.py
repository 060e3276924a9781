"""What is trained, and on which loss: one class per stage."""

from collections.abc import Callable

from ..config import TrainConfig
from .base import Stage
from .flow import DistillationStage, FlowStage
from .kl_vae import KLVAEStage

STAGES: dict[str, Callable[[TrainConfig], Stage]] = {
    "flow": FlowStage,
    "distillation": DistillationStage,
    "kl-vae": KLVAEStage,
}


def build_stage(config: TrainConfig) -> Stage:
    """The stage that ``config.stage`` names, with fresh or given weights."""
    return STAGES[config.stage](config)
