"""``ssdd encode``: photographs -> latent files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .common import EncoderOptions, Paths, check_outputs, for_each, missing, require, summarize

if TYPE_CHECKING:
    from ..data.find import ImageFile


@dataclass(frozen=True)
class Encode:
    """Encode images: write OUT/NAME.safetensors with the posterior's mean and log-variance (raw, float32).

    Files that are there are kept, so that the same command goes on where it was stopped.
    """

    paths: Paths
    """Images, folders of images, patterns, @list.txt, -."""
    out: Path
    """Folder for the latent files."""
    overwrite: bool = False
    """Replace existing files."""
    model: EncoderOptions = field(default_factory=EncoderOptions)


OPTIONS = Encode


def run(options: Encode) -> int:
    from ..data.find import find_images

    files = require(find_images(options.paths), "images", options.paths)  # before the seconds of the imports below

    from ..autoencoder.codec import LATENT_SUFFIX, encode_image, save_encoded
    from ..data.images import read_image
    from ..evaluation.weights import sha256

    def latent(file: "ImageFile") -> Path:
        return options.out / f"{file.output_stem}{LATENT_SUFFIX}"

    check_outputs(options.out, [f"{f.output_stem}{LATENT_SUFFIX}" for f in files])
    todo = missing(files, latent, options.overwrite)
    if len(todo) < len(files):
        to_make = set(map(latent, todo))
        _check_kept(options, {latent(file): file.path for file in files if latent(file) not in to_make})
    if not todo:
        return summarize("encoded", 0, len(files), 0, options.out)
    autoencoder, identity = options.model.load(), options.model.identify()
    options.model.optimize_for(autoencoder, len(todo))

    def encode(file: "ImageFile") -> None:
        image = read_image(file.path)
        encoded = encode_image(autoencoder, image, options.model.model, identity)
        encoded = replace(encoded, image_sha256=sha256(file.path), dtype=options.model.precision)
        save_encoded(latent(file), encoded, options.overwrite)

    failed = for_each(todo, lambda f: str(f.path), encode)
    return summarize("encoded", len(todo) - failed, len(files) - len(todo), failed, options.out)


def _check_kept(options: Encode, kept: "Mapping[Path, Path]") -> None:
    """Raise an error for a file that is there, and is no latent of its photograph by the same encoder and precision."""
    from ..autoencoder.codec import LatentFileError, load_encoded
    from ..evaluation.weights import sha256
    from ..runtime.files import OutputExists

    identity = options.model.identify()
    for path, photograph in sorted(kept.items()):
        try:
            encoded = load_encoded(path)
        except LatentFileError as error:
            raise OutputExists(f"{path} exists already; pass --overwrite to replace it") from error
        if (made_by := encoded.whose()).encoder_sha256 not in (None, identity.encoder_sha256):
            raise ValueError(f"{path} exists already, by {made_by}: choose another --out, or --overwrite")
        if encoded.dtype not in (None, options.model.precision):
            raise ValueError(
                f"{path} exists already, encoded in {encoded.dtype} instead of {options.model.precision}: choose "
                "another --out, or --overwrite"
            )
        if encoded.image_sha256 not in (None, sha256(photograph)):
            raise OutputExists(
                f"{path} exists already, of another file than {photograph}: choose another --out, or --overwrite"
            )
