"""A trained DiT with all that its latents mean: the folder that a run leaves.

``model/`` of a run is a folder of diffusers' ``save_pretrained`` with ``generation.json`` beside its config: the shape
of a latent, the names of the classes, the statistics that normalised them, and the tokenizer that made them.

Shapes: B batch, c latent channels, g x g latent grid.
"""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers.utils import is_accelerate_available
from torch import Tensor

from ..autoencoder.normalization import latent_map
from ..checkpoints.config import read_config
from ..checkpoints.identity import LatentIdentity, OtherEncoderError
from ..checkpoints.own_code import one_line
from ..evaluation.weights import sha256
from ..runtime.files import share
from ..runtime.text import quiet
from ..tokenization import LatentDataset
from .data import normalization_of
from .model import model_class, null_class, prepare, sample_shape
from .transformer import LatentTransformer

FACTS = "generation.json"
_FORMAT = "ssdd-generation-1"


@dataclass(frozen=True)
class LatentFacts:
    """What a DiT's latents are.

    Attributes:
        latent_shape: (c, g, g).
        classes: their names.
        statistics: as ``latent_map`` takes them.
        tokenizer: whose latents they are.
    """

    latent_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    statistics: dict[str, Any]
    tokenizer: LatentIdentity

    @classmethod
    def of(cls, data: LatentDataset) -> "LatentFacts":
        """Return the facts of tokenized data. Raises ValueError without statistics."""
        c, height, width = data.latent_shape
        statistics = normalization_of(data.statistics, c)
        return cls((c, height, width), tuple(data.classes), statistics, data.model)

    def check_labels(self, labels: "list[int]") -> None:
        """Raise ValueError for a class that there is not."""
        known = range(len(self.classes))
        if wrong := [n for n in labels if not isinstance(n, Integral) or isinstance(n, bool) or n not in known]:
            found = f"expected classes from 0 to {len(self.classes) - 1}, found {wrong[0]}"
            raise ValueError(found if self.classes else f"expected no class, this model knows none; found {wrong[0]}")

    def denormalize(self, z: Tensor) -> Tensor:
        """Return raw latents (B, c, g, g) of normalised ones, by the statistics of the training."""
        latents = latent_map(self.statistics, z)
        return z / latents.scale + latents.shift

    def check_guide(self, guide: "LatentFacts") -> None:
        """Raise ValueError unless a guide was trained on the same latents, normalised alike, with the same classes."""
        if not self.tokenizer.same_encoder(guide.tokenizer):
            raise OtherEncoderError(
                f"expected a guide on latents of {self.tokenizer}, as the generator, found one on those of "
                f"{guide.tokenizer}"
            )
        for name in ("latent_shape", "classes", "statistics"):
            if msgspec.to_builtins(getattr(self, name)) != msgspec.to_builtins(getattr(guide, name)):
                raise ValueError(f"expected a guide with the generator's {name}, found another's")


@dataclass(frozen=True)
class Generator:
    """A DiT in eval mode and its facts. folder: where it lies, if it was saved."""

    model: Any
    facts: LatentFacts
    folder: Path | None = None

    @cached_property
    def digest(self) -> str | None:
        """Return the SHA-256 of its files of weights, its config and its facts."""
        if self.folder is None:
            return None
        return sha256(*sorted(self.folder.glob("*.safetensors")), self.folder / "config.json", self.folder / FACTS)

    def latent_grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Return the grid (h, w) of an image of these pixels; None for the side of the training's square images.

        Raises ValueError for sides that are not whole patches, or for a network that takes its own grid alone.
        """
        _, *square = self.facts.latent_shape
        factor, patch = self.facts.tokenizer.spatial_factor, self.model.config.patch_size
        sides = [own * factor if side is None else side for own, side in zip(square, (height, width), strict=True)]
        if any(side % (factor * patch) for side in sides):
            raise ValueError(f"expected sides that are multiples of {factor * patch} px, found {sides[0]} x {sides[1]}")
        grid = (sides[0] // factor, sides[1] // factor)
        if grid != tuple(square) and not isinstance(self.model, LatentTransformer):
            own = " x ".join(str(side * factor) for side in square)
            raise ValueError(f"expected {own} px, all that diffusers' DiT takes, found {sides[0]} x {sides[1]}")
        return grid


def save_generator(generator: Generator, folder: Path) -> None:
    """Write weights in safetensors, config.json, generation.json."""
    generator.model.save_pretrained(folder, safe_serialization=True)
    for weights in folder.glob("*.safetensors"):
        share(weights)
    content = {"format": _FORMAT, **msgspec.to_builtins(generator.facts)}
    (folder / FACTS).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_facts(name: str | Path) -> LatentFacts:
    """Return the facts of a run's result, by the run's folder or its ``model/``. Raises as ``load_generator``."""
    return _read_facts(_find_folder(name) / FACTS)


def parse_classes(names: Sequence[str], facts: LatentFacts) -> list[int]:
    """Return the numbers of some classes, or of ``all``.

    Each is a whole name, a number, the part of one name alone, such as tench of "tench, Tinca tinca", or #10, the
    number 10 where that is the name of another class.

    Raises ValueError for a class that there is not, a part of several, or a number that is another class' name.
    """
    if tuple(names) == ("all",):
        return list(range(len(facts.classes)))
    numbers: dict[str, int] = {}
    if not all(name.startswith("#") for name in names):
        for number, name in enumerate(facts.classes):
            if numbers.setdefault(name, number) != number:
                raise ValueError(f"expected classes of different names, found {name!r} twice: name them by #NUMBER")
    classes = [_class(name.strip(), numbers, facts.classes) for name in names]
    facts.check_labels(classes)
    return classes


def _class(name: str, numbers: dict[str, int], classes: tuple[str, ...]) -> int:
    if name in numbers:
        return _unless_ambiguous(name, numbers, len(classes))
    if re.fullmatch(r"#?-?\d+", name):
        return int(name.removeprefix("#"))
    return _class_with(name, classes)


def _unless_ambiguous(name: str, numbers: dict[str, int], count: int) -> int:
    """Return the class of a name, unless the name is also the number of another class."""
    number = numbers[name]
    if name.isdecimal() and int(name) != number and int(name) < count:
        raise ValueError(
            f"expected a class that is named in one way, found {name!r}, the name of class #{number} and the number of "
            f"another: pass #{number} or #{int(name)}"
        )
    return number


def _class_with(part: str, names: tuple[str, ...]) -> int:
    """Return the class whose name has the part, as one of its synonyms before anywhere in it."""
    wanted = part.casefold()
    synonyms = [i for i, name in enumerate(names) if wanted in (word.strip().casefold() for word in name.split(","))]
    anywhere = [i for i, name in enumerate(names) if wanted and wanted in name.casefold()]
    candidates = synonyms or anywhere
    if len(candidates) == 1:
        return candidates[0]
    expected = "expected --classes all, or numbers or names of classes"
    if not candidates:
        near = difflib.get_close_matches(part, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; ssdd generate classes RUN lists them"
        raise ValueError(f"{expected}, found {part!r}{hint}")
    listed = ", ".join(repr(names[i]) for i in candidates[:5])
    raise ValueError(f"{expected}, found {part!r}, a part of {len(candidates)} names: {listed}")


def load_generator(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Generator:
    """Return the result of a run, by the run's folder or its ``model/``.

    Raises FileNotFoundError or ValueError with one line for anything else.
    """
    folder = _find_folder(name)
    facts = _read_facts(folder / FACTS)
    config = read_config(folder)
    try:
        with quiet("diffusers"):
            model, info = model_class(config.get("_class_name")).from_pretrained(
                str(folder),
                use_safetensors=True,
                torch_dtype=dtype,
                low_cpu_mem_usage=is_accelerate_available(),
                output_loading_info=True,
            )
    except Exception as error:  # whatever diffusers makes of a damaged config or file of weights
        raise ValueError(
            f"{folder}: expected a generator, found damaged files ({one_line(error)[:400]}): copy or export it again"
        ) from error
    if info["missing_keys"]:  # diffusers would fill them with random numbers
        missing = min(info["missing_keys"])
        raise ValueError(f"{folder}: expected all weights of a generator, found no {missing}: copy or export it again")
    if facts.latent_shape != sample_shape(model) or len(facts.classes) != null_class(model):
        raise ValueError(f"{folder}: {FACTS} and the model's config.json contradict each other")
    return Generator(prepare(model).to(device).eval(), facts, folder)


def _find_folder(name: str | Path) -> Path:
    folder = Path(name)
    if not (folder / FACTS).is_file() and (folder / "model" / FACTS).is_file():
        folder = folder / "model"
    if not (folder / FACTS).is_file():
        unfinished = (folder / "checkpoints").is_dir()
        found = "a training run that is not finished" if unfinished else f"no {FACTS} there"
        raise FileNotFoundError(f"{name}: expected a trained generator, found {found}")
    return folder


def _read_facts(path: Path) -> LatentFacts:
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        facts = msgspec.convert(content, LatentFacts)
        return replace(facts, statistics=normalization_of(facts.statistics, facts.latent_shape[0]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a generator's {_FORMAT}, found {' '.join(str(error).split())}") from error
