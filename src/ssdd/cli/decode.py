"""``ssdd decode``: latent files -> images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from ..codec import LATENT_SUFFIX, decode_image, load_encoded
from ..data.images import save_image
from .common import ModelOptions, check_outputs, for_each, parse_options, require, tile_if_large


@dataclass(frozen=True)
class Decode:
    """Decode latent files of ssdd encode: writes OUT/NAME.png."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Latent files, or folders of them."""
    out: Path
    """Folder for the images."""
    steps: int | None = None
    """Decoding steps; the model's default if not given."""
    overwrite: bool = False
    """Replace existing files."""
    model: ModelOptions = field(default_factory=ModelOptions)


def parse(arguments: Sequence[str]) -> Decode:
    return parse_options(Decode, "decode", arguments)


def run(options: Decode) -> int:
    files = require(find_latents(options.paths), "latent files", options.paths)
    check_outputs(options.out, [f"{stem}.png" for _, stem in files])
    autoencoder = options.model.load()

    def decode(item: tuple[Path, str]) -> None:
        path, stem = item
        encoded = load_encoded(path)
        tile_if_large(autoencoder, encoded.height, encoded.width)
        image = decode_image(autoencoder, encoded, options.steps)
        save_image(options.out / f"{stem}.png", image, overwrite=options.overwrite)

    return for_each(files, lambda item: str(item[0]), decode, "decoded")


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
