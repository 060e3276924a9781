"""From a photograph to a square: training crops and evaluation crops.

Shapes: H x W pixels of the photograph, S side of the crop.
"""

import numpy as np
from PIL import Image


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
    resized = resize_shorter_side(image, shorter, Image.Resampling.LANCZOS)
    top = int(random.integers(0, resized.shape[0] - size, endpoint=True))
    left = int(random.integers(0, resized.shape[1] - size, endpoint=True))
    crop = resized[top : top + size, left : left + size]
    if flip and random.random() < 0.5:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(crop)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Evaluation crop: shorter side resized to ``size`` (bilinear), then the middle. uint8 (S, S, 3)."""
    resized = resize_shorter_side(image, size, Image.Resampling.BILINEAR)
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def resize_shorter_side(image: np.ndarray, size: int, filter: Image.Resampling) -> np.ndarray:
    """Resize so that the shorter side is ``size``; the longer one is rounded and never shorter. uint8 (H', W', 3)."""
    height, width = image.shape[:2]
    ratio = size / min(height, width)
    new = (max(size, round(width * ratio)), max(size, round(height * ratio)))
    if new == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize(new, filter))
