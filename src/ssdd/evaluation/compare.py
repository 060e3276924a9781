"""Autoencoders side by side: the same crops through each of them, one pass, every metric.

Shapes: B crops of one size, H x W pixels, D features.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.loader import Skipped
from ..objectives.perceptual import LPIPSNetwork
from .contestants import Contestant
from .distances import GaussianStatistics, frechet_distance, kernel_distance, manifold_metrics
from .features import Extractor
from .image_metrics import BatchMetrics, rounded
from .protocols import Census, EvaluationCrop, EvaluationSet, Protocol, read_items
from .spectrum import COLOURS, colour_shift, high_frequency_ratio
from .tables import ImageMetricTable

MANIFOLD_LIMIT = 10_000
"""Features of either set that density, coverage, precision, recall and KID are computed on; the first ones."""


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: an autoencoder, and its number of decoding steps where it has one to choose."""

    contestant: Contestant
    steps: int | None = None

    @property
    def label(self) -> str:
        """Its name in tables."""
        return (
            self.contestant.name if self.steps is None else f"{self.contestant.name}, {self.steps} step{_s(self.steps)}"
        )


@dataclass
class Row:
    """What was measured of an entry. Times are seconds per image, medians over batches without the first."""

    entry: Entry
    table: ImageMetricTable = field(default_factory=ImageMetricTable)
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    latent_bytes: list[int] = field(default_factory=list)
    distances: dict[str, dict[str, float | bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All rows, the protocol, what of the data was used, and which extractors by which files."""

    protocol: Protocol
    census: Census
    rows: list[Row]
    extractors: list[Extractor]


class _Features:
    """Features of one set: statistics over all of them, the first ones as they are."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.statistics = GaussianStatistics(extractor.width, extractor.device, extractor.identity)
        self._kept: list[Tensor] = []
        self._count = 0

    def add(self, images: Tensor) -> None:
        """images: uint8 (B, H, W, 3)."""
        features = self.extractor(images)
        self.statistics.update(features)
        room = MANIFOLD_LIMIT - self._count
        if room > 0:
            self._kept.append(features[:room].cpu())
            self._count += len(self._kept[-1])

    @property
    def kept(self) -> Tensor:
        return torch.cat(self._kept)


def compare(
    entries: Sequence[Entry],
    evaluation_set: EvaluationSet,
    *,
    batch_size: int = 16,
    workers: int = 2,
    lpips_networks: Sequence[LPIPSNetwork] = (),
    extractors: Sequence[Extractor] = (),
    device: torch.device | str = "cpu",
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> Comparison:
    """Runs every entry on every crop of the set.

    No number depends on the batch size or the workers, but for rounding. Memory does not grow with the set but for
    features (up to ``MANIFOLD_LIMIT`` a set) and a row of numbers per crop.

    Raises ValueError if the set has no usable image, or a crop does not fit an autoencoder.
    """
    device = torch.device(device)
    census, rows = Census(), [Row(entry) for entry in entries]
    metrics = BatchMetrics(lpips_networks, device)
    originals = [_Features(e) for e in extractors]
    fakes = [[_Features(e) for e in extractors] for _ in rows]
    first = 0
    for crops in _batches(evaluation_set, census, batch_size, workers, progress):
        pixels = np.stack([crop.pixels for crop in crops])
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        for features in originals:
            features.add(torch.from_numpy(pixels))
        latents: dict[int, tuple[Any, float]] = {}
        for row, own in zip(rows, fakes, strict=True):
            _measure(row, own, images, pixels, crops, latents, evaluation_set.protocol.seed, first, metrics)
        first += len(crops)
    if not first:
        raise ValueError(f"expected usable images, found none: {len(census.skipped)} skipped; {_reasons(census)}")
    for row, own in zip(rows, fakes, strict=True):
        for real, fake in zip(originals, own, strict=True):
            row.distances[real.extractor.name] = _distances(real, fake)
    return Comparison(evaluation_set.protocol, census, rows, list(extractors))


@torch.inference_mode()
def _measure(
    row: Row,
    features: list[_Features],
    images: Tensor,
    pixels: np.ndarray,
    crops: list[EvaluationCrop],
    latents: dict[int, tuple[Any, float]],
    seed: int,
    first: int,
    metrics: BatchMetrics,
) -> None:
    """One batch of one entry; an encoder that several entries share runs once."""
    contestant = row.entry.contestant
    if id(contestant) not in latents:
        latents[id(contestant)] = _timed(lambda: contestant.encode(images), images.device)
    latent, encode_seconds = latents[id(contestant)]
    steps = row.entry.steps
    decoded, decode_seconds = _timed(lambda: contestant.decode(latent, steps, seed, first), images.device)
    result = rounded(decoded)
    values = metrics(pixels, result.images, result.valid)
    values["high_frequency_ratio"] = high_frequency_ratio(result.images, pixels)
    for name, shift in zip(COLOURS, colour_shift(result.images, pixels).T, strict=True):
        values[f"colour_shift_{name}"] = shift
    row.table.add([crop.key for crop in crops], values)
    row.encode_seconds.append(encode_seconds / len(crops))
    row.decode_seconds.append(decode_seconds / len(crops))
    row.latent_bytes.append(contestant.latent_bytes(*pixels.shape[1:3]))
    if result.valid.any():
        for of_set in features:
            of_set.add(torch.from_numpy(result.images[result.valid]))


def _batches(
    evaluation_set: EvaluationSet,
    census: Census,
    batch_size: int,
    workers: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> Iterator[list[EvaluationCrop]]:
    """Crops in the set's order, those of one size that follow one another up to ``batch_size`` at a time."""

    def crops() -> Iterator[EvaluationCrop]:
        for index, item in progress(read_items(evaluation_set, workers), len(evaluation_set)):
            census.add(index, item)
            if not isinstance(item, Skipped):
                yield from item.crops

    for _, group in groupby(crops(), key=lambda crop: crop.pixels.shape):
        batch: list[EvaluationCrop] = []
        for crop in group:
            batch.append(crop)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - begin


def _distances(real: _Features, fake: _Features) -> dict[str, float | bool]:
    """Everything that compares two sets of features; what they are too few for is left out."""
    if min(real.statistics.count, fake.statistics.count) < 2:
        return {}
    frechet = frechet_distance(real.statistics, fake.statistics)
    found: dict[str, float | bool] = {"frechet": frechet.value, "frechet_reliable": frechet.reliable}
    x, y = real.kept, fake.kept
    smaller = min(len(x), len(y))
    kid = kernel_distance(x, y, subset_size=min(1000, smaller))
    found |= {"kid": kid.mean, "kid_standard_error": kid.standard_error}
    if smaller > 5:
        manifold = manifold_metrics(x, y)
        found |= {name: getattr(manifold, name) for name in ("precision", "recall", "density", "coverage")}
    return found


def _reasons(census: Census) -> str:
    return census.skipped[0].reason if census.skipped else "the data are empty"


def _s(number: int) -> str:
    return "" if number == 1 else "s"
