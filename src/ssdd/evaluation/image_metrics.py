"""What compares two images: PSNR, SSIM, LPIPS, the shift of colours; in batches, on uint8.

Shapes: B batch, H x W pixels, N planes (one channel of one image).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.pixels import images_to_tensor, tensor_to_image
from ..objectives.perceptual import LPIPS

Images = np.ndarray | Tensor
"""uint8 (B, H, W, 3)."""

UNIFORM_WINDOW, GAUSSIAN_WINDOW, LPIPS_LEAST = 7, 11, 32
"""The shortest sides for which SSIM and LPIPS are defined: below 32 pixels LPIPS' networks pool all away."""

LPIPS_LARGEST, _LPIPS_TILE = 1 << 22, 1024
"""Pixels above which LPIPS is the mean over tiles of so many pixels a side."""

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_CHUNK = 1 << 18  # pixels at a time: what SSIM's intermediate maps need stays in a processor's cache
_CHUNK_CUDA = 1 << 25


@dataclass(frozen=True)
class Rounded:
    """Reconstructions as a viewer gets them: uint8 (B, H, W, 3), and which of them are finite, bool (B,)."""

    images: np.ndarray
    valid: np.ndarray


def rounded(x: Tensor) -> Rounded:
    """Round x, float (B, 3, H, W), clamped to [-1, 1]. An image with NaN or infinity comes back black, not valid."""
    valid = torch.isfinite(x).flatten(1).all(1)
    images = tensor_to_image(torch.where(valid[:, None, None, None], x, -1.0))
    return Rounded(images, valid.cpu().numpy())


def psnr(mse: np.ndarray) -> np.ndarray:
    """Return 10 log10(1 / mse) in dB for values in [0, 1]; infinite where mse is 0. Any shape."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(1.0 / mse)


def squared_and_absolute_error(original: Images, reconstruction: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over each image of values in [0, 1]: two of (B,) float64, exact sums before the division."""
    x, y = as_planes(original, reconstruction)
    difference = (x.int() - y.int()).flatten(1)
    count = difference.shape[1]
    squared = difference.square().sum(1, dtype=torch.int64).cpu().numpy() / (count * 255.0**2)
    return squared, difference.abs().sum(1, dtype=torch.int64).cpu().numpy() / (count * 255.0)


def ssim_uniform(original: Images, reconstruction: Images) -> np.ndarray:
    """Return SSIM with a 7 x 7 window, as skimage.metrics.structural_similarity by default: (B,) float64."""
    return _mean_over_planes(_ssim_uniform_map, original, reconstruction, UNIFORM_WINDOW)


def ssim_gaussian(original: Images, reconstruction: Images) -> np.ndarray:
    """Return SSIM with an 11 x 11 Gaussian window of sigma 1.5, windows inside the image: (B,) float64."""
    return _mean_over_planes(_ssim_gaussian_map, original, reconstruction, GAUSSIAN_WINDOW)


def colour_shift(original: Images, reconstruction: Images) -> np.ndarray:
    """Return the mean of reconstruction - original in 8-bit levels, of red, green and blue: (B, 3) float64, exact."""
    x, y = as_planes(original, reconstruction)
    difference = (y.int() - x.int()).flatten(2)
    return difference.sum(2, dtype=torch.int64).cpu().numpy() / difference.shape[2]


def lpips(net: LPIPS, x: Tensor, y: Tensor) -> np.ndarray:
    """Return LPIPS of uint8 (B, H, W, 3), (B,) float64; of large images the mean over tiles, weighted by their area.

    A network's features take 200 bytes a pixel.
    """
    height, width = x.shape[1:3]
    if height * width <= LPIPS_LARGEST:
        return _lpips_whole(net, x, y)
    total = np.zeros(len(x))
    for top, bottom in _even(height):
        for left, right in _even(width):
            a, b = (i[:, top:bottom, left:right] for i in (x, y))
            total += _lpips_whole(net, a, b) * ((bottom - top) * (right - left) / (height * width))
    return total


def _even(length: int) -> list[tuple[int, int]]:
    """Return the ends of nearly equal parts of an axis, of ``_LPIPS_TILE`` pixels at most."""
    count = -(-length // _LPIPS_TILE)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def _lpips_whole(net: LPIPS, x: Tensor, y: Tensor) -> np.ndarray:
    # In full precision whatever the caller runs in: a published number depends neither on autocast nor on TF32.
    with (
        torch.autocast(x.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
    ):
        a, b = images_to_tensor(x), images_to_tensor(y)
        return net(b, a).double().cpu().numpy()


def as_planes(original: Images, reconstruction: Images) -> tuple[Tensor, Tensor]:
    """Return both as uint8 (B, 3, H, W), on their device. Raises ValueError for two shapes, or other than uint8."""
    x, y = as_tensor(original), as_tensor(reconstruction)
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3 or x.dtype != torch.uint8 or y.dtype != torch.uint8:
        found = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise ValueError(f"expected two batches of images of one size, uint8 (B, H, W, 3), found {found}")
    return x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)


def as_tensor(images: Images, device: torch.device | None = None) -> Tensor:
    """Return images as a tensor, on a device."""
    if not isinstance(images, Tensor):
        # Torch warns of Pillow's read-only arrays, and refuses mirrored ones.
        images = torch.from_numpy(np.require(images, requirements=("C", "W")))
    return images.to(device)


def _mean_over_planes(
    ssim_map: Callable[[Tensor, Tensor], Tensor], original: Images, reconstruction: Images, window: int
) -> np.ndarray:
    """Return the mean of ``ssim_map`` over the windows of each image's three planes: (B,) float64."""
    x, y = (i.flatten(0, 1) for i in as_planes(original, reconstruction))
    if min(x.shape[1:]) < window:
        raise ValueError(f"expected sides of at least {window} pixels, found {x.shape[1]} x {x.shape[2]}")
    chunk, (count, height, width) = _CHUNK_CUDA if x.is_cuda else _CHUNK, x.shape
    planes, rows = max(1, chunk // (height * width)), max(window, chunk // width)  # several planes, or part of one
    sums = torch.zeros(count, dtype=torch.float64, device=x.device)
    for i in range(0, count, planes):
        for top in range(0, height - window + 1, rows):
            a, b = (plane[i : i + planes, top : top + rows + window - 1] for plane in (x, y))
            sums[i : i + planes] += ssim_map(a, b).sum((1, 2), dtype=torch.float64)
    windows = (height - window + 1) * (width - window + 1)
    return sums.view(-1, 3).mean(1).div(windows).cpu().numpy()


def _ssim_uniform_map(x: Tensor, y: Tensor) -> Tensor:
    """uint8 (N, H, W) twice -> float32 (N, H - 6, W - 6).

    In whole numbers up to the last division: the sums over 49 pixels, and 49 times the second less the first
    squared, all fit 32 bits. So nothing cancels, and single precision is enough from there.
    """
    x, y = x.int(), y.int()
    sum_x, sum_y, sum_squares, sum_xy = (_sliding_sum(i) for i in (x, y, x * x + y * y, x * y))
    n = UNIFORM_WINDOW**2
    product, squares = sum_x * sum_y, sum_x * sum_x + sum_y * sum_y
    covariance, variances = n * sum_xy - product, n * sum_squares - squares
    c1, c2 = _C1 * n * n, _C2 * n * (n - 1)  # of the means' products times n², and the sample moments times n (n - 1)
    return (2.0 * product + c1) * (2.0 * covariance + c2) / ((squares + c1) * (variances + c2))


def _sliding_sum(x: Tensor) -> Tensor:
    """Return the sums over 7 x 7 windows: int32 (N, H, W) -> (N, H - 6, W - 6)."""
    for dim in (2, 1):
        length = x.shape[dim] - 6
        two = x.narrow(dim, 0, length + 5) + x.narrow(dim, 1, length + 5)
        four = two.narrow(dim, 0, length) + two.narrow(dim, 2, length)
        x = four + two.narrow(dim, 4, length) + x.narrow(dim, 6, length)
    return x


def _ssim_gaussian_map(x: Tensor, y: Tensor) -> Tensor:
    """uint8 (N, H, W) twice -> float64 (N, H - 10, W - 10)."""
    # In single precision the moments of bright flat areas cancel: 1e-5 in the mean of an image.
    x, y = x.double(), y.double()
    mean_x, mean_y, mean_squares, mean_xy = (_gaussian_mean(i) for i in (x, y, x * x + y * y, x * y))
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance, variances = mean_xy - product, mean_squares - squares
    return (2.0 * product + _C1) * (2.0 * covariance + _C2) / ((squares + _C1) * (variances + _C2))


def _gaussian_mean(x: Tensor) -> Tensor:
    """Return the means under an 11 x 11 Gaussian of sigma 1.5: float64 (N, H, W) -> (N, H - 10, W - 10)."""
    reach = GAUSSIAN_WINDOW // 2
    weights = [math.exp(-0.5 * (k / 1.5) ** 2) for k in range(-reach, reach + 1)]
    for dim in (2, 1):
        length = x.shape[dim] - 2 * reach
        total = x.narrow(dim, 0, length) * (weights[0] / sum(weights))
        for k in range(1, GAUSSIAN_WINDOW):
            total.add_(x.narrow(dim, k, length), alpha=weights[k] / sum(weights))
        x = total
    return x
