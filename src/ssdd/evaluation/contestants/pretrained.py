"""Saved autoencoders: found in a folder, in this package or on the hub; read from safetensors, whole or not at all."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging
from torch import nn

from ...autoencoder import AutoencoderSSDD
from ...checkpoints.encoders import cast, check_encoder, encoder_digest, load_encoder
from ...checkpoints.kl_vae import find_weights, read_config, short
from ...checkpoints.layout import CheckpointError, first
from ...checkpoints.own_code import one_line
from ...checkpoints.places import download, find_model
from ...kl_baseline import AutoencoderKLBaseline

CLASSES = {
    "AutoencoderSSDD": ("decoder",),
    "AutoencoderKL": ("post_quant_conv", "decoder"),
    "AutoencoderKLBaseline": ("post_quant_conv", "decoder"),
    "AutoencoderTiny": ("decoder",),
    "AutoencoderDC": ("decoder",),
    "ConsistencyDecoderVAE": ("decoder_unet",),
}
"""Class names in config.json that are understood, and the modules that decode."""

_OURS = {"AutoencoderSSDD": AutoencoderSSDD, "AutoencoderKLBaseline": AutoencoderKLBaseline}

_OTHERS = (
    "jpeg:BYTES, bicubic:FACTOR, a .safetensors file in the authors' layout, code of yours (file.py:NAME, "
    "package.module:NAME), "
)
_COLOURS = ("in_channels", "out_channels", "encoder_in_channels")


@dataclass(frozen=True)
class Pretrained:
    """A model in eval mode on its device, in its dtype; where it came from; sha256 of its files by their names.

    encoder, attached: name and module of the encoder that was attached to a model without one.
    """

    model: Any
    source: str
    sha256: dict[str, str]
    encoder: str | None = None
    attached: nn.Module | None = None


def read_original_file(
    path: Path, device: torch.device | str, dtype: torch.dtype, encoder: str | None = None
) -> Pretrained:
    """A safetensors file in the authors' layout. ``encoder``: see ``read_pretrained``. Raises CheckpointError."""
    model = AutoencoderSSDD.from_original(path)
    model = model.to(device=device, dtype=dtype).eval()
    return _with_encoder(Pretrained(model, str(path), {path.name: sha256(path)}), str(path), path.parent, encoder)


def read_pretrained(
    name: str, device: torch.device | str, dtype: torch.dtype, encoder: str | None = None
) -> Pretrained:
    """A model of one of ``CLASSES``, by the folder of the model, of a training run or of a pipeline, by an embedded
    name, or by a Hugging Face id OWNER/NAME or OWNER/NAME/SUBFOLDER.

    ``encoder``: what an AutoencoderSSDD without an encoder gets (see ``checkpoints.encoders.load_encoder``); other
    models leave it. Raises ValueError, CheckpointError, OSError or ImportError with one line.
    """
    folder = find_model(name, lambda hub: download(hub, lambda config: _class_name(hub, config)), _OTHERS)
    kind = _class_name(name, folder)
    files = find_weights(name, lambda file: path if (path := folder / file).is_file() else None)
    cls = _OURS.get(kind) or getattr(diffusers, kind)
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
    for key in _COLOURS:
        if model.config.get(key, 3) != 3:
            raise CheckpointError(f"{name}: expected {key} 3, for RGB, found {short(model.config[key])}")
    hashes = {file.name: sha256(file) for file in files}
    return _with_encoder(Pretrained(model.to(device).eval(), _source(name, folder), hashes), name, folder, encoder)


def _with_encoder(loaded: Pretrained, name: str, folder: Path, encoder: str | None) -> Pretrained:
    """Attach the encoder to a model without one. Raises CheckpointError if there is none to attach."""
    model = loaded.model
    if model.config.get("has_encoder", True):
        return loaded
    check_encoder(name, model.config, encoder)
    assert encoder is not None
    attached = load_encoder(encoder, name, model.config, folder)
    digest = encoder_digest(attached)
    model.attach_encoder(cast(attached, model.dtype))
    return replace(loaded, sha256=loaded.sha256 | {encoder: digest}, encoder=encoder, attached=attached)


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
