"""Over-smoothing and precision: the radial power spectrum of luma, and the mean shift of each colour.

Shapes: B batch, H x W pixels, K bands of frequency. Frequencies are in cycles a pixel: 0.5 is Nyquist's, and
sqrt(0.5) that of the finest diagonal pattern.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .image_metrics import Images, as_planes

COLOURS = ("red", "green", "blue")

# Squared, half an octave each, from 1 / 1024 to the finest: as powers of two they are exact, and so is a quarter of a
# cycle, half Nyquist's, between two of them.
_SQUARED_EDGES = tuple(0.25 * 2.0**-k for k in range(18, -2, -1))
_HALF_NYQUIST_SQUARED = 0.0625
_LUMA = (0.299, 0.587, 0.114)
_NOTHING = 1e-20
"""Squared levels a pixel: what rounding leaves of a flat image is far below, one level in one pixel far above."""


@dataclass(frozen=True)
class RadialSpectrum:
    """frequency: (K,) the bands' geometric centres. power: (B, K) float64, NaN where an image has no frequency there.

    In squared 8-bit levels, normalised by the window's energy: white noise has its variance in every band.
    """

    frequency: np.ndarray
    power: np.ndarray


def radial_power_spectrum(images: Images) -> RadialSpectrum:
    """Mean power of luma in bands of half an octave, mean removed, under a Hann window; images uint8 (B, H, W, 3)."""
    planes, _ = as_planes(images, images)
    power = _power(planes)
    squared, counts = _half_plane(*planes.shape[2:], power.device)
    band = torch.bucketize(squared, power.new_tensor(_SQUARED_EDGES[1:-1]), right=True).flatten()
    inside = (squared.flatten() >= _SQUARED_EDGES[0]) * counts.flatten()
    empty = power.new_zeros(len(_SQUARED_EDGES) - 1, len(power))
    energy = empty.index_add(0, band, (power.flatten(1) * inside).T)
    per_band = empty.index_add(0, band, inside[:, None].expand(-1, len(power)))
    edges = np.sqrt(_SQUARED_EDGES)
    return RadialSpectrum(np.sqrt(edges[1:] * edges[:-1]), (energy / per_band).T.cpu().numpy())


def high_frequency_ratio(reconstruction: Images, original: Images) -> np.ndarray:
    """Energy above half of Nyquist's frequency, in every direction, over the original's: (B,) float64.

    Below 1 detail is lost, above 1 there is more than there was. 1 where neither image has any, infinite where the
    original alone has none. Both uint8 (B, H, W, 3); raises ValueError for two shapes.
    """
    ours, theirs = (_high_energy(i) for i in as_planes(reconstruction, original))
    neither = (ours < _NOTHING) & (theirs < _NOTHING)
    ratio = torch.where(theirs < _NOTHING, torch.inf, ours / theirs)
    return torch.where(neither, 1.0, ratio).cpu().numpy()


def colour_shift(reconstruction: Images, original: Images) -> np.ndarray:
    """Mean of reconstruction - original in 8-bit levels, for ``COLOURS``: (B, 3) float64, exact sums.

    Both uint8 (B, H, W, 3); raises ValueError for two shapes.
    """
    x, y = as_planes(reconstruction, original)
    difference = (x.int() - y.int()).flatten(2)
    return difference.sum(2, dtype=torch.int64).cpu().numpy() / difference.shape[2]


def _high_energy(planes: Tensor) -> Tensor:
    """Of uint8 (B, 3, H, W), in squared levels a pixel: (B,)."""
    power = _power(planes)
    squared, counts = _half_plane(*planes.shape[2:], power.device)
    above = torch.where(squared >= _HALF_NYQUIST_SQUARED, counts, 0.0)
    return (power * above).flatten(1).sum(1) / counts.sum()


def _power(planes: Tensor) -> Tensor:
    """Power of each frequency of the right half plane: uint8 (B, 3, H, W) -> float64 (B, H, W // 2 + 1)."""
    luma = (planes.double() * planes.new_tensor(_LUMA, dtype=torch.float64)[:, None, None]).sum(1)
    luma = luma - luma.mean((1, 2), keepdim=True)
    rows, columns = (torch.hann_window(n, dtype=torch.float64, device=luma.device) for n in luma.shape[1:])
    window = rows[:, None] * columns
    return torch.fft.rfft2(luma * window).abs().square() / window.square().sum()


@functools.lru_cache(maxsize=8)
def _half_plane(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each frequency of the right half plane: its square, and 2 if it stands for its mirror image too, else 1."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64, device=device)
    counts = torch.where((columns == 0) | (columns == 0.5), 1.0, 2.0).double().expand(height, -1)
    return rows.square()[:, None] + columns.square(), counts
