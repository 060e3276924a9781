"""ComfyUI's images and latents as those of ssdd, and back.

Shapes: B batch, H x W pixels, C colours, f spatial factor, c latent channels of the model, h x w = H/f x W/f its grid.

Latents of a LATENT are raw, as a VAE's encoder gives them; ComfyUI scales them inside its samplers. Those of FLUX.2
are the exception: they are in patches of 2 x 2 cells, (B, 4c, h/2, w/2), and normalised by the batch norm of its VAE.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ssdd import AutoencoderSSDD


@dataclass(frozen=True)
class LatentFormat:
    """Latents of a family of generative models: their channels in a LATENT, and the constants of its VAE's config."""

    channels: int
    scaling_factor: float | None = None
    shift_factor: float = 0.0


FORMATS = {
    "SD": LatentFormat(4, 0.18215),
    "SDXL": LatentFormat(4, 0.13025),
    "SD3": LatentFormat(16, 1.5305, 0.0609),
    "FLUX": LatentFormat(16, 0.3611, 0.1159),
    "FLUX.2": LatentFormat(128),
}


def to_pixels(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) in [0, 1] -> (B, 3, H, W) in [-1, 1]; opacity and other channels after three are left out."""
    if image.dim() != 4 or image.shape[-1] < 3:
        raise ValueError(
            f"expected an IMAGE (B, H, W, 3), found {tuple(image.shape)}: convert it to an RGB image first"
        )
    return image[..., :3].movedim(-1, 1) * 2 - 1


def to_image(pixels: Tensor) -> Tensor:
    """(B, 3, H, W), about [-1, 1] -> IMAGE (B, H, W, 3), float32 in [0, 1]."""
    return ((pixels.float() + 1) / 2).clamp(0, 1).movedim(1, -1).contiguous()


def pixel_multiple(model: AutoencoderSSDD) -> int:
    """Return what the sides of an image must be multiples of: f, or 2f where latents are in patches."""
    return model.spatial_factor * (1 if model.config.batch_norm_mean is None else 2)


def to_samples(model: AutoencoderSSDD, z: Tensor) -> Tensor:
    """Raw latents (B, c, h, w) -> the samples of a LATENT: the same, or with FLUX.2's encoder (B, 4c, h/2, w/2)."""
    return z if model.config.batch_norm_mean is None else F.pixel_unshuffle(model.normalize_latents(z), 2)


def to_raw_latents(model: AutoencoderSSDD, latent: dict[str, Any]) -> Tensor:
    """LATENT -> raw latents (B, c, h, w) for a model. Raise ValueError for latents that are not its."""
    z: Tensor = latent["samples"]
    if z.dim() == 5 and z.shape[2] == 1:  # of a video VAE, one frame
        z = z.squeeze(2)
    elif z.dim() == 5:
        raise ValueError(
            f"expected the latent of an image, found one of a video with {z.shape[2]} latent frames, "
            f"{tuple(z.shape)}: SSDD decodes images only"
        )
    expected = latent_channels(model)
    if z.dim() == 4 and z.shape[1] == expected[-1] != expected[0]:
        z = F.pixel_shuffle(z, 2)
        return z if model.config.batch_norm_mean is None else model.denormalize_latents(z)
    if z.dim() != 4 or z.shape[1] != expected[0]:
        found = f"{z.shape[1]}{_families(z.shape[1])}" if z.dim() == 4 else f"the shape {tuple(z.shape)}"
        raise ValueError(
            f"expected a latent of {' or '.join(map(str, expected))} channels, which this SSDD model decodes, found "
            f"{found}: load an SSDD decoder that was trained on the latents of the VAE or model in use"
        )
    return z


def latent_channels(model: AutoencoderSSDD) -> tuple[int, ...]:
    """Return the channels that a model's latents may have in a LATENT: c, and 4c where FLUX.2's form is understood.

    That is where the model has FLUX.2's batch norm, or latents of its layout, such as those of TAEF2, which are
    normalised already.
    """
    c = model.latent_channels
    in_patches = model.config.batch_norm_mean is not None or (c, model.spatial_factor) == (32, 8)
    return (c, 4 * c) if in_patches else (c,)


def check_format(model: AutoencoderSSDD, name: str) -> None:
    """Raise ValueError if a decoder is known to be for other latents than those of a family, one of ``FORMATS``."""
    asked, config = FORMATS[name], model.config
    constants = (config.scaling_factor, config.shift_factor)
    known = [other for other, f in FORMATS.items() if (f.scaling_factor, f.shift_factor) == constants]
    if config.latents_convention != "pipeline" or name in known:
        known = []
    if asked.channels in latent_channels(model) and not known:
        return
    found = f"that of {known[0]}" if known else f"one of {' or '.join(map(str, latent_channels(model)))} channels"
    raise ValueError(
        f"expected a decoder for latents of {name} ({asked.channels} channels), found {found}: choose a decoder that "
        f"was trained on the VAE of {name}, or another latent_format"
    )


def _families(channels: int) -> str:
    names = [name for name, f in FORMATS.items() if f.channels == channels]
    return f" (as {' and '.join(names)} have)" if names else ""
