"""A multi-step decoder to one step.

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

import copy

from torch import Tensor

from ... import flow
from ...objectives.kl import sample_posterior
from ..config import DistillationConfig
from ..random import BatchRandom
from .flow import FlowStage, TrainingPoint


class DistillationStage(FlowStage):
    """One-step student of a multi-step teacher, which is the frozen model that the student starts from.

    Both get the same noise and the posterior's mode; the student, at t = 1, is to reach in one step the image that
    the teacher reaches in ``config.teacher_steps`` (arXiv 2510.04961). LPIPS compares with the teacher's image too,
    REPA with the real.
    """

    config: DistillationConfig
    steps: tuple[int, ...] = (1,)

    def __init__(self, config: DistillationConfig, objectives: bool = True) -> None:
        super().__init__(config, objectives)
        teacher = copy.deepcopy(self.model.decoder).eval().requires_grad_(False)
        teacher.gradient_checkpointing = False
        self.frozen["teacher"] = teacher

    def training_point(self, images: Tensor, moments: Tensor | None, random: BatchRandom) -> TrainingPoint:
        """Take t = 1, the posterior's mode, and the teacher's image as the target."""
        assert moments is not None
        teacher, noise = self.frozen["teacher"], random.normal(*images.shape[1:])
        no_noise = images.new_zeros(images.shape[0], *self.latent_shape(images))
        z, _ = sample_posterior(moments, no_noise)
        target = flow.euler_sample(lambda x_t, t: teacher(x_t, t, z), noise, self.config.teacher_steps)
        return TrainingPoint(target, t=noise.new_ones(images.shape[0]), noise=noise, posterior_noise=no_noise)
