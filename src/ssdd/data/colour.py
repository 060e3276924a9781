"""Colour profiles: pixels to sRGB, as a viewer shows them."""

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageCms

from .pixels import Pixels

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_ABOUT_EQUAL = 2  # levels
_STEPS = np.arange(0, 256, 15, dtype=np.uint8)
_LOG = logging.getLogger(__name__)


def to_srgb(pixels: Pixels, image: Image.Image, profile: bytes) -> Pixels:
    """Return the pixels of an image with a profile as sRGB: relative colorimetric, with black point compensation.

    A profile that cannot be used (damaged, of another colour space than the image, not of colours at all) is ignored,
    and pixels by one that says what sRGB says stay as they are.

    Args:
        pixels: uint8 (H, W, 3), of the image without its profile.
        image: Where the pixels are from: CMYK is converted from its inks.
        profile: The ICC profile.
    """
    mode, transform = _transform(profile)
    is_gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    if transform is None or (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not is_gray):
        return pixels
    if mode == "L":  # level by level: the transform of a whole picture is off by several in the dark
        levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        return np.asarray(ImageCms.applyTransform(levels, transform))[0][pixels[:, :, 0]]
    source = image if mode == "CMYK" else Image.fromarray(pixels)
    return np.asarray(ImageCms.applyTransform(source, transform)).copy()


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the mode of Pillow that the profile is for and the way to sRGB; None where pixels shall stay."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        mode = _MODES[opened.profile.xcolor_space]
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
        )
        grays = np.asarray(ImageCms.applyTransform(_grays(mode), transform))[0].sum(axis=1, dtype=int)
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError, TypeError) as error:
        _LOG.warning("a colour profile of %d bytes is ignored: it cannot be used (%s)", len(profile), error)
        return "", None
    if grays[-1] - grays[0] < 3 * 128 or (np.diff(grays) < -3 * _ABOUT_EQUAL).any():
        _LOG.warning("a colour profile of %d bytes is ignored: it turns black to white into others", len(profile))
        return mode, None
    return mode, None if mode == "RGB" and _is_srgb(transform) else transform


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    colours = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), axis=-1).reshape(1, -1, 3)
    shown = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    return bool(np.abs(shown.astype(int) - colours).max() <= _ABOUT_EQUAL)


def _grays(mode: str) -> Image.Image:
    """Return one row, from black to white."""
    ramp = Image.fromarray(_STEPS[None])
    if mode == "CMYK":  # black ink alone
        none = Image.new("L", ramp.size)
        return Image.merge("CMYK", (none, none, none, Image.fromarray(255 - _STEPS[None])))
    return ramp.convert(mode)
