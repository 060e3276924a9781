"""From noise to images: an ODE solver on the velocity, guidance, the decoder.

Sample i is a function of (seed, i, its class) and of no other sample: the batch size changes nothing but rounding.

Shapes: N samples, B batch, c latent channels, h x w latent grid, S side of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..data.pixels import tensor_to_image
from ..evaluation.decoders import LatentDecoder
from ..flow import Velocity
from ..nn.noise import image_generators
from .model import null_class, predict_velocity
from .result import Generator

Sampler = Literal["euler", "heun"]
"""euler: one call of the network a step, first order. heun: two calls a step, second order."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        steps: of the solver, from t = 1, noise, to t = 0, the image.
        guidance: v = v_0 + guidance (v_class - v_0), where v_0 is the velocity without a class, or the guide's; 1 for
            none, with half of the computation.
        interval: times t, from and to, at which there is guidance (Kynkäänniemi et al. 2024).
        sampler: the solver.
        seed: sample i begins with noise that is a function of (seed, i).
        shift: s of the times t = s u / (1 + (s - 1) u) at equal steps of u: more of them near the noise for s > 1, as
            larger latents need (SD3, Esser et al. 2024, equation 23).

    Raises ValueError for numbers out of range.
    """

    steps: int = 50
    guidance: float = 4.0
    interval: tuple[float, float] = (0.0, 1.0)
    sampler: Sampler = "euler"
    seed: int = 0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seed < 0:
            raise ValueError(f"expected steps of at least 1 and a seed of at least 0, found {self.steps}, {self.seed}")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"expected a guidance of at least 0, found {self.guidance}")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"expected an interval of times from 0 to 1, found {self.interval}")
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"expected a sampler, euler or heun, found {self.sampler!r}")
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"expected a shift of the times above 0, found {self.shift}")

    @property
    def calls(self) -> int:
        """Return how often the velocity is computed for a sample."""
        return self.steps * (2 if self.sampler == "heun" else 1)

    @property
    def times(self) -> list[float]:
        """Return the steps + 1 times from 1 to 0."""
        equal = [1 - i / self.steps for i in range(self.steps + 1)]
        return [self.shift * u / (1 + (self.shift - 1) * u) for u in equal]

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {**asdict(self), "interval": list(self.interval), "calls": self.calls}

    @classmethod
    def read(cls, described: dict[str, Any]) -> "Sampling":
        """Return what ``describe`` described. Raises TypeError or ValueError for anything else."""
        settings = {name: value for name, value in described.items() if name != "calls"}
        return cls(**{**settings, "interval": tuple(settings["interval"])})


def integrate(velocity: Velocity, noise: Tensor, times: Sequence[float], sampler: Sampler = "euler") -> Tensor:
    """Solve dx/dt = -v(x, t) from the noise (B, ...) at the first time to the last one; float32.

    The velocity is the library's, from noise to image (see ``flow``). Its times are on the CPU, so that nobody waits
    for the device to know them.
    """
    x = noise.float()
    for t, next_t in pairwise(times):
        step = t - next_t
        v = velocity(x, torch.full((len(x),), t)).float()
        if sampler == "heun":
            v = (v + velocity(x + step * v, torch.full((len(x),), next_t)).float()) / 2
        x = x + step * v
    return x


def guided_velocity(model: Any, labels: Tensor, sampling: Sampling, guide: Any = None) -> Velocity:
    """Return the velocity of a DiT for classes (B,), with guidance inside the interval. Its times are best on the CPU.

    Args:
        model: the DiT.
        labels: classes.
        sampling: scale and interval of the guidance.
        guide: a smaller or earlier DiT on the same latents, from whose velocity for the same classes the guidance leads
            away (autoguidance, Karras et al. 2024), instead of that of no class.
    """
    nothing = torch.full_like(labels, null_class(model))
    plain = sampling.guidance == 1 or (guide is None and torch.equal(labels, nothing))  # there is nothing to lead to

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        x = x.to(model.dtype)
        now = round(float(t[0]), 6)
        t = t.to(x.device, non_blocking=True)
        if plain or not sampling.interval[0] <= now <= sampling.interval[1]:
            return predict_velocity(model, x, t, labels).float()
        if guide is not None:
            v = predict_velocity(model, x, t, labels).float()
            base = predict_velocity(guide, x.to(guide.dtype), t, labels).float()
        else:
            both = predict_velocity(model, torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, nothing]))
            v, base = both.float().chunk(2)
        return base + sampling.guidance * (v - base)

    return velocity


@torch.inference_mode()
def generate(
    generator: Generator,
    labels: Sequence[int | None],
    sampling: Sampling,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
    guide: Generator | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Return normalised latents, float32 (N, c, h, w), on the model's device.

    Args:
        generator: a trained DiT.
        labels: class of each sample; None for no class in particular.
        sampling: how.
        numbers: i of each sample; 0 to N - 1 by default.
        batch_size: samples at a time.
        guide: see ``guided_velocity``.
        grid: (h, w); that of the square latents of the training by default.

    Raises ValueError for a class that there is not, or a guide on other latents.
    """
    generator.facts.check_labels([label for label in labels if label is not None])
    if guide is not None:
        generator.facts.check_guide(guide.facts)
    model, order = generator.model, list(range(len(labels)) if numbers is None else numbers)
    if len(order) != len(labels):
        raise ValueError(f"expected a number for each of {len(labels)} samples, found {len(order)}")
    channels, *square = generator.facts.latent_shape
    height, width = square if grid is None else grid
    classes = torch.tensor([null_class(model) if label is None else label for label in labels], dtype=torch.int64)
    samples = []
    for first in range(0, len(order), batch_size):
        part = slice(first, first + batch_size)
        generators = image_generators(sampling.seed, order[part])
        noise = [torch.randn((channels, height, width), generator=g, device="cpu") for g in generators]
        guide_model = None if guide is None else guide.model
        velocity = guided_velocity(model, classes[part].to(model.device), sampling, guide_model)
        samples.append(integrate(velocity, torch.stack(noise).to(model.device), sampling.times, sampling.sampler))
    return torch.cat(samples) if samples else torch.empty(0, channels, height, width)


def generate_images(
    generator: Generator,
    decoder: LatentDecoder,
    labels: Sequence[int | None],
    sampling: Sampling,
    numbers: Sequence[int] | None = None,
    batch_size: int = 32,
    guide: Generator | None = None,
    grid: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Return batches of images, uint8 (B, H, W, 3), in order: ``generate``, then the decoder in its default steps.

    Raises ValueError before the first one if the decoder has other channels or another factor, or for a class that
    there is not. Whether it is of the same encoder is compared where it is loaded.
    """
    facts = generator.facts
    found = (decoder.latent_channels, decoder.spatial_factor)
    expected = (facts.latent_shape[0], facts.tokenizer.spatial_factor)
    if found != expected:
        raise ValueError(
            f"expected a decoder of f{expected[1]}c{expected[0]}, as the generator's latents, found one of "
            f"f{found[1]}c{found[0]}: pass the model that tokenized the data"
        )
    facts.check_labels([label for label in labels if label is not None])
    order = list(range(len(labels)) if numbers is None else numbers)

    def images() -> Iterator[np.ndarray]:
        for first in range(0, len(labels), batch_size):
            part = slice(first, first + batch_size)
            z = generate(generator, labels[part], sampling, order[part], batch_size, guide, grid)
            yield tensor_to_image(decoder.decode(facts.denormalize(z)).sample.cpu())

    return images()
