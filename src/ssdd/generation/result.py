"""A trained DiT with all that its latents mean: the folder that a run leaves.

``model/`` of a run is a folder of diffusers' ``save_pretrained`` with ``generation.json`` beside its config: the shape
of a latent, the names of the classes, the statistics that normalised them, and the tokenizer that made them.

Shapes: B batch, c latent channels, g x g latent grid, f spatial factor of a decoder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.utils import is_accelerate_available
from torch import Tensor

from ..files import share
from ..normalization import latent_map
from .data import Latents, normalization_of
from .decoding import spatial_factor
from .model import prepare

FACTS = "generation.json"
_FORMAT = "ssdd-generation-1"


@dataclass(frozen=True)
class LatentFacts:
    """What a DiT's latents are.

    latent_shape: (c, g, g). classes: their names. statistics: as ``latent_map`` takes them. tokenizer: what the data's
    manifest says of the model that made them; its ``spatial_factor`` is checked against a decoder's.
    """

    latent_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    statistics: dict[str, Any]
    tokenizer: dict[str, Any]

    @classmethod
    def of(cls, data: Latents) -> "LatentFacts":
        """Of tokenized data. Raises ValueError without statistics."""
        c, height, width = data.latent_shape
        statistics = normalization_of(data.statistics, c)
        return cls((c, height, width), tuple(data.classes), statistics, dict(data.manifest.get("model") or {}))

    def check_labels(self, labels: "list[int]") -> None:
        """Raises ValueError for a class that there is not."""
        if wrong := [label for label in labels if not 0 <= label < len(self.classes)]:
            found = f"expected classes from 0 to {len(self.classes) - 1}, found {wrong[0]}"
            raise ValueError(found if self.classes else f"expected no class, this model knows none; found {wrong[0]}")

    def denormalize(self, z: Tensor) -> Tensor:
        """Normalised -> raw latents, (B, c, g, g), by the statistics of the training."""
        latents = latent_map(self.statistics, z)
        return z / latents.scale + latents.shift

    def check_decoder(self, decoder: Any) -> None:
        """Raises ValueError with one line unless an autoencoder's latents have these channels and this factor."""
        channels, factor = self.latent_shape[0], self.tokenizer.get("spatial_factor")
        if decoder.config.latent_channels != channels:
            raise ValueError(
                f"expected a decoder of {channels} latent channels, as the generator's, found one of "
                f"{decoder.config.latent_channels}: pass the model that tokenized the data"
            )
        if factor is not None and spatial_factor(decoder) != factor:
            raise ValueError(
                f"expected a decoder of spatial factor {factor}, as the generator's, found {spatial_factor(decoder)}: "
                "pass the model that tokenized the data"
            )


@dataclass(frozen=True)
class Generator:
    """A DiT in eval mode and its facts."""

    model: Any
    facts: LatentFacts


def save_generator(generator: Generator, folder: Path) -> None:
    """Weights in safetensors, config.json, generation.json."""
    generator.model.save_pretrained(folder, safe_serialization=True)
    for weights in folder.glob("*.safetensors"):
        share(weights)
    content = {"format": _FORMAT, **asdict(generator.facts)}
    (folder / FACTS).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_generator(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Generator:
    """The result of a run, by the run's folder or its ``model/``.

    Raises FileNotFoundError or ValueError with one line for anything else.
    """
    folder = Path(name)
    if not (folder / FACTS).is_file() and (folder / "model" / FACTS).is_file():
        folder = folder / "model"
    if not (folder / FACTS).is_file():
        unfinished = (folder / "checkpoints").is_dir()
        found = "a training run that is not finished" if unfinished else f"no {FACTS} there"
        raise FileNotFoundError(f"{name}: expected a trained generator, found {found}")
    facts = _read_facts(folder / FACTS)
    model = DiTTransformer2DModel.from_pretrained(
        str(folder), use_safetensors=True, torch_dtype=dtype, low_cpu_mem_usage=is_accelerate_available()
    )
    expected = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    if facts.latent_shape != expected or len(facts.classes) != model.config.num_embeds_ada_norm:
        raise ValueError(f"{folder}: {FACTS} and the model's config.json contradict each other")
    return Generator(prepare(model).to(device).eval(), facts)


def _read_facts(path: Path) -> LatentFacts:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        c, height, width = (int(n) for n in content["latent_shape"])
        classes = tuple(str(name) for name in content["classes"])
        return LatentFacts((c, height, width), classes, dict(content["statistics"]), dict(content["tokenizer"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a generator's {_FORMAT}, found {' '.join(str(error).split())}") from error
