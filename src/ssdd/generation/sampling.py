"""From noise to images: diffusers' flow-matching schedulers, classifier-free guidance, the decoder.

Sample i is a function of (seed, i, its class) and of no other sample: the batch size changes nothing but rounding.

Shapes: N samples, B batch, c latent channels, g x g latent grid, S side of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from ..data.pixels import tensor_to_image
from ..flow import Velocity
from .model import TIMESTEPS, null_class, predict_velocity
from .result import Generator

Sampler = Literal["euler", "heun"]
"""euler: one call of the network a step. heun: two, less one, and of second order."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        steps: of the sampler, on times from 1 to 0 in equal distances.
        guidance: v = v_none + guidance (v_class - v_none); 1 for none, with half of the computation.
        interval: times t, from and to, at which there is guidance (Kynkäänniemi et al. 2024).
        seed: sample i begins with noise that is a function of (seed, i).

    Raises ValueError for numbers out of range.
    """

    steps: int = 50
    guidance: float = 4.0
    interval: tuple[float, float] = (0.0, 1.0)
    sampler: Sampler = "euler"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seed < 0:
            raise ValueError(f"expected steps of at least 1 and a seed of at least 0, found {self.steps}, {self.seed}")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"expected a guidance of at least 0, found {self.guidance}")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"expected an interval of times from 0 to 1, found {self.interval}")
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"expected a sampler, euler or heun, found {self.sampler!r}")

    def describe(self) -> dict[str, Any]:
        """JSON types alone."""
        return {**asdict(self), "interval": list(self.interval)}


def integrate(velocity: Velocity, noise: Tensor, steps: int, sampler: Sampler = "euler") -> Tensor:
    """State at t = 0, float32, from noise (B, ...) at t = 1, by one of diffusers' schedulers.

    ``velocity``: of the library's convention, from noise to image; diffusers' is its negative. Its times are on the
    CPU, so that nobody waits for the device to know them.
    """
    scheduler = _scheduler(sampler, steps)
    x = noise.float()
    for timestep in scheduler.timesteps:
        t = (timestep / TIMESTEPS).expand(len(x))
        x = scheduler.step(-velocity(x, t).float(), timestep, x).prev_sample
    return x


def _scheduler(sampler: Sampler, steps: int) -> Any:
    if sampler == "heun":
        scheduler: Any = FlowMatchHeunDiscreteScheduler(num_train_timesteps=TIMESTEPS)
        scheduler.set_timesteps(steps)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    scheduler.set_begin_index(0)
    return scheduler


def guided_velocity(model: Any, labels: Tensor, sampling: Sampling) -> Velocity:
    """The velocity of a DiT for classes (B,), with guidance inside the interval. Its times are best on the CPU."""
    nothing = torch.full_like(labels, null_class(model))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        x = x.to(model.dtype)
        now = round(float(t[0]), 6)
        t = t.to(x.device, non_blocking=True)
        if sampling.guidance == 1 or not sampling.interval[0] <= now <= sampling.interval[1]:
            return predict_velocity(model, x, t, labels).float()
        both = predict_velocity(model, torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, nothing]))
        conditional, unconditional = both.float().chunk(2)
        return unconditional + sampling.guidance * (conditional - unconditional)

    return velocity


@torch.inference_mode()
def generate(
    generator: Generator,
    labels: Sequence[int | None],
    sampling: Sampling,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Normalised latents, float32 (N, c, g, g), on the model's device.

    Args:
        generator: a trained DiT.
        labels: class of each sample; None for no class in particular.
        sampling: how.
        numbers: i of each sample; 0 to N - 1 by default.
        batch_size: samples at a time.

    Raises ValueError for a class that there is not.
    """
    generator.facts.check_labels([label for label in labels if label is not None])
    model, order = generator.model, list(range(len(labels)) if numbers is None else numbers)
    if len(order) != len(labels):
        raise ValueError(f"expected a number for each of {len(labels)} samples, found {len(order)}")
    classes = torch.tensor([null_class(model) if label is None else label for label in labels], dtype=torch.int64)
    found = []
    for first in range(0, len(order), batch_size):
        part = slice(first, first + batch_size)
        noise = _noise(generator.facts.latent_shape, sampling.seed, order[part]).to(model.device)
        velocity = guided_velocity(model, classes[part].to(model.device), sampling)
        found.append(integrate(velocity, noise, sampling.steps, sampling.sampler))
    return torch.cat(found) if found else torch.empty(0, *generator.facts.latent_shape)


def _noise(shape: tuple[int, int, int], seed: int, numbers: Sequence[int]) -> Tensor:
    draws = []
    for number in numbers:
        state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
        random = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        draws.append(torch.randn(shape, generator=random, device="cpu"))
    return torch.stack(draws)


def generate_images(
    generator: Generator,
    decoder: Any,
    labels: Sequence[int | None],
    sampling: Sampling,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> Iterator[np.ndarray]:
    """Batches of images, uint8 (B, S, S, 3), in order: ``generate``, then an ``AutoencoderSSDD`` in its default steps.

    Raises ValueError before the first one if the decoder does not fit, or for a class that there is not.
    """
    generator.facts.check_decoder(decoder)
    generator.facts.check_labels([label for label in labels if label is not None])
    order = list(range(len(labels)) if numbers is None else numbers)
    return _images(generator, decoder, labels, sampling, order, batch_size)


def _images(
    generator: Generator,
    decoder: Any,
    labels: Sequence[int | None],
    sampling: Sampling,
    order: Sequence[int],
    batch_size: int,
) -> Iterator[np.ndarray]:
    for first in range(0, len(labels), batch_size):
        part = slice(first, first + batch_size)
        z = generate(generator, labels[part], sampling, order[part], batch_size)
        with torch.inference_mode():
            yield tensor_to_image(decoder.decode(generator.facts.denormalize(z).to(decoder.device)).sample.cpu())
