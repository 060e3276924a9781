"""One pass over a set, or a process' share of it: every crop through every autoencoder, and what is kept of that.

Shapes: B crops of one size, H x W pixels, c latent channels, h x w latent grid.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.pixels import images_to_tensor
from .batches import Progress, crop_batches
from .contestants import Contestant
from .feature_sets import FeatureSet
from .features import Extractor
from .image_metrics import BatchMetrics, rounded
from .protocols import Census, CropKey, EvaluationSet
from .spectrum import COLOURS, MeanSpectrum, Spectra, colour_shift, high_frequency_ratio, spectra
from .tables import ImageMetricTable


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: an autoencoder, and its number of decoding steps where it has one to choose.

    ``encoder``: whose latents it decodes, where not its own: the same model in another precision.
    """

    contestant: Contestant
    steps: int | None = None
    encoder: Contestant | None = None

    @property
    def label(self) -> str:
        """Its name in tables."""
        steps = "" if self.steps is None else f", {self.steps} step{'' if self.steps == 1 else 's'}"
        dtype = "" if self.encoder is None else f", {self.contestant.describe()['dtype']}"
        return f"{self.contestant.name}{steps}{dtype}"


@dataclass
class Measured:
    """What was measured of an entry. Times are seconds per image, one value a batch.

    latent_shapes: of one image, (c, h, w), where a latent is a tensor. spectrum: of the finite reconstructions.
    """

    table: ImageMetricTable = field(default_factory=ImageMetricTable)
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    latent_bytes: list[int] = field(default_factory=list)
    latent_shapes: set[tuple[int, ...]] = field(default_factory=set)
    spectrum: MeanSpectrum = field(default_factory=MeanSpectrum)

    def merge(self, other: "Measured") -> None:
        """Take in what the next process measured."""
        self.table.merge(other.table)
        self.encode_seconds += other.encode_seconds
        self.decode_seconds += other.decode_seconds
        self.latent_bytes += other.latent_bytes
        self.latent_shapes |= other.latent_shapes
        self.spectrum.merge(other.spectrum)


@dataclass
class Share:
    """What one process met and measured: for each entry a ``Measured``, and features by entry and extractor."""

    measured: list[Measured]
    real: list[FeatureSet]
    fakes: list[list[FeatureSet]]
    census: Census = field(default_factory=Census)
    spectrum: MeanSpectrum = field(default_factory=MeanSpectrum)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many crops are of which height and width."""

    def merge(self, other: "Share") -> None:
        """Take in the share of the next process, whose images come after this one's."""
        for mine, theirs in zip(self.measured, other.measured, strict=True):
            mine.merge(theirs)
        for sets, others in zip([self.real, *self.fakes], [other.real, *other.fakes], strict=True):
            for own, more in zip(sets, others, strict=True):
                own.merge(more)
        self.census.merge(other.census)
        self.spectrum.merge(other.spectrum)
        self.sizes += other.sizes

    def on_cpu(self) -> "Share":
        """Itself, ready to be sent to another process."""
        for sets in (self.real, *self.fakes):
            for own in sets:
                own.on_cpu()
        return self


@dataclass(frozen=True)
class _Batch:
    """Crops of one size with what all entries share of them. images: (B, 3, H, W) in [-1, 1] on the device."""

    keys: list[CropKey]
    numbers: list[int]
    pixels: np.ndarray
    images: Tensor
    spectra: Spectra


def measure(
    entries: Sequence[Entry],
    evaluation_set: EvaluationSet,
    indices: Sequence[int],
    metrics: BatchMetrics,
    extractors: Sequence[Extractor],
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    progress: Progress,
) -> Share:
    """Runs every entry on the crops of these images.

    Noise and crops are functions of a crop's number in the whole set, and no number depends on the batch but for
    rounding. Memory does not grow with the set but for features, up to ``MANIFOLD_LIMIT`` a set, and a row of numbers
    per crop.
    """
    share = Share(
        [Measured() for _ in entries],
        [FeatureSet(e) for e in extractors],
        [[FeatureSet(e) for e in extractors] for _ in entries],
    )
    protocol = evaluation_set.protocol
    for crops in crop_batches(evaluation_set, share.census, batch_size, workers, progress, indices):
        pixels = np.stack([crop.pixels for crop in crops])
        images = images_to_tensor(torch.from_numpy(pixels).to(device))
        keys = [crop.key for crop in crops]
        batch = _Batch(keys, [protocol.number(key) for key in keys], pixels, images, spectra(pixels))
        share.sizes[pixels.shape[1:3]] += len(crops)
        share.spectrum.update(batch.spectra.power)
        for extractor, features in zip(extractors, share.real, strict=True):
            features.add(extractor, torch.from_numpy(pixels))
        latents: dict[int, tuple[Any, float]] = {}
        for entry, measured, features_of in zip(entries, share.measured, share.fakes, strict=True):
            found = _measure(entry, measured, batch, latents, protocol.seed, metrics)
            for extractor, features in zip(extractors, features_of, strict=True):
                if len(found):
                    features.add(extractor, torch.from_numpy(found))
    return share


@torch.inference_mode()
def _measure(
    entry: Entry,
    measured: Measured,
    batch: _Batch,
    latents: dict[int, tuple[Any, float]],
    seed: int,
    metrics: BatchMetrics,
) -> np.ndarray:
    """One batch of one entry; an encoder that several entries share runs once. Returns finite images, uint8."""
    encoder = entry.encoder or entry.contestant
    if id(encoder) not in latents:
        latents[id(encoder)] = _timed(lambda: encoder.encode(batch.images), batch.images.device)
    latent, encode_seconds = latents[id(encoder)]
    decode = entry.contestant.decode
    decoded, decode_seconds = _timed(lambda: decode(latent, entry.steps, seed, batch.numbers), batch.images.device)
    result = rounded(decoded)
    values = metrics(batch.pixels, result.images, result.valid)
    own = spectra(result.images)
    values["high_frequency_energy"] = batch.spectra.high
    values["high_frequency_ratio"] = high_frequency_ratio(own, batch.spectra)
    for name, shift in zip(COLOURS, colour_shift(result.images, batch.pixels).T, strict=True):
        values[f"colour_shift_{name}"] = shift
    measured.table.add(batch.keys, values)
    measured.spectrum.update(own.power[result.valid])
    count = len(batch.keys)
    measured.encode_seconds.append(encode_seconds / count)
    measured.decode_seconds.append(decode_seconds / count)
    measured.latent_bytes += [entry.contestant.latent_bytes(*batch.pixels.shape[1:3])] * count
    if isinstance(latent, Tensor):
        measured.latent_shapes.add(tuple(latent.shape[1:]))
    return result.images[result.valid]


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - begin
