"""How fast is latent generation, from noise to images? A DiT and a decoder, KL-VAE against SSDD.

Weights are random: speed does not depend on them. All contenders make images of one size with the same DiT size, steps,
guidance, batch and dtype; what differs is the tokenizer, and with it the number of tokens that the DiT sees.

Shapes: B batch, c latent channels, g x g latent grid, S side of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autoencoder import AutoencoderSSDD
from ..dtypes import DTYPES
from ..generation.model import build_dit, dit_size
from ..generation.sampling import Sampling, guided_velocity, integrate
from ..nn.presets import decoder_size, encoder_size
from .config import GenerationBench
from .networks import Preparation, stable_diffusion_vae
from .throughput import count_flops
from .timing import Times, take_turns

CLASSES = 1000


@dataclass(frozen=True)
class GenerationSpeed:
    """One contender. times: of the DiT and of the decoder, for one batch. gflop: of each, for one image."""

    name: str
    latent: tuple[int, int, int]
    tokens: int
    dit: Times
    decode: Times
    dit_gflop: float
    decode_gflop: float

    @property
    def total(self) -> Times:
        return Times(tuple(a + b for a, b in zip(self.dit.rounds, self.decode.rounds, strict=True)))


@dataclass(frozen=True)
class _Contender:
    """A tokenizer's name and latent, and two functions: noise to latent, latent to images."""

    name: str
    latent: tuple[int, int, int]
    generate: Callable[[], Tensor]
    decode: Callable[[], Tensor]
    step: Callable[[], Tensor]
    """One call of the DiT as guidance makes it."""


def bench_generation(
    settings: GenerationBench, device: torch.device, step: Callable[[], object] = lambda: None
) -> list[GenerationSpeed]:
    """The KL-VAE on f8c4 first, then SSDD on f16c4 and on f8c4. Raises ValueError for sizes that do not fit.

    step: called ``3 * (rounds + 1)`` times, for a progress bar.
    """
    ours = f"SSDD-{settings.decoder}"
    decoder_size(settings.decoder)
    unit = 16 * dit_size(settings.dit).patch
    if settings.image_size % unit:
        raise ValueError(
            f"expected an image size that is a multiple of {unit} (16 pixels a latent cell, patches of DiT-"
            f"{settings.dit}), found {settings.image_size}"
        )
    tokenizers = [("KL-VAE", "f8c4"), (ours, "f16c4"), (ours, "f8c4")]
    contenders = [_contender(kind, encoder, settings, device) for kind, encoder in tokenizers]
    times = take_turns({c.name: (c.generate, c.decode) for c in contenders}, settings.rounds, device, step)
    return [_speed(c, times[c.name], settings) for c in contenders]


def _contender(kind: str, encoder: str, settings: GenerationBench, device: torch.device) -> _Contender:
    size = encoder_size(encoder)
    grid, dtype = settings.image_size // size.factor, DTYPES[settings.dtype]
    latent = (size.latent_channels, grid, grid)
    how = Preparation(device, settings.dtype, "optimized", settings.compile)
    dit = how.plain(build_dit(settings.dit, latent, CLASSES))
    vae = _autoencoder(kind, encoder, settings, how)
    if settings.compile:
        dit.compile()
    labels = torch.arange(settings.batch_size, device=device) % CLASSES
    noise = torch.randn(settings.batch_size, *latent, device=device)
    velocity = guided_velocity(dit, labels, Sampling(steps=settings.steps, guidance=settings.guidance))
    half = torch.full((settings.batch_size,), 0.5)

    @torch.inference_mode()
    def generate() -> Tensor:
        return integrate(velocity, noise, Sampling(steps=settings.steps).times)

    @torch.inference_mode()
    def decode() -> Tensor:
        return vae.decode(noise.to(dtype)).sample

    @torch.inference_mode()
    def once() -> Tensor:
        return velocity(noise, half)

    return _Contender(f"{kind} {encoder}", latent, generate, decode, once)


def _autoencoder(kind: str, encoder: str, settings: GenerationBench, how: Preparation) -> Any:
    """The KL-VAE of Stable Diffusion's shape, or ours with one decoding step."""
    if kind != "KL-VAE":
        vae = AutoencoderSSDD.from_preset(encoder, settings.decoder, num_inference_steps=1, has_encoder=False)
        return how.ours(vae)
    vae = stable_diffusion_vae()
    del vae.encoder
    return how.peer(vae, vae.decoder)


def _speed(contender: _Contender, times: list[Times], settings: GenerationBench) -> GenerationSpeed:
    patch = dit_size(settings.dit).patch
    calls = {"dit": contender.step, "decode": contender.decode}
    flops = {name: count_flops(call) / settings.batch_size / 1e9 for name, call in calls.items()}
    tokens = (contender.latent[1] // patch) ** 2
    dit, decode = times
    work = flops["dit"] * settings.steps
    return GenerationSpeed(contender.name, contender.latent, tokens, dit, decode, work, flops["decode"])
