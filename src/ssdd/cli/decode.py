"""``ssdd decode``: latent files, or the folder of ``ssdd tokenize`` -> images."""

import fnmatch
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import tyro

from ..codec import LATENT_SUFFIX, EncodedImage, decode_image, load_encoded
from ..data.images import save_image
from ..text import one_safe_line
from .common import DEFAULT_MODEL, ModelOptions, check_outputs, for_each, parse_options, require, tile_if_large

if TYPE_CHECKING:
    from ..autoencoder import AutoencoderSSDD
    from ..tokenization.format import ModelInfo


@dataclass(frozen=True)
class DecoderOptions(ModelOptions):
    """Which autoencoder, and how it runs."""

    model: str = ""
    """Embedded name, folder, or Hugging Face id; by default the one that tokenized data are of, for latent files
    ssdd-f8c4-demo."""

    def or_else(self, model: str) -> ModelOptions:
        """With this model, if none was given."""
        return ModelOptions(self.model or model, self.device, self.dtype)


@dataclass(frozen=True)
class Decode:
    """Decode latent files of ssdd encode, or the folder of ssdd tokenize: writes OUT/NAME.png, or OUT/KEY.png for
    each latent. The images of a folder that are there already are kept, so that the same command goes on."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Latent files, or folders of them; or one folder of ssdd tokenize."""
    out: Path
    """Folder for the images."""
    steps: int | None = None
    """Decoding steps; the model's default if not given."""
    only: str | None = None
    """Of tokenized data, only the keys that fit a pattern like '00000000?-*'."""
    overwrite: bool = False
    """Replace existing files."""
    model: DecoderOptions = field(default_factory=DecoderOptions)


def parse(arguments: Sequence[str]) -> Decode:
    return parse_options(Decode, "decode", arguments)


def run(options: Decode) -> int:
    from ..tokenization.format import MANIFEST

    tokenized = [path for path in options.paths if (path / MANIFEST).is_file()]
    if tokenized and len(options.paths) > 1:
        raise ValueError(f"expected one folder of ssdd tokenize alone, found {len(options.paths)} paths")
    if tokenized:
        return _decode_set(options, tokenized[0])
    if options.only is not None:
        raise ValueError("expected a folder of ssdd tokenize for --only, found latent files")
    return _decode_files(options)


def _decode_files(options: Decode) -> int:
    files = require(find_latents(options.paths), "latent files", options.paths)
    check_outputs(options.out, [f"{stem}.png" for _, stem in files])
    autoencoder = options.model.or_else(DEFAULT_MODEL).load()

    def decode(item: tuple[Path, str]) -> None:
        path, stem = item
        _save(autoencoder, load_encoded(path), options, stem)

    return for_each(files, lambda item: str(item[0]), decode, "decoded")


def _decode_set(options: Decode, folder: Path) -> int:
    from ..tokenization import LatentDataset

    data = LatentDataset(folder)
    check_outputs(options.out, [])
    latents: Sequence[int] = range(len(data))
    if options.only is not None:
        latents = [i for i in latents if fnmatch.fnmatchcase(data.key(i), options.only)]
        if not latents:
            raise ValueError(f"expected keys like {options.only!r} (--only), found none; the first is {data.key(0)!r}")
    made_by = data.model
    autoencoder = _load_for(options, made_by)
    kept = 0

    def decode(index: int) -> None:
        nonlocal kept
        key = data.key(index)
        if not options.overwrite and (options.out / f"{key}.png").exists():
            kept += 1
            return
        item, factor = data[index], made_by.spatial_factor
        _, height, width = item["mean"].shape
        encoded = EncodedImage(item["mean"], item["logvar"], height * factor, width * factor, factor, made_by.name)
        _save(autoencoder, encoded, options, key)

    status = for_each(latents, lambda index: f"{folder}, latent {index}", decode, "decoded")
    if kept:
        print(f"{kept:,} images were there before", file=sys.stderr)
    return status


def _save(autoencoder: "AutoencoderSSDD", encoded: EncodedImage, options: Decode, stem: str) -> None:
    tile_if_large(autoencoder, encoded.height, encoded.width)
    image = decode_image(autoencoder, encoded, options.steps)
    save_image(options.out / f"{stem}.png", image, overwrite=options.overwrite)


def _load_for(options: Decode, made_by: "ModelInfo") -> "AutoencoderSSDD":
    """The model that was asked for, or else the one that made the latents, if it is here and still that one.

    The manifest may be anybody's: nothing is downloaded for its sake, and no decoder is loaded before the encoder fits.
    """
    if options.model.model:
        return options.model.or_else("").load()
    from ..checkpoints.places import find_model
    from ..tokenization.model import LatentEncoder

    name = made_by.name
    if made_by.encoder:
        raise ValueError(
            f"the latents are of {name} with the encoder {made_by.encoder}, which is not loaded for a manifest: pass "
            f"--model {name} if you trust it"
        )
    try:
        place = str(find_model(name, _untrusted))
        found = LatentEncoder(place).sha256
        if found == made_by.encoder_sha256:
            return options.model.or_else(place).load()
    except _UntrustedError:
        raise
    except (OSError, ValueError) as error:
        line = one_safe_line(str(error))
        raise ValueError(f"the latents are of {name}, which cannot decode them here ({line}): pass --model") from error
    raise ValueError(f"expected {name} with the encoder that the latents are of, found another one: pass --model")


class _UntrustedError(ValueError):
    """A manifest names a model that would have to be downloaded."""


def _untrusted(hub_id: str) -> NoReturn:
    raise _UntrustedError(
        f"the manifest says model {hub_id}, which is not on this machine: pass --model {hub_id} if you trust it"
    )


def find_latents(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Latent files, each once, and the stem of their images: below a folder by their suffix, a file as it is given.

    Hidden files and folders below a folder are skipped.
    """
    found: dict[str, tuple[Path, str]] = {}
    for path in paths:
        if path.is_dir():
            inside = [p.relative_to(path) for p in sorted(path.rglob(f"*{LATENT_SUFFIX}")) if p.is_file()]
            names = [name for name in inside if not any(part.startswith(".") for part in name.parts)]
        elif path.is_file():
            path, names = path.parent, [Path(path.name)]
        else:
            raise FileNotFoundError(f"{path}: expected a latent file or a folder of them, found nothing there")
        for name in names:
            found.setdefault(os.path.abspath(path / name), (path / name, str(name).removesuffix(LATENT_SUFFIX)))
    return list(found.values())
