"""The target of distillation: the image that a teacher reaches in many steps (arXiv 2510.04961).

Shapes: B batch, H x W pixels, c latent channels, h x w latent grid.
"""

import torch
from torch import Tensor, nn

from .. import flow

TEACHER_STEPS = 12


@torch.no_grad()
def teacher_image(teacher: nn.Module, z: Tensor, noise: Tensor, steps: int = TEACHER_STEPS) -> Tensor:
    """Image of the latent z (B, c, h, w) by ``steps`` Euler steps from the noise (B, 3, H, W); same shape, float32.

    teacher: the frozen velocity network, in eval mode.
    """
    return flow.euler_sample(lambda x_t, t: teacher(x_t, t, z), noise, steps)
