"""Pixels to what the networks see, and back: `uint8 HWC RGB <-> float CHW in [-1, 1]`.

Shapes: B images, H x W pixels.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def image_to_tensor(image: Pixels) -> torch.Tensor:
    """Map pixels, uint8 (H, W, 3), to x = pixels / 127.5 - 1: float32 (3, H, W) in [-1, 1].

    Raises `ValueError` for another shape or type.
    """
    check_pixels(image)
    return levels_to_values(torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1))))


def images_to_tensor(images: torch.Tensor) -> torch.Tensor:
    """Map a batch, uint8 (B, H, W, 3), to float32 (B, 3, H, W) in [-1, 1] on its device; in memory channels come last.

    Raises `ValueError` for another shape or type.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"expected uint8 images (B, H, W, 3), found {images.dtype} {tuple(images.shape)}")
    return levels_to_values(images.permute(0, 3, 1, 2))


def levels_to_values(levels: torch.Tensor) -> torch.Tensor:
    """Map uint8 of any shape to float32 in [-1, 1]; the order in memory stays as it is."""
    return levels.to(torch.float32, copy=True).div_(127.5).sub_(1.0)


def tensor_to_image(x: torch.Tensor) -> Pixels:
    """Map x, any float type, (3, H, W) or (B, 3, H, W), to pixels, uint8 (H, W, 3) or (B, H, W, 3).

    Values are clamped to [-1, 1] and rounded to the nearest of 256 levels: the inverse of `image_to_tensor`.
    Raises `ValueError` for NaN, and for another shape or type.
    """
    shape = tuple(x.shape)
    if not x.is_floating_point() or x.ndim not in (3, 4) or x.shape[-3] != 3:
        raise ValueError(f"expected a float tensor (3, H, W) or (B, 3, H, W), found {x.dtype} {shape}")
    x = x.detach().to(torch.float32)
    if bool(torch.isnan(x).any()):
        raise ValueError(f"expected image values in [-1, 1], found NaN in a tensor of shape {shape}")
    levels = x.clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


def check_pixels(image: Pixels) -> None:
    """Raise `ValueError` unless these are uint8 (H, W, 3), and not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected uint8 pixels of shape (H, W, 3), found {image.dtype} {image.shape}")
