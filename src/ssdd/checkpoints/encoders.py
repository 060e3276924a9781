"""The encoder of a saved model, or the one that ``--encoder`` gives to a model that only decodes.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.encoder import Encoder
from ..nn.presets import EncoderSize
from .kl_source import kl_encoder
from .kl_vae import read_config, read_encoder, read_layout, read_size
from .layout import CheckpointError
from .ldm import read_ldm_vae
from .original import read_original
from .own_code import OWN_CODE, ForeignEncoder, code_file, load_own_encoder
from .places import download, find_model

logger = logging.getLogger(__name__)

ENCODER_ENTRY = "encoder_sha256"
"""Entry of the config of a model without an encoder: the digest of the encoder whose latents it decodes."""


def check_encoder(model: str, config: Mapping[str, Any], encoder: str | None) -> None:
    """Raise CheckpointError unless ``--encoder`` is given to a model that only decodes, and to no other.

    Args:
        model: name of the model, for the error.
        config: its config.
        encoder: what ``--encoder`` says, or None.
    """
    has_encoder = config.get("has_encoder", True)
    if has_encoder and encoder is not None:
        raise CheckpointError(f"{model}: expected a model without an encoder for --encoder, found one that has its own")
    if not has_encoder and encoder is None:
        raise CheckpointError(f"{model}: expected a model with an encoder, found one that only decodes: pass --encoder")


def load_encoder(name: str, model: str, config: Mapping[str, Any], folder: Path) -> Encoder | ForeignEncoder:
    """Return the frozen encoder ``name`` for a model that only decodes.

    Args:
        name: the user's own code, ``file.py:NAME`` or ``package.module:NAME``, whose trained weights lie in
            ``folder`` if it was trained; or an AutoencoderSSDD or AutoencoderKL, as ``find_model`` finds it.
        model: name of the model, for errors.
        config: its config, with the layout of the latents that it decodes.
        folder: where it lies.

    Returns:
        A module on the CPU, (B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f).

    Raises CheckpointError, ValueError, OSError or ImportError with one line, also for latents of another layout.
    """
    own = not Path(name).exists() and re.fullmatch(OWN_CODE, name)
    encoder = load_own_encoder(name, folder) if own else _load_saved(name, "code of yours (file.py:NAME), ")
    size = read_size(model, config, groups=1)
    if (encoder.spatial_factor, encoder.latent_channels) != (size.factor, size.latent_channels):
        raise ValueError(
            f"{name}: expected an encoder of f{size.factor}c{size.latent_channels} for {model}, found "
            f"f{encoder.spatial_factor}c{encoder.latent_channels}"
        )
    known = config.get(ENCODER_ENTRY)
    if known is not None and known != (found := encoder_digest(encoder)):
        logger.warning(
            "%s decodes the latents of the encoder %s; %s is another one or has changed (%s)",
            model, known[:12], name, found[:12],
        )  # fmt: skip
    return encoder


def load_encoder_of(model: str, encoder: str | None = None) -> Encoder | ForeignEncoder:
    """Return the frozen encoder of a saved model; ``encoder`` is that of a model that only decodes.

    The model is a folder, a hub id, or a single file in the layout of LDM or of the authors. Nothing of the decoder is
    read. Raises as ``check_encoder`` and ``load_encoder``.
    """

    def check(folder: Path) -> None:
        check_encoder(model, read_config(folder), encoder)
        if encoder is None:
            read_layout(folder)

    if Path(model).is_file() and encoder is None:
        return _read_file(Path(model))
    folder = find_model(model, lambda hub: download(hub, check), "a single file of safetensors, ")
    check(folder)
    return _read(folder) if encoder is None else load_encoder(encoder, model, read_config(folder), folder)


def _load_saved(name: str, others: str) -> Encoder:
    return _read(find_model(name, lambda hub: download(hub, read_layout), others))


def _read(folder: Path) -> Encoder:
    read = read_encoder(folder)
    return _frozen(read.size, read.state)


def _read_file(path: Path) -> Encoder:
    """Return the encoder of a single file: an AutoencoderKL in LDM's layout, or ours in the authors'."""
    if (vae := read_ldm_vae(path)) is not None:
        read = kl_encoder(vae)
        return _frozen(read.size, read.state)
    original = read_original(path)
    check_encoder(str(path), original.config, None)
    size = EncoderSize(original.config["block_out_channels"], original.config["latent_channels"])
    parts = {name.removeprefix("encoder."): t for name, t in original.state.items() if name.startswith("encoder.")}
    return _frozen(size, parts)


def _frozen(size: EncoderSize, state: Mapping[str, Tensor]) -> Encoder:
    encoder = Encoder(size)
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


def cast(encoder: Encoder | ForeignEncoder, dtype: torch.dtype) -> Encoder | ForeignEncoder:
    """Run an encoder in this dtype, unless it is a module of the user's that states its own; return it."""
    return encoder.cast(dtype) if isinstance(encoder, ForeignEncoder) else encoder.to(dtype)


def encoder_digest(encoder: Encoder | ForeignEncoder) -> str:
    """Return the sha256 of what decides an encoder's latents, in hexadecimal.

    It covers the weights in float32; and the shape of ours, or the name and the file of the user's own code.
    """
    state: Mapping[str, Tensor] = {}
    if isinstance(encoder, Encoder):
        size, state = encoder.size, encoder.state_dict()
        digest = hashlib.sha256(repr((size.channels, size.latent_channels, size.groups)).encode())
    else:
        digest = hashlib.sha256(encoder.name.rpartition(":")[2].encode() + b"\0" + code_file(encoder.name).read_bytes())
        if isinstance(encoder.source, nn.Module):
            state = encoder.source.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
