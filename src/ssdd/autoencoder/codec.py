"""One photograph of any size through an autoencoder: uint8 -> x -> raw latent -> x_hat -> uint8, and latent files.

Shapes: H x W pixels of the photograph; H' x W' the same padded to a multiple of the spatial factor f;
c latent channels; h x w = H'/f x W'/f latent grid.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoints.identity import LatentIdentity
from ..data.images import MAX_PIXELS, pil_to_image
from ..data.pixels import image_to_tensor, tensor_to_image
from ..runtime.files import atomic_path
from ..runtime.text import one_safe_line

if TYPE_CHECKING:
    from ..evaluation.decoders import LatentDecoder
    from .model import AutoencoderSSDD

LATENT_SUFFIX = ".safetensors"
_FORMAT = "ssdd-latent-1"


class LatentFileError(ValueError):
    """A latent file that cannot be decoded; one line with what was expected and what was found."""

    def __init__(self, message: str) -> None:
        super().__init__(one_safe_line(message))


@dataclass(frozen=True)
class EncodedImage:
    """Posterior of one photograph and what is needed to decode it.

    Attributes:
        mean, logvar: (c, h, w) float32, raw.
        height, width: the photograph's, before padding.
        factor: the autoencoder's spatial factor.
        model: its name.
        identity: whose latent it is; None where the file is of an early version, or nobody said.
        image_sha256: digest of the photograph's file, where somebody has said it.
        dtype: precision of the encoder, ``fp32`` or another, where somebody has said it.
    """

    mean: Tensor
    logvar: Tensor
    height: int
    width: int
    factor: int
    model: str
    identity: LatentIdentity | None = None
    image_sha256: str | None = None
    dtype: str | None = None

    def whose(self) -> LatentIdentity:
        """Return what is known of the model that made it."""
        if self.identity is not None:
            return self.identity
        return LatentIdentity(self.model, None, self.factor, self.mean.shape[0])


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H', W'), the last row and column repeated below and on the right."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


@torch.inference_mode()
def encode_image(
    autoencoder: "AutoencoderSSDD", image: np.ndarray, model: str = "", identity: LatentIdentity | None = None
) -> EncodedImage:
    """Return the posterior of a photograph, uint8 (H, W, 3), any size from 1 x 1.

    Args:
        autoencoder: with an encoder.
        image: the photograph.
        model: the autoencoder's name.
        identity: of its latents (see ``checkpoints.identity.identify``), for those who decode them elsewhere.

    Raises ValueError for too many padded pixels.
    """
    factor = autoencoder.spatial_factor
    height, width = (n + -n % factor for n in image.shape[:2])
    if height * width > MAX_PIXELS:  # a line of one pixel's height becomes f times as large
        raise ValueError(f"expected at most {MAX_PIXELS} pixels with those that pad it, found {width} x {height}")
    x = _to_device_of(autoencoder, image_to_tensor(image)[None])
    posterior = autoencoder.encode(pad_to_multiple(x, factor)).latent_dist
    mean, logvar = posterior.mean[0].float().cpu(), posterior.logvar[0].float().cpu()
    return EncodedImage(mean, logvar, image.shape[0], image.shape[1], factor, model, identity)


@torch.inference_mode()
def decode_image(
    autoencoder: "AutoencoderSSDD | LatentDecoder", encoded: EncodedImage, steps: int | None = None
) -> np.ndarray:
    """Return the photograph of the posterior's mode, uint8 (H, W, 3).

    Raises LatentFileError if factor or channels do not fit. Whether the encoder is the same is for those to compare
    who know its identity.
    """
    channels = autoencoder.latent_channels
    if encoded.mean.shape[0] != channels or encoded.factor != autoencoder.spatial_factor:
        raise LatentFileError(
            f"expected a latent of f{autoencoder.spatial_factor}c{channels}, found "
            f"f{encoded.factor}c{encoded.mean.shape[0]} (encoded by {encoded.model or 'an unnamed model'})"
        )
    z = _to_device_of(autoencoder, encoded.mean[None])
    sample = autoencoder.decode(z, num_inference_steps=steps).sample[0]
    return tensor_to_image(sample[:, : encoded.height, : encoded.width].float().cpu())


def _to_device_of(autoencoder: "AutoencoderSSDD | LatentDecoder", x: Tensor) -> Tensor:
    """Return a tensor on the model's device; as it is where hooks of accelerate move it with the weights."""
    return x if autoencoder.device.type == "meta" else x.to(autoencoder.device)


def encode_pil(autoencoder: "AutoencoderSSDD", image: Image.Image) -> EncodedImage:
    """Return the posterior of a Pillow image of any mode, profile and size, turned upright; see ``encode_image``."""
    return encode_image(autoencoder, pil_to_image(ImageOps.exif_transpose(image)))


def decode_pil(
    autoencoder: "AutoencoderSSDD | LatentDecoder", encoded: EncodedImage, steps: int | None = None
) -> Image.Image:
    """Return the Pillow image of a posterior, mode RGB, of the size that was encoded; see ``decode_image``.

    Args:
        autoencoder: the model that encoded it, or another decoder of the same encoder.
        encoded: what ``encode_pil`` returned.
        steps: decoding steps; the model's default if not given.
    """
    return Image.fromarray(decode_image(autoencoder, encoded, steps))


def save_encoded(path: Path, encoded: EncodedImage, overwrite: bool = False) -> None:
    """Write a latent file: tensors ``mean`` and ``logvar`` (c, h, w) float32, the rest as metadata. Atomic."""
    metadata = {
        "format": _FORMAT,
        "height": str(encoded.height),
        "width": str(encoded.width),
        "factor": str(encoded.factor),
        "model": encoded.model,
    }
    if encoded.identity is not None:
        metadata["identity"] = msgspec.json.encode(encoded.identity).decode()
    if encoded.image_sha256 is not None:
        metadata["image_sha256"] = encoded.image_sha256
    if encoded.dtype is not None:
        metadata["dtype"] = encoded.dtype
    tensors = {"mean": encoded.mean.contiguous(), "logvar": encoded.logvar.contiguous()}
    with atomic_path(path, overwrite) as temporary:
        # Not save_file: its file can be read by its owner alone, whatever the umask.
        temporary.write_bytes(save(tensors, metadata=metadata))


def load_encoded(path: Path) -> EncodedImage:
    """Read a latent file. Raises LatentFileError if it is not one or its entries contradict one another."""
    try:
        # By its descriptor: safetensors takes no name that is not UTF-8.
        with path.open("rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("mean", "logvar") if name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LatentFileError(f"{path}: expected a latent file of ssdd encode, could not read it ({error})") from error
    try:
        if metadata.get("format", _FORMAT) != _FORMAT:
            raise ValueError("another format")
        height, width, factor = (int(metadata[k]) for k in ("height", "width", "factor"))
        mean, logvar = tensors["mean"].float(), tensors["logvar"].float()
        stated = metadata.get("identity")
        identity = None if stated is None else msgspec.json.decode(stated, type=LatentIdentity)
    except (KeyError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise LatentFileError(
            f"{path}: expected a latent file of ssdd encode, found {json.dumps(metadata)[:200]}"
        ) from error
    grid = (-(-height // factor), -(-width // factor)) if factor > 0 else None
    if mean.dim() != 3 or mean.shape != logvar.shape or height < 1 or width < 1 or mean.shape[1:] != grid:
        raise LatentFileError(
            f"{path}: expected the grid of {height} x {width} pixels at factor {factor}, found {tuple(mean.shape)}"
        )
    if not torch.isfinite(torch.stack([mean, logvar])).all():
        raise LatentFileError(f"{path}: expected finite numbers, found NaN or infinity")
    if identity is not None and (identity.spatial_factor, identity.latent_channels) != (factor, mean.shape[0]):
        raise LatentFileError(
            f"{path}: expected a latent of its model, {identity}, found factor or channels of another"
        )
    model, image_sha256, dtype = metadata.get("model", ""), metadata.get("image_sha256"), metadata.get("dtype")
    return EncodedImage(mean, logvar, height, width, factor, model, identity, image_sha256, dtype)
