"""One model after the other over the same crops, in one or several processes; what is finished is kept.

The first pass measures the originals too. After each model its rows are saved, then the distances of sets are
computed, then some pictures are made: a failure loses the model at which it happened, and nothing before it.

Shapes: B crops of one size, n crops of a set, H x W pixels, c latent channels, h x w latent grid.
"""

import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.pixels import images_to_tensor
from ..files import atomic_path
from ..processes import Processes, broadcast, gather
from .autoencoders import Autoencoder, image_generators
from .distances import FeatureSet, set_distances
from .features import Extractor
from .image_metrics import Rounded, rounded
from .metrics import COSTS, DETAIL_WEIGHT, BatchMetrics, ImagePairs, RowFacts
from .protocols import Census, CropKey, EvaluationItem, EvaluationSet, Progress, crop_batches, silent
from .results import PICTURES, Crops, Evaluation, Picture, Row, describe_extractor, file_name, ranked, ranking_metric
from .saved_images import SavedImages
from .spectrum import FREQUENCIES, MeanSpectrum, Spectra, spectra

_LATENT_NOISE_SEED = 1_000_003
_WORST, _BEST = 4, 4


@dataclass(frozen=True)
class Entry:
    """A row to measure: an autoencoder, and its number of decoding steps where it has one to choose; or saved images.

    encoder: whose latents it decodes, where not its own: the same model in another precision. latent_noise: standard
    deviation of the noise that is added to each latent, in standard deviations of that latent.
    """

    autoencoder: Autoencoder | SavedImages
    steps: int | None = None
    encoder: Autoencoder | None = None
    latent_noise: float = 0.0

    @property
    def name(self) -> str:
        """Return the label without the steps."""
        dtype = "" if self.encoder is None else f", {self.autoencoder.describe()['dtype']}"
        noise = f", latent noise {self.latent_noise:g}" if self.latent_noise else ""
        return f"{self.autoencoder.name}{dtype}{noise}"

    @property
    def label(self) -> str:
        """Return the name of the row in tables."""
        steps = "" if self.steps is None else f", {self.steps} step{'' if self.steps == 1 else 's'}"
        return self.name.replace(self.autoencoder.name, f"{self.autoencoder.name}{steps}", 1)


@dataclass
class RowState:
    """What one process measured of a row. Times are seconds per image, one value a batch."""

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    valid: list[np.ndarray] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    latent_bytes: list[int] = field(default_factory=list)
    latent_shapes: set[tuple[int, ...]] = field(default_factory=set)
    spectrum: MeanSpectrum = field(default_factory=MeanSpectrum)
    peak_memory: int | None = None
    broken: list[str] = field(default_factory=list)
    """Saved images that cannot be read, with the reasons."""

    def add(self, values: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Add (B,) numbers by metric; a metric that other batches lack is undefined for their crops."""
        count = sum(map(len, self.valid))
        for name, column in values.items():
            self.values.setdefault(name, [np.full(count, np.nan)] if count else []).append(column)
        for name in self.values.keys() - values.keys():
            self.values[name].append(np.full(len(valid), np.nan))
        self.valid.append(valid)

    def merge(self, other: "RowState") -> None:
        """Add what the next process has."""
        lengths = [sum(map(len, state.valid)) for state in (self, other)]
        for name in self.values.keys() | other.values.keys():
            parts = (s.values.get(name, [np.full(n, np.nan)]) for s, n in zip((self, other), lengths, strict=True))
            self.values[name] = [array for part in parts for array in part]
        self.valid += other.valid
        self.encode_seconds += other.encode_seconds
        self.decode_seconds += other.decode_seconds
        self.latent_bytes += other.latent_bytes
        self.latent_shapes |= other.latent_shapes
        self.spectrum.merge(other.spectrum)
        self.broken += other.broken
        self.peak_memory = max((m for m in (self.peak_memory, other.peak_memory) if m is not None), default=None)


@dataclass
class PassState:
    """What one process met in a pass over its images: the crops, and a state for each row."""

    rows: list[RowState]
    census: Census = field(default_factory=Census)
    keys: list[CropKey] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    spectrum: MeanSpectrum = field(default_factory=MeanSpectrum)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def merge(self, other: "PassState") -> None:
        """Add what the next process met, whose images come after this one's."""
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            mine.merge(theirs)
        self.census.merge(other.census)
        self.keys += other.keys
        self.pixels += other.pixels
        self.high += other.high
        self.spectrum.merge(other.spectrum)
        self.sizes += other.sizes


@dataclass(frozen=True)
class Settings:
    """How a pass is done; none of it changes a number but for rounding.

    images: indices of those that are used, None for all; limit: the number that they were drawn by. save_to: folder for
    every reconstruction as PNG.
    """

    metrics: BatchMetrics
    extractors: Sequence[Extractor] = ()
    batch_size: int = 16
    workers: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    images: list[int] | None = None
    limit: int | None = None
    save_to: Path | None = None
    progress: Progress = silent


Features = list[FeatureSet]
"""One for each extractor."""


def measure(
    entries: Sequence[Entry],
    evaluation_set: EvaluationSet,
    share: Callable[[Sequence[int]], Sequence[int]],
    settings: Settings,
    originals: bool,
) -> tuple[PassState, list[Features], Features]:
    """Run every entry on the crops of this process' share of the images.

    Noise and crops are functions of a crop's number in the whole set, and no number depends on the batch but for
    rounding. Memory does not grow with the set but for a row of numbers per crop and the features of the subset.

    Returns:
        The state, the features of each entry's reconstructions, and with ``originals`` those of the crops.
    """
    state = PassState([RowState() for _ in entries])
    fakes: list[Features] = [[FeatureSet(e) for e in settings.extractors] for _ in entries]
    reals: Features = [FeatureSet(e) for e in settings.extractors] if originals else []
    protocol = evaluation_set.protocol
    indices = share(settings.images or range(len(evaluation_set)))
    how = (settings.batch_size, settings.workers, settings.progress)
    batches = crop_batches(evaluation_set, state.census, *how, indices)
    for crops in batches:
        keys = [crop.key for crop in crops]
        pixels = settings.metrics.tensor(np.stack([crop.pixels for crop in crops]))
        batch = _Batch(keys, [protocol.number(key) for key in keys], pixels, spectra(pixels))
        state.keys += keys
        state.pixels += [float(pixels.shape[1] * pixels.shape[2])] * len(crops)
        state.high.append(batch.spectra.high)
        state.spectrum.update(batch.spectra.power)
        state.sizes[pixels.shape[1], pixels.shape[2]] += len(crops)
        for extractor, features in zip(settings.extractors if originals else (), reals, strict=True):
            features.add(extractor(pixels), batch.numbers)
        latents: dict[int, tuple[Any, float]] = {}
        for entry, row, features_of in zip(entries, state.rows, fakes, strict=True):
            made, numbers = _measure(entry, row, batch, latents, evaluation_set, settings)
            for extractor, features in zip(settings.extractors, features_of, strict=True):
                if not isinstance(entry.autoencoder, SavedImages):
                    features.add(extractor(made), numbers)
    for entry, features_of in zip(entries, fakes, strict=True):
        if isinstance(entry.autoencoder, SavedImages) and settings.extractors:
            own = entry.autoencoder.set
            for crops in crop_batches(own, Census(), *how, share(range(len(own)))):
                pixels = settings.metrics.tensor(np.stack([crop.pixels for crop in crops]))
                for extractor, features in zip(settings.extractors, features_of, strict=True):
                    features.add(extractor(pixels), [protocol.number(crop.key) for crop in crops])
    return state, fakes, reals


@dataclass(frozen=True)
class _Batch:
    """Crops of one size, with what all entries share of them. pixels: uint8 (B, H, W, 3) on the device."""

    keys: list[CropKey]
    numbers: list[int]
    pixels: Tensor
    spectra: Spectra


@torch.inference_mode()
def _measure(
    entry: Entry,
    row: RowState,
    batch: _Batch,
    latents: dict[int, tuple[Any, float]],
    evaluation_set: EvaluationSet,
    settings: Settings,
) -> tuple[Tensor, list[int]]:
    """Measure one batch of one entry; return the finite reconstructions, uint8 (b, H, W, 3), and their numbers."""
    if isinstance(entry.autoencoder, SavedImages):
        height, width = batch.pixels.shape[1:3]
        result = entry.autoencoder.partners(batch.keys, height, width, row.broken)
    else:
        seed = evaluation_set.protocol.seed
        result = _decode(entry, entry.autoencoder, row, batch, latents, seed, settings.device)
    made = settings.metrics.tensor(result.images)
    pairs = ImagePairs(batch.pixels, made, batch.spectra)
    row.add(settings.metrics.of(pairs, result.valid), result.valid)
    row.spectrum.update(pairs.spectra.power[result.valid])
    if settings.save_to is not None:
        for key, image, valid in zip(batch.keys, result.images, result.valid, strict=True):
            if valid:
                name = reconstruction_name(evaluation_set.source.key(key.image), key.crop)
                _save_png(settings.save_to / file_name(entry.label) / name, image)
    finite = torch.from_numpy(result.valid).to(made.device)
    return made[finite], [n for n, valid in zip(batch.numbers, result.valid, strict=True) if valid]


def _decode(
    entry: Entry,
    autoencoder: Autoencoder,
    row: RowState,
    batch: _Batch,
    latents: dict[int, tuple[Any, float]],
    seed: int,
    device: torch.device,
) -> Rounded:
    """Return the reconstructions of a batch, and note what they cost. An encoder that entries share runs once."""
    encoder = entry.encoder or autoencoder
    if id(encoder) not in latents:
        images = images_to_tensor(batch.pixels)
        latents[id(encoder)] = _timed(lambda: encoder.encode(images), device)
    latent, encode_seconds = latents[id(encoder)]
    row.latent_bytes += [size for size in autoencoder.latent_bytes(latent) if size]  # 0: a file that cannot be made
    latent = _noisy(latent, entry.latent_noise, seed, batch.numbers)
    noise = autoencoder.noise(latent, seed, batch.numbers)
    with _peak_memory(row, device):
        decoded, seconds = _timed(lambda: autoencoder.decode(latent, steps=entry.steps, noise=noise), device)
    row.encode_seconds.append(encode_seconds / len(batch.keys))
    row.decode_seconds.append(seconds / len(batch.keys))
    if isinstance(latent, Tensor):
        row.latent_shapes.add(tuple(latent.shape[1:]))
    return rounded(decoded)


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - begin


def _noisy(latent: Any, level: float, seed: int, numbers: Sequence[int]) -> Any:
    """Return a latent (B, c, h, w) with noise of ``level`` standard deviations of each image's latent."""
    if not level:
        return latent
    generators = image_generators(seed + _LATENT_NOISE_SEED, numbers)
    noise = torch.stack([torch.randn(latent.shape[1:], generator=g, device="cpu") for g in generators])
    return latent + level * latent.std((1, 2, 3), keepdim=True) * noise.to(latent)


@contextmanager
def _peak_memory(row: RowState, device: torch.device) -> Iterator[None]:
    """Note how much memory the block takes at its peak: of CUDA, or on Linux of the process, in its first batch."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        row.peak_memory = max(row.peak_memory or 0, torch.cuda.max_memory_allocated(device) - before)
        return
    peak = Path("/proc/self/clear_refs")
    if row.peak_memory is not None or not peak.exists():
        yield
        return
    before_kilobytes = _status("VmRSS")
    peak.write_text("5")  # forget the highest value until now
    yield
    row.peak_memory = 1024 * max(0, _status("VmHWM") - before_kilobytes)


def _status(name: str) -> int:
    """Return a value in kB of the process' status file on Linux."""
    match = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) if match else 0


def reconstruction_name(name: str, crop: int = 0) -> str:
    """Return where a reconstruction is saved: the original's name, without what could lead out of the folder."""
    parts = [re.sub(r"[^\w. -]+", "_", part).lstrip(".") or "_" for part in re.split(r"[/\\]", name)]
    stem = "/".join(parts).rpartition(".")[0] or "/".join(parts)
    return f"{stem}{f'_{crop}' if crop else ''}.png"


def _save_png(path: Path, image: np.ndarray) -> None:
    with atomic_path(path, overwrite=True) as temporary:
        Image.fromarray(image).save(temporary)


# ---- all models ------------------------------------------------------------------------------------------------------


class Run:
    """Measures models and keeps the result.

    Args:
        evaluation_set: the crops.
        settings: how passes are done.
        processes: that share the images; None for this one alone.
        out: folder of the result, None to keep nothing.
        evaluation: a result to add to, in the main process.
        cache: folder for the originals' features, by default that of the result.
        sources: paths of the originals, by which their features are found in the cache.
        reference: features that the reconstructions are compared with as a set instead of those of the originals.
    """

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        settings: Settings,
        processes: Processes | None = None,
        out: Path | None = None,
        evaluation: Evaluation | None = None,
        cache: Path | None = None,
        sources: Sequence[str] = (),
        reference: Features | None = None,
    ) -> None:
        self.evaluation_set, self.settings, self.processes = evaluation_set, settings, processes
        self.out, self.evaluation = out, evaluation
        self.cache = cache or (out / "reference" if out is not None else None)
        self.sources = [str(Path(source).resolve()) if Path(source).exists() else source for source in sources]
        self.main = processes is None or processes.main
        self.reference = reference
        self.reals: Features | None = (reference or self._cached()) if self.main else None

    def add(self, entries: Sequence[Entry]) -> None:
        """Measure the rows of one model; in the main process they are in ``evaluation`` then, and saved.

        Raises ValueError if the set has no usable image, a crop does not fit the autoencoder, or the crops are others
        than those of the rows that are there.
        """
        originals = broadcast(self.reals is None) and bool(self.settings.extractors)
        state, fakes, reals = self._pass(entries, originals)
        fingerprint = "" if state is None else state.census.fingerprint()
        stale = self.reference is None and any(
            features.extra.get("fingerprint") != fingerprint for features in self.reals or ()
        )
        if broadcast(stale):  # the files have changed since their features were computed
            originals = True
            _, _, reals = self._pass([], originals)
        if state is None:
            return
        state.census.check_used()
        if self.evaluation is None:
            self.evaluation = self._begin(state)
        self._check(fingerprint)
        if originals:
            self.reals = reals
            self._keep(fingerprint)
        rows = [self._row(entry, row, state) for entry, row in zip(entries, state.rows, strict=True)]
        for row, features in zip(rows, fakes, strict=True):
            self.evaluation.add(row)
            for extractor, fake in zip(self.settings.extractors, features, strict=True):
                if self.out is not None:
                    fake.save(self._unfinished(row, extractor), overwrite=True)
        self._save()
        self._set_distances(rows, fakes)
        if self.out is not None:
            self._draw(entries, rows)
        self._save()

    def verify(self) -> None:
        """Read the crops, and raise ValueError if they are others than those of the rows that are there."""
        state, _, _ = self._pass([], False)
        if state is not None:
            self._check(state.census.fingerprint())

    def _check(self, fingerprint: str) -> None:
        there = fingerprint if self.evaluation is None else self.evaluation.data["fingerprint"]
        if there != fingerprint:
            raise ValueError(
                f"expected the crops of the rows that are there, {there[:16]}, found others, {fingerprint[:16]}: "
                "are the data and --limit the same?"
            )
        reference = None if self.evaluation is None else self.evaluation.data["reference"]
        if self.evaluation is not None and reference != self._reference_name():
            raise ValueError(
                f"expected the --reference of the rows that are there, {reference}, found {self._reference_name()}"
            )

    def _reference_name(self) -> str | None:
        return self.reference[0].extra["source"] if self.reference else None

    def finish_distances(self) -> None:
        """Compute the distances that an interrupted run has kept the features for."""
        for row in self.evaluation.rows if self.evaluation is not None and self.out is not None else ():
            paths = [self._unfinished(row, extractor) for extractor in self.settings.extractors]
            if paths and self.reals and all(path.is_file() for path in paths):
                pairs = zip(paths, self.settings.extractors, strict=True)
                self._set_distances([row], [[FeatureSet.load(path, e.device) for path, e in pairs]])
                self._save()

    def _set_distances(self, rows: Sequence[Row], fakes: Sequence[Features]) -> None:
        for row, features in zip(rows, fakes, strict=True):
            for extractor, real, fake in zip(self.settings.extractors, self.reals or (), features, strict=True):
                row.distances[extractor.name] = set_distances(real, fake)
                if self.out is not None:
                    self._unfinished(row, extractor).unlink(missing_ok=True)

    def _unfinished(self, row: Row, extractor: Extractor) -> Path:
        """Return where a row's features are kept until its distances are computed."""
        assert self.out is not None
        return self.out / "reference" / f"{file_name(row.label)}-{file_name(extractor.name)}.safetensors"

    def _pass(self, entries: Sequence[Entry], originals: bool) -> tuple[PassState | None, list[Features], Features]:
        """Return the whole of all processes in the main one, and None in the others."""
        rank, count = (self.processes.rank, self.processes.count) if self.processes else (0, 1)

        def share(images: Sequence[int]) -> Sequence[int]:
            return images[len(images) * rank // count : len(images) * (rank + 1) // count]

        state, fakes, reals = measure(entries, self.evaluation_set, share, self.settings, originals)
        states = gather(state)
        reduced = [[features.reduce(self.processes) for features in sets] for sets in [*fakes, reals]]
        if not states:
            return None, [], []
        whole, *others = states
        for other in others:
            whole.merge(other)
        *fakes, reals = [[features for features in sets if features is not None] for sets in reduced]
        return whole, fakes, reals

    def _begin(self, state: PassState) -> Evaluation:
        keys = state.keys
        crops = Crops(
            np.array([key.image for key in keys]),
            np.array([key.crop for key in keys]),
            [key.name for key in keys],
            {"pixels": np.array(state.pixels), DETAIL_WEIGHT: np.concatenate(state.high)},
        )
        return Evaluation(
            self.evaluation_set.protocol.describe(),
            state.census.describe()
            | {"sources": self.sources, "limit": self.settings.limit, "reference": self._reference_name()},
            {},
            [],
            state.sizes.most_common(1)[0][0],
            crops,
            FREQUENCIES.tolist(),
            state.spectrum.power.tolist(),
        )

    def _row(self, entry: Entry, state: RowState, whole: PassState) -> Row:
        evaluation = self.evaluation
        assert evaluation is not None
        settings = self.settings
        names = {metric.name: metric for metric in settings.metrics.metrics.values()}
        evaluation.metrics |= {name: metric for name, metric in names.items() if name not in evaluation.metrics}
        known = {extractor["name"] for extractor in evaluation.extractors}
        evaluation.extractors += [
            describe_extractor(extractor, len(evaluation.crops))
            for extractor in settings.extractors
            if extractor.name not in known
        ]
        labels = {row.label for row in evaluation.rows}
        label, number = entry.label, 1
        while label in labels:  # two folders may have one name
            number += 1
            label = f"{entry.label} ({number})"
        facts = RowFacts(
            (entry.autoencoder.parameters, entry.autoencoder.decoder_parameters),
            entry.autoencoder.flops(*evaluation.size, entry.steps),
            float(np.mean(state.latent_bytes)) if state.latent_bytes else math.nan,
            float(np.mean(whole.pixels)),
            state.encode_seconds,
            state.decode_seconds,
            state.peak_memory,
        )
        costs = {m.name: float(m.compute(facts)) for m in COSTS.values() if m.compute is not None}
        shape = next(iter(state.latent_shapes)) if len(state.latent_shapes) == 1 else None
        encoder, name = entry.encoder, label.replace(entry.label, entry.name, 1)
        return Row(
            label,
            name,
            _group(evaluation, name),
            entry.steps if entry.steps is not None else entry.autoencoder.steps,
            None if encoder is None else Entry(encoder, entry.steps).label,
            entry.autoencoder.describe() | ({"broken": state.broken} if state.broken else {}),
            list(shape) if shape else None,
            costs,
            {name: np.concatenate(parts) for name, parts in state.values.items()},
            np.concatenate(state.valid),
            state.spectrum.power.tolist(),
        )

    def _save(self) -> None:
        if self.out is not None and self.evaluation is not None:
            self.evaluation.save(self.out)

    # ---- the originals' features ---------------------------------------------------------------------------------

    def _reference(self, extractor: Extractor) -> Path:
        assert self.cache is not None
        choice = [extractor.identity, self.evaluation_set.protocol.describe(), self.sources, self.settings.images]
        digest = hashlib.sha256(json.dumps(choice).encode()).hexdigest()
        return self.cache / f"{file_name(extractor.name)}-{digest[:16]}.safetensors"

    def _cached(self) -> Features | None:
        """Return the originals' features of an earlier run by this protocol, where all of them are there."""
        paths = [self._reference(extractor) for extractor in self.settings.extractors] if self.cache else []
        if not paths or not all(path.is_file() for path in paths):
            return None
        return [FeatureSet.load(path, e.device) for path, e in zip(paths, self.settings.extractors, strict=True)]

    def _keep(self, fingerprint: str) -> None:
        if self.cache is None:
            return
        for extractor, features in zip(self.settings.extractors, self.reals or (), strict=True):
            features.extra = {"fingerprint": fingerprint}
            features.save(self._reference(extractor), overwrite=True)

    # ---- pictures ------------------------------------------------------------------------------------------------

    def _draw(self, entries: Sequence[Entry], rows: Sequence[Row]) -> None:
        """Save what the rows make of the crops that are shown: the worst and the best of the first row."""
        evaluation, out = self.evaluation, self.out
        assert evaluation is not None
        assert out is not None
        if not evaluation.pictures:
            evaluation.pictures = choose_crops(evaluation)
        for picture in evaluation.pictures:
            pixels = self._read(evaluation.crops, picture.crop)
            if not picture.files:
                picture.files[""] = f"{PICTURES}/{picture.crop}.png"
                _save_png(out / picture.files[""], pixels)
            for entry, row in zip(entries, rows, strict=True):
                made = reconstruct(entry, pixels, evaluation.crops, picture.crop, self.evaluation_set)
                if made is not None:
                    picture.files[row.label] = f"{PICTURES}/{picture.crop}-{file_name(row.label)}.png"
                    _save_png(out / picture.files[row.label], made)

    def _read(self, crops: Crops, index: int) -> np.ndarray:
        item = self.evaluation_set[int(crops.image[index])]
        if not isinstance(item, EvaluationItem):
            raise ValueError(f"{crops.label(index)}: expected the crop that was compared, found {item.reason}")
        return item.crops[int(crops.crop[index])].pixels


def _group(evaluation: Evaluation, name: str) -> int:
    """Return the number of a model: that of a row of its name, else the next one."""
    for row in evaluation.rows:
        if row.name == name:
            return row.group
    return 1 + max((row.group for row in evaluation.rows), default=-1)


@torch.inference_mode()
def reconstruct(
    entry: Entry, pixels: np.ndarray, crops: Crops, index: int, evaluation_set: EvaluationSet
) -> np.ndarray | None:
    """Return a crop's reconstruction with its noise of the comparison, uint8 (H, W, 3); None if it is not finite."""
    protocol = evaluation_set.protocol
    key = CropKey(int(crops.image[index]), int(crops.crop[index]), "")
    if isinstance(entry.autoencoder, SavedImages):
        result = entry.autoencoder.partners([key], *pixels.shape[:2])
    else:
        batch = _Batch([key], [protocol.number(key)], torch.from_numpy(pixels[None]), spectra(pixels[None]))
        device = torch.device("cpu")  # not timed
        result = _decode(entry, entry.autoencoder, RowState(), batch, {}, protocol.seed, device)
    return result.images[0] if result.valid[0] else None


def choose_crops(evaluation: Evaluation) -> list[Picture]:
    """Return the worst and the best crops of the first row, and one that it failed on, with the reasons."""
    row = evaluation.rows[0]
    metric = ranking_metric(evaluation)
    order = ranked(evaluation, row, metric)
    worst, best = order[:_WORST], order[_WORST:][-_BEST:][::-1]
    chosen = [Picture(i, [f"{_nth(k, 'worst')} of {row.label} by {metric.heading}"]) for k, i in enumerate(worst)]
    chosen += [Picture(int(i), [f"{row.label} has no finite reconstruction"]) for i in np.flatnonzero(~row.valid)[:1]]
    chosen += [Picture(i, [f"{_nth(k, 'best')} of {row.label} by {metric.heading}"]) for k, i in enumerate(best)][::-1]
    return chosen


def _nth(k: int, what: str) -> str:
    return what if k == 0 else f"{ {1: '2nd', 2: '3rd'}.get(k, f'{k + 1}th') } {what}"
