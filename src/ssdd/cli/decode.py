"""``ssdd decode``: latent files, or the folder of ``ssdd tokenize`` -> images."""

import fnmatch
import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    Count,
    ModelOptions,
    Paths,
    Seed,
    can_compile_once,
    check_outputs,
    for_each,
    is_kept,
    missing,
    model_of_run,
    pays,
    require,
    summarize,
)

if TYPE_CHECKING:
    from ..autoencoder.codec import EncodedImage
    from ..checkpoints.identity import LatentIdentity
    from ..evaluation.decoders import LatentDecoder


@dataclass(frozen=True)
class DecoderOptions(ModelOptions):
    """Which decoder, and how it runs."""

    model: str = ""
    """Embedded name, folder, run, Hugging Face id, single file; by default the model that made the latents."""
    force: bool = False
    """Decode latents of another encoder too."""
    seed: Seed | None = None
    """Seed of the noise that decoding starts from; the model's own if not given."""

    def load_for(self, latents: "LatentIdentity", images: int) -> "LatentDecoder":
        """Return the decoder of some latents, ready for so many. Raises as ``evaluation.decoders.load_decoder_of``."""
        from ..checkpoints.identity import find_decoder

        decoder = _load(self, model_of_run(self.model) if self.model else find_decoder(latents), images)
        decoder.check(latents, self.force)
        return decoder


@functools.lru_cache(maxsize=1)
def _load(options: DecoderOptions, name: str, images: int) -> "LatentDecoder":
    from ..evaluation.decoders import load_decoder

    decoder = load_decoder(name, options.torch_device(), options.torch_dtype)
    if options.seed is not None:
        decoder.set_noise_seed(options.seed)
    if pays(options.optimize, images):
        decoder.optimize(None if options.dtype == "auto" else options.torch_dtype, can_compile_once(decoder.device))
    return decoder


@dataclass(frozen=True)
class Decode:
    """Decode latent files of ssdd encode, or the folder of ssdd tokenize: write OUT/NAME.png, or OUT/KEY.png for each
    latent.

    Images that are there are kept, so that the same command goes on where it was stopped.
    """

    paths: Paths
    """Latent files, folders of them, patterns, @list.txt, -; or one folder of ssdd tokenize."""
    out: Path
    """Folder for the images."""
    steps: Count | None = None
    """Decoding steps; the model's default if not given."""
    only: str | None = None
    """Of tokenized data, only the keys that fit a pattern like '00000000?-*'."""
    overwrite: bool = False
    """Replace existing files."""
    model: DecoderOptions = field(default_factory=DecoderOptions)


OPTIONS = Decode


def run(options: Decode) -> int:
    from ..tokenization.format import MANIFEST

    tokenized = [path for path in options.paths if (Path(path) / MANIFEST).is_file()]
    if tokenized and len(options.paths) > 1:
        raise ValueError(f"expected one folder of ssdd tokenize alone, found {len(options.paths)} paths")
    if tokenized:
        return _decode_set(options, Path(tokenized[0]))
    if options.only is not None:
        raise ValueError("expected a folder of ssdd tokenize for --only, found latent files")
    return _decode_files(options)


def _decode_files(options: Decode) -> int:
    from ..autoencoder.codec import load_encoded

    files = require(find_latents(options.paths), "latent files", options.paths)
    check_outputs(options.out, [f"{stem}.png" for _, stem in files])
    todo = missing(files, lambda file: options.out / f"{file[1]}.png", options.overwrite)
    done: list[bool] = []

    def decode(item: tuple[Path, str]) -> None:
        path, stem = item
        encoded = load_encoded(path)
        done.append(_save(options.model.load_for(encoded.whose(), len(todo)), encoded, options, stem))

    failed = for_each(files, lambda item: str(item[0]), decode)
    return summarize("decoded", sum(done), len(done) - sum(done), failed, options.out)


def _decode_set(options: Decode, folder: Path) -> int:
    from ..autoencoder.codec import EncodedImage
    from ..tokenization import LatentDataset

    data = LatentDataset(folder)
    check_outputs(options.out, [])
    latents: Sequence[int] = range(len(data))
    if options.only is not None:
        latents = [i for i in latents if fnmatch.fnmatchcase(data.key(i), options.only)]
        if not latents:
            raise ValueError(f"expected keys like {options.only!r} (--only), found none; the first is {data.key(0)!r}")
    todo = missing(latents, lambda index: options.out / f"{data.key(index)}.png", options.overwrite)
    made_by = data.model
    decoder = options.model.load_for(made_by, len(todo))
    done: list[bool] = []

    def decode(index: int) -> None:
        item, factor = data[index], made_by.spatial_factor
        _, height, width = item["mean"].shape
        encoded = EncodedImage(item["mean"], item["logvar"], height * factor, width * factor, factor, made_by.name)
        done.append(_save(decoder, encoded, options, data.key(index)))

    failed = for_each(latents, lambda index: f"{folder}, latent {index}", decode)
    return summarize("decoded", sum(done), len(done) - sum(done), failed, options.out)


def _save(decoder: "LatentDecoder", encoded: "EncodedImage", options: Decode, stem: str) -> bool:
    """Write the image of a latent. Return False if it is there already."""
    from ..autoencoder.codec import decode_image
    from ..data.images import save_image

    target = options.out / f"{stem}.png"
    digest = hashlib.sha256(encoded.mean.contiguous().numpy().tobytes()).hexdigest()
    name = options.model.model or encoded.model
    made_by = decoder.describe_decoding(name, options.steps, f"latent {digest[:12]}")
    if is_kept(target, made_by, options.overwrite):
        return False
    decoder.tile_foreign(encoded.height, encoded.width)
    image = decode_image(decoder, encoded, options.steps)
    save_image(target, image, overwrite=options.overwrite, made_by=made_by)
    return True


def find_latents(paths: Sequence[str]) -> list[tuple[Path, str]]:
    """Latent files, each once, and the stem of their images: below a folder by their suffix, a file as it is given.

    Hidden files and folders below a folder are skipped.
    """
    from ..autoencoder.codec import LATENT_SUFFIX
    from ..data.find import expand

    found: dict[str, tuple[Path, str]] = {}
    for path in map(Path, expand(paths)):
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
