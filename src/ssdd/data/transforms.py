"""From a photograph to a square: training crops and evaluation crops.

Shapes: H x W pixels of the photograph, S side of the crop.
"""

import math

import numpy as np
from PIL import Image

_LANCZOS, _BILINEAR, _BICUBIC = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
_REACH = {_LANCZOS: 3.0, _BICUBIC: 2.0, _BILINEAR: 1.0}  # in pixels of the coarser of the two images
_LONG = 1 << 14


def training_crop(image: np.ndarray, size: int, scale: float, flip: bool, random: np.random.Generator) -> np.ndarray:
    """Return a random crop of a random scale: shorter side resized to U{size .. scale * size} (Lanczos), crop, flip.

    Args:
        image: uint8 (H, W, 3), any size.
        size: S, side of the crop in pixels.
        scale: At least 1; 1 switches the scale augmentation off.
        flip: Mirror half of the crops.
        random: The only source of chance.

    Returns:
        uint8 (S, S, 3), contiguous.
    """
    shorter = int(random.integers(size, int(scale * size), endpoint=True))
    height, width = resized_sides(image, shorter)
    top = int(random.integers(0, height - size, endpoint=True))
    left = int(random.integers(0, width - size, endpoint=True))
    crop = resized_window(image, (height, width), top, left, (size, size), _LANCZOS)
    if flip and random.random() < 0.5:
        crop = crop[:, ::-1]
    return crop.copy()  # contiguous, and writable, which Pillow's arrays are not


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the evaluation crop, uint8 (S, S, 3): shorter side resized to ``size`` (bilinear), then the middle."""
    height, width = resized_sides(image, size)
    crop = resized_window(image, (height, width), (height - size) // 2, (width - size) // 2, (size, size), _BILINEAR)
    return np.ascontiguousarray(crop)


def resized_sides(image: np.ndarray, size: int) -> tuple[int, int]:
    """Return height and width of the image, uint8 (H, W, 3), with a shorter side of ``size``."""
    height, width = image.shape[:2]
    ratio = size / min(height, width)
    return max(size, round(height * ratio)), max(size, round(width * ratio))


def resized_window(
    image: np.ndarray, resized: tuple[int, int], top: int, left: int, shape: tuple[int, int], filter: Image.Resampling
) -> np.ndarray:
    """Cut a window out of a resized image, of which only the window is made.

    Its pixels are those of the whole resized image: exactly where no side of that is above 16384, and to a rounding
    of the place elsewhere. (Pillow's own ``box`` rounds the place to single precision.)

    Args:
        image: uint8 (H, W, 3).
        resized: H' and W' of the resized image.
        top: Of the window, in the resized image.
        left: Of the window, in the resized image.
        shape: h and w of the window.
        filter: Lanczos, bicubic or bilinear.

    Returns:
        uint8 (h, w, 3), perhaps a view of the image.
    """
    height, width = image.shape[:2]
    bottom, right = top + shape[0], left + shape[1]
    if resized == (height, width):
        return image[top:bottom, left:right]
    rows = _needed(height, resized[0], top, shape[0], filter)
    columns = _needed(width, resized[1], left, shape[1], filter)
    if max(resized) > _LONG:
        part = image[rows.start : rows.stop, columns.start : columns.stop]
        down, across = height / resized[0], width / resized[1]
        box = (left * across, top * down, right * across, bottom * down)
        box = tuple(b - c for b, c in zip(box, (columns.start, rows.start) * 2, strict=True))
        inside = tuple(min(max(b, 0.0), float(n)) for b, n in zip(box, part.shape[1::-1] * 2, strict=True))
        return np.asarray(Image.fromarray(part).resize(shape[::-1], filter, box=inside))
    if height > 2 * width and resized[0] < height:  # Pillow 13 filters the columns of such images first
        whole = Image.fromarray(image).resize((resized[1], resized[0]), filter)
        return np.asarray(whole)[top:bottom, left:right]
    # Pillow filters rows, then columns: first only the rows that are needed, then only the columns.
    wide = Image.fromarray(image[rows.start : rows.stop]).resize((resized[1], len(rows)), filter)
    narrow = Image.new("RGB", (shape[1], height))  # rows that are not needed stay black
    narrow.paste(wide.crop((left, 0, right, len(rows))), (0, rows.start))
    return np.asarray(narrow.resize((shape[1], resized[0]), filter))[top:bottom]


def _needed(length: int, resized: int, start: int, size: int, filter: Image.Resampling) -> range:
    """Return the rows, or columns, that so many of the resized image are made of."""
    scale = length / resized
    reach = _REACH[filter] * max(scale, 1.0) + 1  # one more for rounding
    first = max(0, math.floor((start + 0.5) * scale - reach))
    return range(first, min(length, math.ceil((start + size - 0.5) * scale + reach)))
