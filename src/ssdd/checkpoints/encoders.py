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
from .adapters import DiffusersEncoder, adapt_encoder, class_name
from .config import read_config, read_size
from .embedded import TAEF2, embedded_encoder
from .kl_source import kl_encoder, without_scale
from .kl_vae import SAME_NETWORK, KLEncoder, read_encoder, read_layout
from .layout import CheckpointError
from .ldm import read_ldm_vae
from .original import read_original
from .own_code import OWN_CODE, ForeignEncoder, code_file, load_own_encoder, load_trained_weights
from .places import download, find_model
from .taef2 import TAEF2Encoder

logger = logging.getLogger(__name__)

ENCODER_ENTRY = "encoder_sha256"
"""Entry of the config of a model without an encoder: the digest of the encoder whose latents it decodes."""

_SINGLE_FILE = "a single file of safetensors, "


def encoder_beside(model: str, config: Mapping[str, Any], encoder: str | None) -> str | None:
    """Return the encoder to load for a model that only decodes: ``--encoder``, or else its own in this package.

    None for a model with an encoder. Raises CheckpointError if it has ``--encoder`` besides, or there is no encoder.

    Args:
        model: name of the model, for the error.
        config: its config.
        encoder: what ``--encoder`` says, or None.
    """
    has_encoder = config.get("has_encoder", True)
    if has_encoder and encoder is not None:
        raise CheckpointError(f"{model}: expected a model without an encoder for --encoder, found one that has its own")
    if has_encoder or encoder is not None:
        return encoder
    if (own := embedded_encoder(config.get(ENCODER_ENTRY))) is None:
        raise CheckpointError(f"{model}: expected a model with an encoder, found one that only decodes: pass --encoder")
    return own


def load_encoder(name: str, model: str, config: Mapping[str, Any], folder: Path) -> Encoder | ForeignEncoder:
    """Return the frozen encoder ``name`` for a model that only decodes.

    Args:
        name: the user's own code, ``file.py:NAME`` or ``package.module:NAME``, or a saved encoder (see
            ``find_encoder``). Weights of a foreign one that was trained lie in ``folder``.
        model: name of the model, for errors.
        config: its config, with the layout of the latents that it decodes.
        folder: where it lies.

    Returns:
        A module on the CPU, (B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f).

    Raises CheckpointError, ValueError, OSError or ImportError with one line, also for latents of another layout.
    """
    if not Path(name).exists() and re.fullmatch(OWN_CODE, name):
        encoder: Encoder | ForeignEncoder = load_own_encoder(name, folder)
    else:
        encoder = _frozen(find_encoder(name, "code of yours (file.py:NAME), "), name)
        if isinstance(encoder, ForeignEncoder):
            load_trained_weights(encoder, folder)
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

    The model is one that ``find_encoder`` takes. Raises as ``encoder_beside`` and ``load_encoder``.
    """

    def beside(folder: Path) -> str | None:
        found = encoder_beside(model, read_config(folder), encoder)
        if found is None:
            _check_class(model, folder)
        return found

    if Path(model).is_file() and encoder is None:
        return _frozen(_read_file(Path(model)), model)
    folder = find_model(model, lambda hub: download(hub, beside), _SINGLE_FILE)
    if (name := beside(folder)) is None:
        return _frozen(_read(model, folder), model)
    return load_encoder(name, model, read_config(folder), folder)


Foreign = DiffusersEncoder | TAEF2Encoder
"""A saved encoder of another architecture, which ``ForeignEncoder`` takes."""


def find_encoder(name: str, others: str = "") -> KLEncoder | Foreign:
    """Return a saved encoder, on the CPU: one of our architecture as weights, another as a module.

    Args:
        name: ``taef2``; a folder or hub id, as ``find_model`` takes it, of a class of ``kl_vae.SAME_NETWORK`` or
            ``adapters.INTERFACES``; or a single file in the layout of LDM or of the authors.
        others: what the name could have been besides, for the error.

    Raises CheckpointError or OSError with one line.
    """
    if name == TAEF2:
        return TAEF2Encoder()
    if Path(name).is_file() and name.endswith(".safetensors"):
        return _read_file(Path(name))
    folder = find_model(
        name, lambda hub: download(hub, lambda config: _check_class(name, config)), others + _SINGLE_FILE
    )
    return _read(name, folder)


def _check_class(name: str, folder: Path) -> None:
    """Raise CheckpointError unless a folder's config.json is that of an encoder which can be read."""
    if class_name(name, folder) in SAME_NETWORK:
        read_layout(folder)


def _read(name: str, folder: Path) -> KLEncoder | DiffusersEncoder:
    return read_encoder(folder) if class_name(name, folder) in SAME_NETWORK else adapt_encoder(name, folder)


def _read_file(path: Path) -> KLEncoder:
    """Return the encoder of a single file: a KL-VAE in LDM's layout, or ours in the authors'."""
    if (vae := read_ldm_vae(path)) is not None:
        return without_scale(kl_encoder(vae))
    original = read_original(path)
    encoder_beside(str(path), original.config, None)
    size = EncoderSize(original.config["block_out_channels"], original.config["latent_channels"])
    parts = {name.removeprefix("encoder."): t for name, t in original.state.items() if name.startswith("encoder.")}
    return KLEncoder(size, parts, {}, "measured")


def _frozen(read: KLEncoder | Foreign, name: str) -> Encoder | ForeignEncoder:
    return read.build().requires_grad_(False) if isinstance(read, KLEncoder) else ForeignEncoder(read, name)


def cast(encoder: Encoder | ForeignEncoder, dtype: torch.dtype) -> Encoder | ForeignEncoder:
    """Run an encoder in this dtype, unless it is a module of the user's that states its own; return it."""
    return encoder.cast(dtype) if isinstance(encoder, ForeignEncoder) else encoder.to(dtype)


def encoder_digest(encoder: Encoder | ForeignEncoder) -> str:
    """Return the sha256 of what decides an encoder's latents, in hexadecimal.

    It covers the weights in float32; and the shape of ours, the class of one of diffusers' or TAEF2's, or the name and
    the file of the user's own code.
    """
    state: Mapping[str, Tensor] = {}
    if isinstance(encoder, Encoder):
        size, state = encoder.size, encoder.state_dict()
        digest = hashlib.sha256(repr((size.channels, size.latent_channels, size.groups)).encode())
    elif isinstance(encoder.source, Foreign):
        state = encoder.source.state_dict()
        digest = hashlib.sha256(encoder.source.kind.encode())
    else:
        digest = hashlib.sha256(encoder.name.rpartition(":")[2].encode() + b"\0" + code_file(encoder.name).read_bytes())
        if isinstance(encoder.source, nn.Module):
            state = encoder.source.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
