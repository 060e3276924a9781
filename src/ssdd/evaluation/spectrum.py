"""Over-smoothing and precision: the radial power spectrum of luma, and the mean shift of each colour.

Shapes: B batch, H x W pixels, K bands of frequency. Frequencies are in cycles a pixel: 0.5 is Nyquist's, and
sqrt(0.5) that of the finest diagonal pattern.
"""

import functools
import itertools
import math
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


FREQUENCIES = np.sqrt([math.sqrt(a * b) for a, b in itertools.pairwise(_SQUARED_EDGES)])
"""(K,) the bands' geometric centres."""


@dataclass(frozen=True)
class Spectra:
    """Of a batch: power (B, K) float64 of each band, NaN where an image has no frequency there; high (B,) energy above
    half of Nyquist's frequency, in every direction.

    Powers are in squared 8-bit levels, normalised by the window's energy: white noise has its variance in every band.
    """

    power: np.ndarray
    high: np.ndarray


def spectra(images: Images) -> Spectra:
    """Mean power of luma in bands of half an octave, mean removed, under a Hann window; images uint8 (B, H, W, 3)."""
    planes, _ = as_planes(images, images)
    power = _power(planes)
    squared, counts = _half_plane(*planes.shape[2:], power.device)
    band = torch.bucketize(squared, power.new_tensor(_SQUARED_EDGES[1:-1]), right=True).flatten()
    inside = (squared.flatten() >= _SQUARED_EDGES[0]) * counts.flatten()
    empty = power.new_zeros(len(_SQUARED_EDGES) - 1, len(power))
    energy = empty.index_add(0, band, (power.flatten(1) * inside).T)
    per_band = empty.index_add(0, band, inside[:, None].expand(-1, len(power)))
    above = torch.where(squared >= _HALF_NYQUIST_SQUARED, counts, 0.0)
    high = (power * above).flatten(1).sum(1) / counts.sum()
    return Spectra((energy / per_band).T.cpu().numpy(), high.cpu().numpy())


def high_frequency_ratio(reconstruction: Spectra, original: Spectra) -> np.ndarray:
    """Energy above half of Nyquist's frequency over the original's: (B,) float64.

    Below 1 detail is lost, above 1 there is more than there was. 1 where neither image has any, infinite where the
    original alone has none. Raises ValueError for two numbers of images.
    """
    ours, theirs = reconstruction.high, original.high
    if ours.shape != theirs.shape:
        raise ValueError(f"expected as many reconstructions as originals, found {len(ours)} and {len(theirs)}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(theirs < _NOTHING, np.inf, ours / theirs)
    return np.where((ours < _NOTHING) & (theirs < _NOTHING), 1.0, ratio)


class MeanSpectrum:
    """Mean power by band over images that come in batches, and from several processes."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(len(FREQUENCIES)), np.zeros(len(FREQUENCIES))

    @property
    def frequency(self) -> np.ndarray:
        """(K,) ``FREQUENCIES``."""
        return FREQUENCIES

    @property
    def power(self) -> np.ndarray:
        """(K,) float64, NaN where no image has a frequency."""
        with np.errstate(invalid="ignore"):
            return self._sum / self._count

    def update(self, power: np.ndarray) -> None:
        """Adds images by their ``Spectra.power`` (B, K)."""
        self._sum += np.nansum(power, axis=0)
        self._count += np.isfinite(power).sum(0)

    def merge(self, other: "MeanSpectrum") -> None:
        """Adds what another process has summed."""
        self._sum += other._sum
        self._count += other._count


def colour_shift(reconstruction: Images, original: Images) -> np.ndarray:
    """Mean of reconstruction - original in 8-bit levels, for ``COLOURS``: (B, 3) float64, exact sums.

    Both uint8 (B, H, W, 3); raises ValueError for two shapes.
    """
    x, y = as_planes(reconstruction, original)
    difference = (x.int() - y.int()).flatten(2)
    return difference.sum(2, dtype=torch.int64).cpu().numpy() / difference.shape[2]


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
