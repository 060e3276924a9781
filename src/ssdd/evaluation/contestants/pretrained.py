"""Saved autoencoders: found in a folder, in this package or on the hub; read from safetensors, whole or not at all."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from ...autoencoder import AutoencoderSSDD
from ...checkpoints.kl_vae import find_weights, read_config, short
from ...checkpoints.layout import CheckpointError, first
from ...checkpoints.own_code import one_line
from ...checkpoints.places import download, find_model

CLASSES = {
    "AutoencoderSSDD": ("decoder",),
    "AutoencoderKL": ("post_quant_conv", "decoder"),
    "AutoencoderTiny": ("decoder",),
    "AutoencoderDC": ("decoder",),
    "ConsistencyDecoderVAE": ("decoder_unet",),
}
"""Class names in config.json that are understood, and the modules that decode."""

_OTHERS = (
    "jpeg:BYTES, bicubic:FACTOR, a .safetensors file in the authors' layout, code of yours (file.py:NAME, "
    "package.module:NAME), "
)
_COLOURS = ("in_channels", "out_channels", "encoder_in_channels")


@dataclass(frozen=True)
class Pretrained:
    """A model in eval mode on its device, in its dtype; where it came from; sha256 of its files by their names."""

    model: Any
    source: str
    sha256: dict[str, str]


def read_original_file(path: Path, device: torch.device | str, dtype: torch.dtype) -> Pretrained:
    """A safetensors file in the authors' layout. Raises CheckpointError."""
    model = AutoencoderSSDD.from_original(path)
    _check(str(path), model.config)
    return Pretrained(model.to(device=device, dtype=dtype).eval(), str(path), {path.name: sha256(path)})


def read_pretrained(name: str, device: torch.device | str, dtype: torch.dtype) -> Pretrained:
    """A model of one of ``CLASSES``, by the folder of the model, of a training run or of a pipeline, by an embedded
    name, or by a Hugging Face id OWNER/NAME or OWNER/NAME/SUBFOLDER.

    Raises CheckpointError or OSError with one line.
    """
    folder = find_model(name, lambda hub: download(hub, lambda config: _class_name(hub, config)), _OTHERS)
    kind = _class_name(name, folder)
    files = find_weights(name, lambda file: path if (path := folder / file).is_file() else None)
    cls = AutoencoderSSDD if kind == "AutoencoderSSDD" else getattr(diffusers, kind)
    variant = "fp16" if ".fp16" in files[0].name else None  # half precision is all that the folder has
    try:
        with _quiet():
            model, info = cls.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever diffusers makes of another's config and files
        raise CheckpointError(
            f"{name}: expected an {kind} with the weights that its config.json describes, found {one_line(error)[:400]}"
        ) from error
    differences = [f"no {key}" for key in sorted(info["missing_keys"])]
    differences += [f"unexpected {key}" for key in sorted(info["unexpected_keys"])]
    if differences:  # diffusers would fill them with random numbers, or leave them out
        raise CheckpointError(
            f"{name}: expected the weights of an {kind} as its config.json has it, found {len(differences)} "
            f"differences: {first(differences)}"
        )
    _check(name, model.config)
    return Pretrained(model.to(device).eval(), _source(name, folder), {file.name: sha256(file) for file in files})


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _class_name(name: str, folder: Path) -> str:
    kind = read_config(folder).get("_class_name")
    if kind not in CLASSES:
        raise CheckpointError(
            f"{name}: expected one of {', '.join(CLASSES)}, found {short(kind)}; wrap it in a class of yours with "
            "encode() and decode() and name it MODULE:CLASS"
        )
    return kind


def _check(name: str, config: Any) -> None:
    """Raises CheckpointError for a model that does not make three colours of three colours."""
    if not config.get("has_encoder", True):
        raise CheckpointError(
            f"{name}: expected an encoder and a decoder, found a decoder alone; wrap it with its encoder in a class of "
            "yours with encode() and decode() and name it MODULE:CLASS"
        )
    for key in _COLOURS:
        if config.get(key, 3) != 3:
            raise CheckpointError(f"{name}: expected {key} 3, for RGB, found {short(config[key])}")


def _source(name: str, folder: Path) -> str:
    """The folder, an embedded name, or a hub id and the commit of its snapshot in the hub's cache."""
    if Path(name).is_dir():
        return str(folder)
    parts = folder.parts
    return f"{name}@{parts[parts.index('snapshots') + 1]}" if "snapshots" in parts else name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' own lines on missing weights and unknown config entries: the first raise an error here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
