"""Whose latents these are: what everything that holds latents says of their encoder, and what may decode them.

Two models have the same latents if their encoders have the same weights; a name says where to look for a model, and
proves nothing.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, structs
from torch import nn

from ..nn.encoder import Encoder
from ..runtime.text import one_safe_line
from .config import read_config, read_size, read_statistics
from .embedded import embedded_folder
from .encoders import ENCODER_ENTRY, encoder_digest, load_encoder_of
from .kl_vae import KL_DEFAULTS
from .own_code import ForeignEncoder
from .places import download, find_model

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_SHOWN_DIGITS = 12


class LatentIdentity(Struct, frozen=True):
    """The encoder of some latents.

    Attributes:
        name: of its model, as it was given: an embedded name, a folder, a Hugging Face id.
        encoder_sha256: digest of the encoder's weights, see ``encoder_digest``; None where it was not written down.
        spatial_factor, latent_channels: f and c.
        encoder: the encoder of a model that only decodes, such as ``file.py:NAME``.
        scaling_factor, shift_factor: those of the model's config: normalised = (raw - shift) * scale.
    """

    name: str
    encoder_sha256: Sha256 | None
    spatial_factor: Annotated[int, Meta(ge=1, le=1024)]
    latent_channels: Annotated[int, Meta(ge=1, le=1 << 16)]
    encoder: str | None = None
    scaling_factor: float | None = None
    shift_factor: float | None = None

    def __str__(self) -> str:
        """Return name and digest for a message."""
        name = one_safe_line(self.name) or "a model without a name"
        with_encoder = f" with the encoder {one_safe_line(self.encoder)}" if self.encoder else ""
        digits = "unknown" if self.encoder_sha256 is None else self.encoder_sha256[:_SHOWN_DIGITS]
        return f"{name}{with_encoder} (encoder {digits})"

    def same_encoder(self, other: "LatentIdentity") -> bool:
        """Return whether both are known to be of one encoder."""
        return self.encoder_sha256 is not None and self.encoder_sha256 == other.encoder_sha256


class OtherEncoderError(ValueError):
    """Latents of one encoder, and a model that decodes those of another; one line with both names."""


def identify(name: str, encoder: str | None = None, loaded: Encoder | ForeignEncoder | None = None) -> LatentIdentity:
    """Return the identity of the latents that a model makes, or, for one that only decodes, that it is made for.

    Nothing of the decoder is read. Weights are hashed in the precision of the file: the digest is the same however
    the model is loaded later.

    Args:
        name: a model, as ``find_model`` takes it, or a single file of safetensors.
        encoder: of a model that only decodes; see ``checkpoints.encoders.load_encoder``.
        loaded: the model's encoder, if it is in memory as its file has it.

    Raises CheckpointError, ValueError, OSError or ImportError with one line.
    """
    single_file = Path(name).is_file()  # it states no scale
    config = {} if single_file else read_config(find_model(name, lambda hub: download(hub, read_config)))
    if encoder is None and loaded is None and config.get("has_encoder") is False:
        size = read_size(name, config, groups=1)
        digest = config.get(ENCODER_ENTRY)
        return _with_scale(LatentIdentity(name, digest, size.factor, size.latent_channels), config)
    loaded = load_encoder_of(name, encoder) if loaded is None else loaded
    identity = LatentIdentity(
        name, encoder_digest(loaded), loaded.spatial_factor, loaded.latent_channels, encoder=encoder
    )
    if encoder is None and isinstance(loaded, ForeignEncoder) and config.get("has_encoder", True):
        # Another class's config may say other things by these names.
        config = loaded.statistics
    return identity if single_file else _with_scale(identity, config)


def identify_weights(module: nn.Module) -> str:
    """Return a digest of a network's weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _with_scale(identity: LatentIdentity, config: Mapping[str, Any]) -> LatentIdentity:
    if config.get("_class_name") == "AutoencoderKL":
        config = {**KL_DEFAULTS, **config}
    stated = read_statistics(identity.name, config, identity.latent_channels)
    scale = {entry: stated.get(entry) for entry in ("scaling_factor", "shift_factor")}
    return structs.replace(identity, **scale)


def find_decoder(latents: LatentIdentity) -> str:
    """Return the name, folder or file of the model that made some latents, if it is here and still that model.

    What the latents say may be anybody's words: nothing is downloaded and no code is run for their sake.

    Raises ValueError with one line that says what to pass instead.
    """
    if not latents.name:
        raise ValueError("expected latents that say which model made them, found none that do: pass the model")
    try:
        is_file = Path(latents.name).is_file()
        place = latents.name if is_file else str(find_model(latents.name, _find_downloaded))
        found = identify(place)
    except _DownloadError:
        raise
    except (OSError, ValueError) as error:
        line = one_safe_line(str(error))
        raise ValueError(
            f"the latents are of {latents}, which cannot decode them here ({line}): pass the model that made them, or "
            "a decoder of the same encoder"
        ) from error
    if None not in (latents.encoder_sha256, found.encoder_sha256) and not latents.same_encoder(found):
        raise OtherEncoderError(
            f"the latents are of {latents}, found another encoder under that name ({found!s}): pass the model that "
            "made them"
        )
    return latents.name if embedded_folder(latents.name) else place


class _DownloadError(ValueError):
    """Latents name a model that would have to be downloaded."""


def _find_downloaded(hub_id: str) -> Path:
    """Return the folder of a hub id in the hub's cache. Raise _DownloadError if it is not there."""
    try:
        return download(hub_id, read_config, local_files_only=True)
    except OSError as error:
        raise _DownloadError(
            f"the latents say that they are of {hub_id}, which is not on this machine: pass {hub_id} yourself if you "
            "trust it"
        ) from error


def check_decoder(latents: LatentIdentity, decoder: LatentIdentity, force: bool = False) -> str | None:
    """Refuse a decoder of another encoder's latents.

    Args:
        latents: to be decoded.
        decoder: what the decoder takes.
        force: take it all the same.

    Returns a line to warn with, if the decoder is not known to fit: forced, or because latents of an early version, or
    a decoder without an encoder, do not say of which they are.

    Raises OtherEncoderError with both names, and ValueError for other channels or another factor, which no force helps.
    """
    layouts = [f"f{identity.spatial_factor}c{identity.latent_channels}" for identity in (latents, decoder)]
    if layouts[0] != layouts[1]:
        raise ValueError(
            f"expected latents of {layouts[1]}, as {decoder} decodes them, found {layouts[0]} of {latents}: pass the "
            "model that made them"
        )
    if latents.same_encoder(decoder):
        return None
    if latents.encoder_sha256 is None and latents.name in ("", decoder.name):
        return None
    if latents.encoder_sha256 is None or decoder.encoder_sha256 is None:
        return f"the latents are of {latents}: decoded by {decoder}, unchecked"
    if force:
        return f"the latents are of {latents}: decoded by {decoder} all the same (--force)"
    raise OtherEncoderError(
        f"expected a decoder of the encoder that made the latents, {latents}, found {decoder}: pass the model that "
        "made them, or --force to decode all the same"
    )
