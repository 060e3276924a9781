"""Radial power spectra of luma: does a decoder smooth detail away, invent it, or draw a weave of single pixels?

Shapes: B batch, H x W pixels, K bands of frequency. Frequencies are in cycles per pixel: 0.5 is Nyquist's, and
sqrt(0.5) that of the finest diagonal pattern.
"""

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .image_metrics import Images, as_planes

# Squared, half an octave each, from 1 / 1024 to the finest: as powers of two they are exact, and so is a quarter of a
# cycle, half Nyquist's, between two of them.
_SQUARED_EDGES = tuple(0.25 * 2.0**-k for k in range(18, -2, -1))
_HALF_NYQUIST_SQUARED = 0.0625
_LUMA = (0.299, 0.587, 0.114)
_NOTHING = 1e-20
"""Squared levels per pixel: what rounding leaves of a flat image is far below, one level in one pixel far above."""

_NEIGHBORS = slice(-8, -2)
"""Lines of the spectrum that Nyquist's is compared with; the Hann window blurs the two nearest into it."""

FREQUENCIES = np.sqrt([math.sqrt(a * b) for a, b in itertools.pairwise(_SQUARED_EDGES)])
"""(K,) geometric centres of the bands."""


@dataclass(frozen=True)
class Spectra:
    """Spectra of a batch, in squared 8-bit levels over the window's energy: white noise has its variance in every band.

    Attributes:
        power: (B, K) float64, mean power in each band, NaN where an image has no frequency there.
        high: (B,) energy above half of Nyquist's frequency, in every direction.
        weave: (B,) power of patterns with a period of 2 pixels over that of patterns a little coarser, about 1 in
            photographs.
    """

    power: np.ndarray
    high: np.ndarray
    weave: np.ndarray


def spectra(images: Images) -> Spectra:
    """Return the spectra of luma, mean removed, under a Hann window; images: uint8 (B, H, W, 3)."""
    planes, _ = as_planes(images, images)
    power = _power(planes)
    squared, counts = _half_plane(planes.shape[2], planes.shape[3], power.device)
    band = torch.bucketize(squared, power.new_tensor(_SQUARED_EDGES[1:-1]), right=True).flatten()
    inside = (squared.flatten() >= _SQUARED_EDGES[0]) * counts.flatten()
    empty = power.new_zeros(len(_SQUARED_EDGES) - 1, len(power))
    energy = empty.index_add(0, band, (power.flatten(1) * inside).T)
    per_band = empty.index_add(0, band, inside[:, None].expand(-1, len(power)))
    above = torch.where(squared >= _HALF_NYQUIST_SQUARED, counts, 0.0)
    high = (power * above).flatten(1).sum(1) / counts.sum()
    return Spectra((energy / per_band).T.cpu().numpy(), high.cpu().numpy(), _weave(power, planes.shape[3]))


def detail_ratio(reconstruction: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Return energies of detail over the originals', (B,); 1 where neither has any, infinite where one alone has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(original < _NOTHING, np.inf, reconstruction / original)
    return np.where((reconstruction < _NOTHING) & (original < _NOTHING), 1.0, ratio)


def mean_power(batches: Iterable[np.ndarray]) -> list[float]:
    """Return the mean of ``Spectra.power`` (b, K) over the images of batches: K numbers, NaN for empty bands."""
    total, count = np.zeros(len(FREQUENCIES)), np.zeros(len(FREQUENCIES))
    for power in batches:
        total += np.nansum(power, axis=0)
        count += np.isfinite(power).sum(0)
    with np.errstate(invalid="ignore"):
        return (total / count).tolist()


def _power(planes: Tensor) -> Tensor:
    """Return the power of each frequency of the right half plane: uint8 (B, 3, H, W) -> float64 (B, H, W // 2 + 1)."""
    luma = (planes.double() * planes.new_tensor(_LUMA, dtype=torch.float64)[:, None, None]).sum(1)
    luma = luma - luma.mean((1, 2), keepdim=True)
    rows, columns = (torch.hann_window(n, dtype=torch.float64, device=luma.device) for n in luma.shape[1:])
    window = rows[:, None] * columns
    return torch.fft.rfft2(luma * window).abs().square() / window.square().sum()


def _weave(power: Tensor, width: int) -> np.ndarray:
    """Return the power at Nyquist's frequency, across or down, over that of its neighbours: (B,), NaN for odd sides."""
    height = power.shape[1]
    if height % 2 or width % 2:
        return np.full(len(power), np.nan)
    across, down = power.sum(1), power.sum(2)[:, : height // 2 + 1]  # by horizontal, by vertical frequency
    finest = across[:, -1] + down[:, -1]
    coarser = across[:, _NEIGHBORS].mean(1) + down[:, _NEIGHBORS].mean(1)
    return torch.where(coarser > _NOTHING, finest / coarser, torch.nan).cpu().numpy()


@functools.lru_cache(maxsize=8)
def _half_plane(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return each squared frequency of the right half plane, and 2 where it stands for its mirror image too, else 1."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64, device=device)
    counts = torch.where((columns == 0) | (columns == 0.5), 1.0, 2.0).double().expand(height, -1)
    return rows.square()[:, None] + columns.square(), counts
