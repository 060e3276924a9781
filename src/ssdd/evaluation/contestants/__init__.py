"""What is compared: tokenizers of every kind, JPEG files, fewer pixels, all with one interface."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from ...checkpoints.layout import CheckpointError
from ...checkpoints.own_code import OWN_CODE
from .base import Contestant
from .baselines import Bicubic, Jpeg
from .networks import Autoencoder
from .own import OwnCode
from .pretrained import read_original_file, read_pretrained

__all__ = ["JPEG_AUTO", "Bicubic", "Contestant", "Jpeg", "check_encoder_attached", "load_contestant"]

JPEG_AUTO = "jpeg:auto"
"""A name for ``Jpeg(other.latent_bytes(height, width))``: the caller knows the other contestant and the size."""

_PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")


def load_contestant(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    encoder: str | None = None,
) -> Contestant:
    """The contestant called ``name``.

    Args:
        name: the folder of an AutoencoderSSDD, AutoencoderKL, AutoencoderTiny, AutoencoderDC or ConsistencyDecoderVAE,
            of a training run or of a pipeline with vae/; an embedded model; a Hugging Face id OWNER/NAME or
            OWNER/NAME/SUBFOLDER; a .safetensors file in the authors' layout; package.module:NAME or file.py:NAME, the
            user's own code (see ``OwnCode``); jpeg:BYTES; bicubic:FACTOR.
        device, dtype: of the networks.
        encoder: of an AutoencoderSSDD that has none; see ``checkpoints.encoders.load_encoder``. Others leave it.

    Raises ValueError, CheckpointError, OSError or ImportError with one line. ``JPEG_AUTO`` is left to the caller, and
    a ValueError here.
    """
    if (baseline := re.fullmatch(r"(jpeg|bicubic):(.*)", name)) and not Path(name).exists():
        return _baseline(name, baseline[1], baseline[2], torch.device(device))
    if not Path(name).exists() and (own := re.fullmatch(OWN_CODE, name)):
        path, attribute = own.groups()
        return OwnCode(name, path, attribute, f"{Path(path).name}:{attribute}", device, dtype)
    if name.endswith(_PICKLES) and not Path(name).is_dir():
        raise CheckpointError(
            f"{name}: expected a model folder or a .safetensors file, found the name of a pickle, which can run code "
            "and is never loaded: load it in code of yours with encode() and decode() and name that file.py:NAME"
        )
    if name.endswith(".safetensors") and not Path(name).is_dir():
        return Autoencoder(_short(name), read_original_file(Path(name), device, dtype, encoder))
    return Autoencoder(_short(name), read_pretrained(name, device, dtype, encoder))


def check_encoder_attached(contestants: Iterable[Contestant], encoder: str | None) -> None:
    """Raise ValueError, naming the models, if none of them took the ``encoder`` that was given."""
    contestants = list(contestants)
    if encoder is None or any(isinstance(c, Autoencoder) and c.encoder is not None for c in contestants):
        return
    names = ", ".join(dict.fromkeys(contestant.name for contestant in contestants))
    raise ValueError(f"{names}: expected a model without an encoder for --encoder, found none")


def _baseline(name: str, kind: str, number: str, device: torch.device) -> Contestant:
    if name == JPEG_AUTO:
        raise ValueError(f"{name}: expected another contestant to take the bytes of, found none; give them: jpeg:BYTES")
    if not re.fullmatch(r"[1-9]\d{0,8}", number, re.ASCII):
        unit = "BYTES, of a file, or jpeg:auto" if kind == "jpeg" else "FACTOR, of the sides"
        raise ValueError(f"{name}: expected {kind}:{unit}, a positive whole number, found {number!r}")
    return Jpeg(int(number), device) if kind == "jpeg" else Bicubic(int(number), device)


def _short(name: str) -> str:
    """The name of a folder or file, of the run or pipeline where that is called model or vae; another name as it is."""
    path = Path(name)
    if not path.exists():
        return name
    path = path.absolute()
    while path.name in ("model", "vae") and path.parent.name:
        path = path.parent
    return path.stem if path.is_file() else path.name
