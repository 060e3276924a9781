"""Flow matching: the path between image and noise, the law of the time, the Euler sampler. Knows no network.

Convention: t in [0, 1], t = 0 the image, t = 1 pure noise; ``x_t = (1 - t) x + t eps`` and the velocity is
``v = x - eps``, the direction from noise to image, so that ``x = x_t + t v`` (arXiv 2510.04961).
"""

import itertools
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x_t, t)`` with x_t (B, ...) and t (B,), or (1,) where all have the same; returns a tensor like x_t."""


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Point of the path, ``x_t = (1 - t) x + t noise``. x, noise: (B, ...); t: (B,) in [0, 1]."""
    t = _per_sample(t, x)
    return (1 - t) * x + t * noise


def target_velocity(x: Tensor, noise: Tensor) -> Tensor:
    """Velocity that the network learns, ``v = x - noise``, the same all along the path."""
    return x - noise


def predict_image(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Image at the end of a straight path, ``x = x_t + t v``. x_t, velocity: (B, ...); t: (B,)."""
    return x_t + _per_sample(t, x_t) * velocity


def logit_normal_time(normal: Tensor) -> Tensor:
    """Training times ``t = sigmoid(n)`` of standard normal draws n: most weight in the middle of the path."""
    return torch.sigmoid(normal)


def euler_times(steps: int) -> list[float]:
    """Return times ``t_i = (1 - i/N)^2``, i = 0 ... N, from 1 to 0: shorter steps near the image.

    Raises ValueError unless ``steps`` is a positive whole number.
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"expected a positive whole number of steps, found {steps!r}")
    return [(1 - i / steps) ** 2 for i in range(steps + 1)]


def euler_sample(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Image from noise by ``steps`` Euler steps. One step is ``noise + v(noise, 1)``: single-step decoding.

    Args:
        velocity: the network, its latent already bound.
        noise: (B, ...) standard normal, the state at t = 1.
        steps: N, number of velocity evaluations.

    Returns:
        (B, ...) state at t = 0, float32 or wider: a step of the half types would round the sum.
    """
    x = noise if noise.dtype == torch.float64 else noise.float()
    times = euler_times(steps)
    for now, after in itertools.pairwise(times):
        t = torch.full((1,), now, dtype=x.dtype, device=x.device)
        x = x + (now - after) * velocity(x, t).to(x.dtype)
    return x


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to multiply a tensor of the rank of ``like``."""
    return t.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
