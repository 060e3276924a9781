"""``ssdd encode``: photographs -> latent files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from ..codec import LATENT_SUFFIX, encode_image, save_encoded
from ..data.find import ImageFile, find_images
from ..data.images import read_image
from .common import EncoderOptions, check_outputs, for_each, parse_options, require, tile_if_large


@dataclass(frozen=True)
class Encode:
    """Encode images: writes OUT/NAME.safetensors with the posterior's mean and log-variance (raw, float32)."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    out: Path
    """Folder for the latent files."""
    overwrite: bool = False
    """Replace existing files."""
    model: EncoderOptions = field(default_factory=EncoderOptions)


def parse(arguments: Sequence[str]) -> Encode:
    return parse_options(Encode, "encode", arguments)


def run(options: Encode) -> int:
    files = require(find_images(options.paths), "images", options.paths)
    check_outputs(options.out, [f"{f.output_stem}{LATENT_SUFFIX}" for f in files])
    autoencoder, identity = options.model.load(), options.model.identify()

    def encode(file: ImageFile) -> None:
        image = read_image(file.path)
        tile_if_large(autoencoder, *image.shape[:2])
        encoded = encode_image(autoencoder, image, options.model.model, identity)
        save_encoded(options.out / f"{file.output_stem}{LATENT_SUFFIX}", encoded, options.overwrite)

    return for_each(files, lambda f: str(f.path), encode, "encoded")
