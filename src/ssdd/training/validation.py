"""How good a model is on held-out photographs while it trains: figures and sample grids.

Shapes: N crops, S side, in uint8 (N, S, S, 3).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data.images import ImageError
from ..data.pixels import images_to_tensor
from ..data.sources import ImageSource
from ..data.transforms import centre_crop
from ..evaluation.features import cached_extractor
from ..evaluation.frechet import GaussianStatistics, frechet_distance
from ..evaluation.image_metrics import rounded
from ..evaluation.metrics import BatchMetrics, cached_lpips
from ..objectives import LPIPSNetwork
from .stages.base import Stage

MOST = 500
"""Photographs that are held out by a share of the data, at most."""

LOWER_IS_BETTER = ("lpips", "fd")

_BATCH, _GAP = 16, 4


def hold_out(length: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a data set that are trained on and those that are held out, sorted; a seeded choice."""
    count = min(MOST, round(share * length))
    order = np.random.default_rng([seed, length]).permutation(length)
    return np.sort(order[count:]), np.sort(order[:count])


def read_crops(source: ImageSource, count: int, side: int) -> np.ndarray:
    """Return centre crops, uint8 (N, S, S, 3), of evenly spaced images of a source; unreadable ones are left out."""
    crops = []
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            crops.append(centre_crop(source.read(int(index)), side))
        except ImageError:
            continue  # the loader counts and names it
    return np.stack(crops) if crops else np.zeros((0, side, side, 3), np.uint8)


class Validation:
    """Measures reconstructions of the same crops again and again.

    PSNR, SSIM, LPIPS and a Fréchet distance on the first extractor whose weights are at hand. The distance is between
    as many crops as there are here: it can be compared within a run, and with nothing else.

    Args:
        stage: knows how to reconstruct.
        crops: uint8 (N, S, S, 3).
        steps: numbers of decoding steps.
        lpips: preferred backbone.
        device: where it is measured.
    """

    def __init__(
        self,
        stage: Stage,
        crops: np.ndarray,
        steps: Sequence[int],
        lpips: LPIPSNetwork | None,
        device: torch.device,
    ) -> None:
        self.stage, self.crops, self.steps, self.device = stage, crops, tuple(steps), device
        metric = cached_lpips(device, preferred=lpips)
        self.metrics = BatchMetrics(device=device, others=[metric] if metric else [])
        self.lpips = metric.name if metric else ""
        self.extractor = cached_extractor(device) if len(crops) > 1 else None
        self._real: GaussianStatistics | None = None

    @torch.no_grad()
    def measure(self, result: Any) -> dict[str, float]:
        """Return the metrics of a model by name and number of steps: ``psnr_1``, ``lpips_8``, ``fd_1``, ..."""
        scores: dict[str, float] = {}
        for steps in self.steps:
            made = self._reconstruct(result, self.crops, steps)
            values = self.metrics(self.crops, made)
            names = {"psnr": "psnr", "ssim": "ssim_gaussian_11", "lpips": self.lpips}
            means = {short: float(np.mean(values[name])) for short, name in names.items() if name in values}
            if self.extractor is not None:
                self._real = self._real or self._statistics(self.crops)
                means["fd"] = frechet_distance(self._real, self._statistics(made))
            scores |= {f"{name}_{steps}": value for name, value in means.items()}
        return scores

    @torch.no_grad()
    def grid(self, result: Any, count: int) -> np.ndarray:
        """Return a page: originals in the first row, then a row for each number of steps; black where not finite."""
        shown = self.crops[:: max(1, len(self.crops) // count)][:count]
        return grid([shown, *(self._reconstruct(result, shown, steps) for steps in self.steps)])

    def _reconstruct(self, result: Any, crops: np.ndarray, steps: int) -> np.ndarray:
        """Return reconstructions of crops, both uint8 (N, S, S, 3)."""
        made = []
        for piece in torch.from_numpy(crops).split(_BATCH):
            images = images_to_tensor(piece).to(self.device)
            made.append(rounded(self.stage.reconstruct(result, images, steps).float()).images)
        return np.concatenate(made)

    def _statistics(self, images: np.ndarray) -> GaussianStatistics:
        assert self.extractor is not None
        statistics = GaussianStatistics(self.extractor.width, self.device, self.extractor.identity)
        for piece in torch.from_numpy(images).split(_BATCH):
            statistics.update(self.extractor(piece.to(self.device)))
        return statistics


def better(metric: str, new: float, old: float | None) -> bool:
    """Return whether a metric's new value is better than the best one until now; None: there is none."""
    if old is None:
        return True
    return new < old if metric in LOWER_IS_BETTER else new > old


def summary(before: dict[str, float], after: dict[str, float], count: int) -> str:
    """Return the figures of a model before and after its training as lines of text."""
    lines = [f"on {count} held-out crops:".ljust(34) + ("before     after" if before else "")]
    for name, value in after.items():
        metric, steps = name.rsplit("_", 1)
        old = f"{before[name]:10.4g}" if name in before else ""
        lines.append(
            f"  {metric.upper():5} {steps:>2} step{'s' if steps != '1' else ' '}".ljust(30) + f"{old}{value:10.4g}"
        )
    return "\n".join(lines)


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows of K images each, uint8 (K, S, S, 3), on one white page."""
    gap = (0, _GAP)
    tiles = np.pad(np.stack(rows), ((0, 0), (0, 0), gap, gap, (0, 0)), constant_values=255)  # (R, K, S + g, S + g, 3)
    height, width = (tiles.shape[i] * tiles.shape[i + 2] for i in (0, 1))
    return tiles.swapaxes(1, 2).reshape(height, width, 3)[:-_GAP, :-_GAP]
