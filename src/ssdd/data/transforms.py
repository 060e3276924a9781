"""From a photograph to a square: training crops and evaluation crops.

Shapes: H x W pixels of the photograph, S side of the crop.
"""

import math

import numpy as np
from PIL import Image

_LANCZOS = Image.Resampling.LANCZOS
_LANCZOS_REACH = 3.0  # in pixels of the coarser of the two images


def training_crop(image: np.ndarray, size: int, scale: float, flip: bool, random: np.random.Generator) -> np.ndarray:
    """Random crop of a random scale: shorter side resized to U{size .. scale * size} (Lanczos), crop, flip.

    Args:
        image: uint8 (H, W, 3), any size.
        size: S, side of the crop in pixels.
        scale: at least 1; 1 switches the scale augmentation off.
        flip: mirror half of the crops.
        random: the only source of chance.

    Returns:
        uint8 (S, S, 3), contiguous.
    """
    shorter = int(random.integers(size, int(scale * size), endpoint=True))
    width, height = _resized(image, shorter)
    top = int(random.integers(0, height - size, endpoint=True))
    left = int(random.integers(0, width - size, endpoint=True))
    crop = _resized_window(image, (width, height), top, left, size)
    if flip and random.random() < 0.5:
        crop = crop[:, ::-1]
    return crop.copy()  # contiguous, and writable, which Pillow's arrays are not


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Evaluation crop: shorter side resized to ``size`` (bilinear), then the middle. uint8 (S, S, 3)."""
    resized = resize_shorter_side(image, size, Image.Resampling.BILINEAR)
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def resize_shorter_side(image: np.ndarray, size: int, filter: Image.Resampling) -> np.ndarray:
    """Resize so that the shorter side is ``size``; the longer one is rounded and never shorter. uint8 (H', W', 3)."""
    height, width = image.shape[:2]
    new = _resized(image, size)
    if new == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize(new, filter))


def _resized(image: np.ndarray, size: int) -> tuple[int, int]:
    """Width and height of the image with a shorter side of ``size``."""
    height, width = image.shape[:2]
    ratio = size / min(height, width)
    return max(size, round(width * ratio)), max(size, round(height * ratio))


def _resized_window(image: np.ndarray, new: tuple[int, int], top: int, left: int, size: int) -> np.ndarray:
    """``size`` x ``size`` pixels at (``top``, ``left``) of the image resized to ``new`` (width, height) by Lanczos.

    They are the very pixels of the whole resized image, in half the time. Pillow filters rows, then columns: here
    only the rows that the window needs, then only its columns. (Its own ``box`` rounds the window's place to single
    precision, which changes pixels.)
    """
    (height, width), (new_width, new_height) = image.shape[:2], new
    if new == (width, height):
        return image[top : top + size, left : left + size]
    if height > 2 * width:  # Pillow 13 filters the columns of such images first
        return np.asarray(Image.fromarray(image).resize(new, _LANCZOS))[top : top + size, left : left + size]
    scale = height / new_height
    reach = _LANCZOS_REACH * max(scale, 1.0) + 1  # one more for rounding
    first = max(0, math.floor((top + 0.5) * scale - reach))
    last = min(height, math.ceil((top + size - 0.5) * scale + reach))
    rows = Image.fromarray(image[first:last]).resize((new_width, last - first), _LANCZOS)
    columns = Image.new("RGB", (size, height))  # rows out of reach stay black: nothing reads them
    columns.paste(rows.crop((left, 0, left + size, last - first)), (0, first))
    return np.asarray(columns.resize((size, new_height), _LANCZOS))[top : top + size]
