"""Sample grids: fixed images and what the averaged model makes of them.

Shapes: K images, S side, in uint8 (S, S, 3).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageError, save_image
from ..data.pixels import image_to_tensor, tensor_to_image
from ..data.sources import open_source
from ..data.transforms import centre_crop
from .config import TrainConfig
from .stages.base import Stage
from .task import Preview

_GAP = 4


def preview_images(config: TrainConfig) -> Tensor:
    """The fixed images: centre crops (K, 3, S, S) in [-1, 1], evenly spaced over the validation source."""
    source = open_source(config.data.validation or config.data.paths)
    count = min(config.log.sample_count, len(source))
    crops: list[Tensor] = []
    for index in np.linspace(0, len(source) - 1, count).astype(int):
        try:
            crops.append(image_to_tensor(centre_crop(source.read(int(index)), config.data.resolution)))
        except ImageError:
            continue  # the loader counts and names it; a grid with one image less is a grid
    return torch.stack(crops) if crops else torch.zeros(0, 3, config.data.resolution, config.data.resolution)


@torch.no_grad()
def preview(stage: Stage, result: Any, images: Tensor) -> Preview:
    """Originals in the first row, then a row per number of steps; their PSNR in dB."""
    rows, psnr = [tensor_to_image(images)], {}
    for steps in stage.preview_steps:
        reconstruction = stage.reconstruct(result, images, steps).float().clamp(-1, 1)
        rows.append(tensor_to_image(reconstruction.nan_to_num(-1.0)))  # black where the model has diverged
        error = (reconstruction - images).square().mean(dim=(1, 2, 3)) / 4  # of values in [0, 1]
        value = float((-10 * error.log10()).mean())
        if math.isfinite(value):
            psnr[f"preview_psnr_{steps}_step{'s' if steps > 1 else ''}"] = value
    return Preview(grid(rows), psnr)


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of K images each, uint8 (K, S, S, 3), on one white page."""
    count, side = rows[0].shape[:2]
    step = side + _GAP
    page = np.full((len(rows) * step - _GAP, count * step - _GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            page[r * step : r * step + side, c * step : c * step + side] = image
    return page


def save_preview(page: np.ndarray, run: Path, seen: int) -> Path:
    """``samples/IMAGES_SEEN.png`` in the run's folder."""
    path = run / "samples" / f"{seen:012d}.png"
    save_image(path, page, overwrite=True)
    return path
