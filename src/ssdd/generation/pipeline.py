"""Generator and decoder as one diffusers pipeline: a folder that ``DiffusionPipeline.from_pretrained`` loads.

The folder has a line of code of its own, so that diffusers asks for ``trust_remote_code=True``.

Shapes: N samples, c latent channels, h x w latent grid.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from ..autoencoder import AutoencoderSSDD
from ..data.pixels import tensor_to_image
from ..evaluation.autoencoders import PretrainedAutoencoder
from ..evaluation.decoders import LatentDecoder
from ..runtime.files import OutputExists, write_json
from ..training.export import write_result
from .result import Generator, LatentFacts, parse_classes
from .sampling import Sampler, Sampling, generate

_CODE = "pipeline"
_INDEX = "model_index.json"


class LatentDiffusionPipeline(DiffusionPipeline):
    """Class-conditional samples of a latent DiT, decoded: the images of ``ssdd generate sample``.

    Args:
        transformer: the DiT.
        vae: an AutoencoderSSDD or AutoencoderKL.
        facts: the fields of ``LatentFacts`` as JSON types.
    """

    def __init__(self, transformer: Any, vae: Any, facts: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(facts=facts)
        self.latent_facts = msgspec.convert(facts, LatentFacts)  # diffusers takes what has a default for a setting

    @torch.inference_mode()
    def __call__(
        self,
        classes: str | Sequence[int | str | None],
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        sampler: Sampler = "euler",
        interval: tuple[float, float] = (0.0, 1.0),
        shift: float = 1.0,
        seed: int = 0,
        output_type: str = "pil",
        batch_size: int = 32,
    ) -> ImagePipelineOutput:
        """Return N images, one of each class, as ``images``.

        Args:
            classes: numbers, names or unique parts of names; ``all`` for one image of every class; None for no class
                in particular.
            num_inference_steps, guidance_scale, sampler, interval, shift, seed: see ``Sampling``.
            output_type: pil; np, uint8 (N, H, W, 3); or latent, raw latents (N, c, h, w).
            batch_size: images that are sampled and decoded at a time; no image depends on it.

        Raises ValueError for a class that there is not, or numbers out of range.
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"expected output_type pil, np or latent, found {output_type!r}")
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, found {batch_size}")
        facts, labels = self.latent_facts, self._labels(classes)
        sampling = Sampling(num_inference_steps, guidance_scale, interval, sampler, seed, shift)
        z = generate(Generator(self.transformer, facts), labels, sampling, batch_size=batch_size)
        latents = facts.denormalize(z)
        if output_type == "latent":
            return ImagePipelineOutput(images=latents)
        pixels = self._decode(latents, batch_size)
        return ImagePipelineOutput(images=self.numpy_to_pil(pixels / 255) if output_type == "pil" else pixels)

    def _labels(self, classes: str | Sequence[int | str | None]) -> list[int | None]:
        """Return the class of each image."""
        labels: list[int | None] = []
        if isinstance(classes, str | list | tuple | range | np.ndarray):
            for wanted in [classes] if isinstance(classes, str) else classes:
                labels += parse_classes([wanted], self.latent_facts) if isinstance(wanted, str) else [wanted]
        if not labels:
            raise ValueError(f"expected a list of classes, one for each image, found {classes!r}")
        return labels

    def _decode(self, latents: Tensor, batch_size: int) -> np.ndarray:
        """Return uint8 (N, H, W, 3) of raw latents (N, c, h, w)."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast", False)
        if upcast:  # as pipelines of diffusers do: float16 would overflow
            self.vae.to(torch.float32)
        try:
            z = latents.to(self.vae.device, self.vae.dtype)
            return np.concatenate([tensor_to_image(self.vae.decode(part).sample.cpu()) for part in z.split(batch_size)])
        finally:
            if upcast:
                self.vae.to(torch.float16)


def save_pipeline(generator: Generator, decoder: LatentDecoder, folder: Path) -> None:
    """Write a pipeline's folder, with the code that loads it; it needs the package ``ssdd`` where it is loaded.

    Raises ValueError for a decoder that is none of diffusers' models, or needs more than a latent (frames, noise);
    OutputExists for a folder that holds something.
    """
    model, name = decoder.model, decoder.identity.name
    if not isinstance(model, AutoencoderSSDD):
        if not isinstance(model, PretrainedAutoencoder):
            raise ValueError(f"{name}: expected a saved model for a pipeline, found code of yours")
        if not model.interface.usual:
            raise ValueError(f"{name}: expected a decoder that is called as an AutoencoderKL, found {model.kind}")
        model = model.model
    if folder.exists() and any(folder.iterdir()):
        raise OutputExists(f"{folder} is not empty: choose another --out")
    pipeline = LatentDiffusionPipeline(generator.model, model, msgspec.to_builtins(generator.facts))

    def write(partial: Path) -> None:
        pipeline.save_pretrained(partial, safe_serialization=True)
        index = json.loads((partial / _INDEX).read_text())
        write_json(partial / _INDEX, index | {"_class_name": [_CODE, LatentDiffusionPipeline.__name__]})
        (partial / f"{_CODE}.py").write_text(
            f'"""Code of this pipeline: pip install ssdd."""\n\n'
            f"from {LatentDiffusionPipeline.__module__} import {LatentDiffusionPipeline.__name__}  # noqa: F401\n"
        )

    write_result(folder, write)
