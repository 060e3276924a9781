"""``ssdd decode``: latent files, or the folder of ``ssdd tokenize`` -> images."""

import fnmatch
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ..codec import LATENT_SUFFIX, EncodedImage, decode_image, load_encoded
from ..data.images import save_image
from ..dtypes import DTYPES, Dtype
from .common import ModelOptions, check_outputs, for_each, is_large, model_of_run, parse_options, require

if TYPE_CHECKING:
    import torch

    from ..checkpoints.identity import LatentIdentity
    from ..evaluation.decoders import LatentDecoder


@dataclass(frozen=True)
class DecoderOptions(ModelOptions):
    """Which decoder, and how it runs."""

    model: str = ""
    """Embedded name, folder, run, Hugging Face id, single file; by default the model that made the latents."""
    force: bool = False
    """Decode latents of another encoder too."""

    def load_for(self, latents: "LatentIdentity") -> "LatentDecoder":
        """Return the decoder of some latents. Raises as ``evaluation.decoders.load_decoder_of``."""
        from ..checkpoints.identity import find_decoder

        name = model_of_run(self.model) if self.model else find_decoder(latents)
        decoder = _load(name, self.torch_device(), self.dtype)
        decoder.check(latents, self.force)
        return decoder


@functools.lru_cache(maxsize=1)
def _load(name: str, device: "torch.device", dtype: Dtype) -> "LatentDecoder":
    from ..evaluation.decoders import load_decoder

    return load_decoder(name, device, DTYPES[dtype])


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

    def decode(item: tuple[Path, str]) -> None:
        path, stem = item
        encoded = load_encoded(path)
        _save(options.model.load_for(encoded.whose()), encoded, options, stem)

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
    decoder = options.model.load_for(made_by)
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
        _save(decoder, encoded, options, key)

    status = for_each(latents, lambda index: f"{folder}, latent {index}", decode, "decoded")
    if kept:
        print(f"{kept:,} images were there before", file=sys.stderr)
    return status


def _save(decoder: "LatentDecoder", encoded: EncodedImage, options: Decode, stem: str) -> None:
    decoder.tile_if(is_large(encoded.height, encoded.width))
    image = decode_image(decoder, encoded, options.steps)
    save_image(options.out / f"{stem}.png", image, overwrite=options.overwrite)


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
