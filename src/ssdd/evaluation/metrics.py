"""Metrics of one reconstruction against its original, both rounded to 8 bits, as a viewer gets them.

Shapes: H x W pixels. All from torchmetrics.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ..data.images import image_to_tensor
from ..objectives.perceptual import LPIPS, available_network

_SSIM_WINDOW = 11
_LPIPS_LEAST = 32
"""Sides below this vanish in the backbone's poolings."""


@dataclass(frozen=True)
class ImageMetrics:
    """psnr in dB (infinite for equal images); ssim with an 11 x 11 Gaussian window; lpips; None where undefined."""

    psnr: float
    ssim: float | None
    lpips: float | None


class ImageComparison:
    """Compares pairs of images. ``lpips_network`` is the first whose weights are at hand, or None."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.lpips_network = available_network()
        self._lpips = LPIPS(self.lpips_network).to(self.device) if self.lpips_network else None

    @torch.inference_mode()
    def __call__(self, original: np.ndarray, reconstruction: np.ndarray) -> ImageMetrics:
        """Both uint8 (H, W, 3), of the same size. Raises ValueError if they are not."""
        if original.shape != reconstruction.shape:
            raise ValueError(f"expected two images of one size, found {original.shape} and {reconstruction.shape}")
        x, y = (image_to_tensor(i)[None].to(self.device) for i in (original, reconstruction))
        shorter = min(original.shape[:2])
        lpips = self._lpips(y, x) if self._lpips is not None and shorter >= _LPIPS_LEAST else None
        x, y = (x + 1) / 2, (y + 1) / 2  # SSIM compares means, so it depends on where zero is: at black
        psnr = peak_signal_noise_ratio(y, x, data_range=1.0)
        ssim = _ssim(x, y) if shorter >= _SSIM_WINDOW else None
        return ImageMetrics(float(psnr), ssim, None if lpips is None else float(lpips))


def _ssim(x: Tensor, y: Tensor) -> float:
    """Mean over the windows inside the image, as by Wang et al. 2004: torchmetrics' own mean has mirrored borders."""
    _, windows = structural_similarity_index_measure(y, x, data_range=1.0, return_full_image=True)
    border = _SSIM_WINDOW // 2
    return float(windows[..., border:-border, border:-border].mean())


def mean_metrics(metrics: list[ImageMetrics]) -> ImageMetrics:
    """Mean over images of each metric, over those where it is defined."""

    def mean(values: list[float | None]) -> float | None:
        defined = [v for v in values if v is not None]
        return sum(defined) / len(defined) if defined else None

    return ImageMetrics(
        mean([m.psnr for m in metrics]) or 0.0, mean([m.ssim for m in metrics]), mean([m.lpips for m in metrics])
    )


def bicubic_baseline(image: np.ndarray, factor: int) -> np.ndarray:
    """The image reduced by ``factor`` and enlarged again, both bicubic: as many cells as the latent grid, of pixels."""
    height, width = image.shape[:2]
    small = (-(-width // factor), -(-height // factor))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
