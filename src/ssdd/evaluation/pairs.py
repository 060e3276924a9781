"""Metrics of one reconstruction against its original, both rounded to 8 bits, as a viewer gets them.

Shapes: H x W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .metrics import BatchMetrics, cached_lpips


@dataclass(frozen=True)
class ImageMetrics:
    """psnr in dB (infinite for equal images); ssim with an 11 x 11 Gaussian window; lpips; None where undefined."""

    psnr: float
    ssim: float | None
    lpips: float | None


class ImageComparison:
    """Compares pairs of images. ``lpips_network`` is the first whose weights are at hand and whole, or None."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        lpips = cached_lpips(self.device)
        self.lpips_network = lpips.name.removeprefix("lpips_") if lpips else None
        self._metrics = BatchMetrics(self.device, [lpips] if lpips else [])

    def __call__(self, original: np.ndarray, reconstruction: np.ndarray) -> ImageMetrics:
        """Compare two images, uint8 (H, W, 3) of one size. Raises ValueError for two sizes."""
        if original.shape != reconstruction.shape:
            raise ValueError(f"expected two images of one size, found {original.shape} and {reconstruction.shape}")
        metrics = {name: float(v[0]) for name, v in self._metrics(original[None], reconstruction[None]).items()}
        lpips = metrics.get(f"lpips_{self.lpips_network}")
        return ImageMetrics(metrics["psnr"], metrics.get("ssim_gaussian_11"), lpips)


def mean_metrics(metrics: list[ImageMetrics]) -> ImageMetrics:
    """Return the mean of each metric over the images where it is defined."""

    def mean(values: list[float | None]) -> float | None:
        defined = [v for v in values if v is not None]
        return sum(defined) / len(defined) if defined else None

    return ImageMetrics(
        mean([m.psnr for m in metrics]) or 0.0, mean([m.ssim for m in metrics]), mean([m.lpips for m in metrics])
    )


def bicubic_baseline(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the image reduced by ``factor`` and enlarged again, both bicubic: what a latent grid of pixels keeps."""
    height, width = image.shape[:2]
    small = (-(-width // factor), -(-height // factor))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
