"""One model after the other over the same crops, in one or several processes; what is finished is kept.

The first pass measures the originals too. After each model its rows are saved, then the distances of sets are
computed, then some pictures are made: a failure loses the model at which it happened, and nothing before it.

Shapes: B crops of one size, n crops of a set, H x W pixels, c latent channels, h x w latent grid.
"""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import printable, save_image
from ..data.pixels import images_to_tensor
from ..nn.noise import image_generators
from ..runtime.memory import memory_growth
from ..runtime.peak import timed
from ..runtime.processes import Processes, broadcast, gather
from .autoencoders import Autoencoder
from .distances import FeatureSet, set_distances
from .features import Extractor
from .image_metrics import Rounded, rounded
from .metrics import COSTS, DETAIL_WEIGHT, BatchMetrics, Decoding, ImagePairs, Metric, RowFacts
from .protocols import (
    Census,
    CropKey,
    EvaluationCrop,
    EvaluationItem,
    EvaluationSet,
    Progress,
    crop_batches,
    draw_images,
    silent,
)
from .results import PICTURES, Crops, Evaluation, Picture, Row, describe_extractor, file_name, ranked, ranking_metric
from .saved_images import SavedImages, reconstruction_name
from .spectrum import FREQUENCIES, Spectra, mean_power, spectra

_LATENT_NOISE_SEED = 1_000_003
_WORST, _BEST = 4, 4
_ALONE = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Entry:
    """A row to measure: an autoencoder, and its number of decoding steps where it has one to choose; or saved images.

    Attributes:
        autoencoder: what is measured.
        steps: number of decoding steps, None for the autoencoder's own.
        encoder: whose latents it decodes, where not its own: the same model in another precision.
        latent_noise: standard deviation of the noise that is added to each latent, in standard deviations of it.
        number: tells models of one name apart; see ``numbered``.
    """

    autoencoder: Autoencoder | SavedImages
    steps: int | None = None
    encoder: Autoencoder | None = None
    latent_noise: float = 0.0
    number: int = 1

    @property
    def name(self) -> str:
        """The label without the steps."""
        return self._named("")

    @property
    def label(self) -> str:
        """The name of the row in tables."""
        return self._named("" if self.steps is None else f", {self.steps} step{'' if self.steps == 1 else 's'}")

    def _named(self, steps: str) -> str:
        dtype = "" if self.encoder is None else f", {self.autoencoder.describe()['dtype']}"
        noise = f", latent noise {self.latent_noise:g}" if self.latent_noise else ""
        return f"{self.autoencoder.name}{steps}{dtype}{noise}" + _behind(self.number)

    def same_as(self, row: Row) -> bool:
        """Return whether a row is of the same weights, and of as many steps, whether these were typed or not."""
        steps = self.autoencoder.steps if self.steps is None else self.steps
        described = row.model | self.autoencoder.describe()
        return (row.name, row.steps, row.model) == (self.name, steps, described)


def numbered(groups: Sequence[Sequence[Entry]], rows: Sequence[Row]) -> list[list[Entry]]:
    """Return the entries of models, each with the number that tells it from others of its name, there or beside it."""
    known = [(row.name.removesuffix(_behind(row.number)), row.model["source"], row.number) for row in rows]
    result, given = list[list[Entry]](), set[tuple[str, int]]()
    for entries in groups:
        names, source = {entry.name for entry in entries}, entries[0].autoencoder.describe()["source"]
        of_name = [(other, number) for name, other, number in known if name in names]
        used = {number for name, number in given if name in names} | {n for other, n in of_name if other != source}
        own = [number for other, number in of_name if other == source and number not in used]
        number = min(own, default=next(n for n in itertools.count(1) if n not in used))
        given |= {(name, number) for name in names}
        result.append([replace(entry, number=number) for entry in entries])
    return result


def _behind(number: int) -> str:
    """Return what stands behind the name of the second model that is called so, and of others."""
    return "" if number == 1 else f" ({number})"


# ---- one pass over the crops -----------------------------------------------------------------------------------------

Features = dict[str, FeatureSet]
"""By the name of the extractor."""


@dataclass(frozen=True)
class _Batch:
    """Crops of one size, and what all entries share of them.

    Attributes:
        keys, numbers: of the B crops, in their set.
        pixels: uint8 (B, H, W, 3) on the device.
        latents: by the id of an encoder, the latent and how many seconds it took.
    """

    keys: list[CropKey]
    numbers: list[int]
    pixels: Tensor
    latents: dict[int, tuple[Any, float]] = field(default_factory=dict)

    @cached_property
    def spectra(self) -> Spectra:
        return spectra(self.pixels)


@dataclass(frozen=True)
class _CropRecord:
    """What is kept of a batch of crops."""

    keys: list[CropKey]
    size: tuple[int, int]
    high: np.ndarray
    power: np.ndarray


@dataclass(frozen=True)
class _RowRecord:
    """What is kept of a row's reconstructions of a batch. broken: why saved images cannot be read."""

    values: dict[str, np.ndarray]
    valid: np.ndarray
    power: np.ndarray
    decoding: Decoding | None
    broken: list[str]


@dataclass(frozen=True)
class _Pass:
    """What a pass over the crops found: records of batches, and the features of the originals and of each row."""

    census: Census
    crops: list[_CropRecord]
    rows: list[list[_RowRecord]]
    reals: Features
    fakes: list[Features]


@dataclass
class Run:
    """Measures models and keeps the result. None of the settings changes a number but for rounding.

    Attributes:
        evaluation_set: the crops.
        metrics: image metrics, on the device that everything runs on.
        extractors: networks whose features are compared as sets.
        batch_size, workers: crops at a time, and processes that read and crop.
        processes: processes that share the images.
        limit: number of images, drawn by the protocol's seed; None for all.
        save_to: folder for every reconstruction as PNG.
        progress: goes round the images of a pass.
        out: folder of the result, None to keep nothing.
        evaluation: a result to add to, in the main process.
        cache: folder for the originals' features, by default that of the result.
        sources: paths of the originals, by which their features are found in the cache.
        reference: features that the reconstructions are compared with as a set instead of those of the originals.
    """

    evaluation_set: EvaluationSet
    metrics: BatchMetrics
    extractors: Sequence[Extractor] = ()
    batch_size: int = 16
    workers: int = 2
    processes: Processes = _ALONE
    limit: int | None = None
    save_to: Path | None = None
    progress: Progress = silent
    out: Path | None = None
    evaluation: Evaluation | None = None
    cache: Path | None = None
    sources: Sequence[str] = ()
    reference: FeatureSet | None = None

    def __post_init__(self) -> None:
        self.protocol = self.evaluation_set.protocol
        self.images = draw_images(len(self.evaluation_set), self.limit, self.protocol.seed)
        self.sources = [str(Path(source).resolve()) if Path(source).exists() else source for source in self.sources]
        if self.save_to is not None:
            self._check_names()
        if self.cache is None and self.out is not None:
            self.cache = self.out / "reference"
        self.reals: Features | None = None
        if self.reference is not None:
            self.reals = {extractor.name: self.reference for extractor in self.extractors}
        elif self.processes.main and self.cache is not None:
            self.reals = self._load({extractor.name: self._kept(extractor) for extractor in self.extractors})

    def _check_names(self) -> None:
        """Raise ValueError if two reconstructions would be saved under one name."""
        names: dict[str, str] = {}
        for i in range(len(self.evaluation_set)) if self.images is None else self.images:
            original = self.evaluation_set.source.name(i)
            for crop in range(self.protocol.crops):
                name = reconstruction_name(self.evaluation_set.source.key(i), crop)
                if (other := names.setdefault(name, original)) is not original:
                    raise ValueError(
                        f"--save-reconstructions: expected a name for each, found {name} for {printable(other)} and "
                        f"{printable(original)}: evaluate them one after the other, or rename one"
                    )

    def add(self, entries: Sequence[Entry]) -> None:
        """Measure the rows of one model, or none; in the main process they are in ``evaluation`` then, and saved.

        Raises ValueError if the set has no usable image, a crop does not fit the autoencoder, or the crops are others
        than those of the rows that are there.
        """
        number = broadcast(self._number(entries) if self.processes.main else None)
        entries = [replace(entry, number=number) for entry in entries]
        for entry in filter(_is_a_set_alone, entries):
            if self.limit is not None and self.extractors:
                raise ValueError(
                    f"{entry.name}: expected images that are all partners of originals for --limit, found others, of "
                    "which sets are compared as a whole: leave out --limit"
                )
        originals = broadcast(self.reals is None)
        measured = self._pass(entries, originals)
        fingerprint = "" if measured is None else measured.census.fingerprint()
        kept = () if self.reals is None or self.reference is not None else self.reals.values()
        if broadcast(any(features.extra.get("fingerprint") != fingerprint for features in kept)):
            again = self._pass([], originals=True)  # the files have changed since their features were computed
            self.reals = None if again is None else self._keep(again.reals, fingerprint)
        if measured is None:
            return
        measured.census.check_used()
        self._check(fingerprint)
        if self.reals is None:
            self.reals = self._keep(measured.reals, fingerprint)
        if self.evaluation is None:
            self.evaluation = self._begin(measured)
        rows = [self._row(entry, records) for entry, records in zip(entries, measured.rows, strict=True)]
        for row, fakes in zip(rows, measured.fakes, strict=True):
            self.evaluation.add(row)
            if self.out is not None:
                for name, path in self._unfinished(row).items():
                    fakes[name].save(path)
        self._save()
        for row, fakes in zip(rows, measured.fakes, strict=True):
            self._set_distances(row, fakes)
        if self.out is not None:
            self._draw(entries, rows, self.out)
        self._save()

    def _number(self, entries: Sequence[Entry]) -> int:
        """Return the number of a model with which no label is that of a row that is there."""
        rows = self.evaluation.rows if self.evaluation is not None else []
        number, labels = 1, {row.label for row in rows}
        if entries:
            number = numbered([entries], rows)[0][0].number
        while any(replace(entry, number=number).label in labels for entry in entries):
            number += 1
        return number

    def _check(self, fingerprint: str) -> None:
        if self.evaluation is None:
            return
        data, reference = self.evaluation.data, self._reference_name()
        if data["fingerprint"] != fingerprint:
            raise ValueError(
                f"expected the crops of the rows that are there, {data['fingerprint'][:16]}, found others, "
                f"{fingerprint[:16]}: are the data and --limit the same?"
            )
        if data["reference"] != reference:
            raise ValueError(
                f"expected the --reference of the rows that are there, {data['reference']}, found {reference}"
            )

    def _reference_name(self) -> str | None:
        return None if self.reference is None else self.reference.extra["source"]

    def _save(self) -> None:
        if self.out is not None and self.evaluation is not None:
            self.evaluation.save(self.out)

    # ---- measuring -----------------------------------------------------------------------------------------------

    def _pass(self, entries: Sequence[Entry], originals: bool) -> _Pass | None:
        """Run every entry on the crops; return what all processes found in the main one, and None in the others.

        Noise and crops are functions of a crop's number in the whole set, and no number depends on the batch but for
        rounding. Memory does not grow with the set but for rows of numbers per crop and the features of the subset.
        """
        found = _Pass(
            Census(), [], [[] for _ in entries], self._features(originals), [self._features() for _ in entries]
        )
        for batch in self._batches(self.evaluation_set, found.census, self.images):
            height, width = batch.pixels.shape[1:3]
            found.crops.append(_CropRecord(batch.keys, (height, width), batch.spectra.high, batch.spectra.power))
            self._extract(found.reals, batch.pixels, batch.numbers)
            for entry, records, features in zip(entries, found.rows, found.fakes, strict=True):
                record, made = self._measure(entry, batch)
                records.append(record)
                if not _is_a_set_alone(entry):
                    self._extract(features, made, [batch.numbers[i] for i in np.flatnonzero(record.valid)])
        for entry, features in zip(entries, found.fakes, strict=True):
            saved = entry.autoencoder
            if isinstance(saved, SavedImages) and not saved.all_paired and features:  # with a partner or without
                for batch in self._batches(saved.set, Census(), None):
                    self._extract(features, batch.pixels, batch.numbers)
        return self._of_all_processes(found)

    def _features(self, wanted: bool = True) -> Features:
        return {extractor.name: FeatureSet(extractor) for extractor in self.extractors if wanted}

    def _batches(self, evaluation_set: EvaluationSet, census: Census, images: list[int] | None) -> Iterator[_Batch]:
        """Yield the crops of this process' share of the images."""
        images = list(range(len(evaluation_set))) if images is None else images
        rank, count = self.processes.rank, self.processes.count
        share = images[len(images) * rank // count : len(images) * (rank + 1) // count]
        for crops in crop_batches(evaluation_set, census, self.batch_size, self.workers, self.progress, share):
            yield self._batch(crops)

    def _batch(self, crops: Sequence[EvaluationCrop]) -> _Batch:
        keys = [crop.key for crop in crops]
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops])).to(self.metrics.device)
        return _Batch(keys, [self.protocol.number(key) for key in keys], pixels)

    def _extract(self, features: Features, pixels: Tensor, numbers: Sequence[int]) -> None:
        for extractor in self.extractors:
            if extractor.name in features:
                features[extractor.name].add(extractor(pixels), numbers)

    def _of_all_processes(self, found: _Pass) -> _Pass | None:
        """Return what all found in the main process, in the order of the images, and None in the others."""

        def reduce(sets: Features) -> Features:
            return {name: features.reduce(self.processes) for name, features in sets.items()}

        reals, fakes = reduce(found.reals), [reduce(sets) for sets in found.fakes]
        parts = gather((found.census, found.crops, found.rows))
        if not parts:
            return None
        census = Census()
        for part, _, _ in parts:
            census.merge(part)
        crops = [record for _, records, _ in parts for record in records]
        rows = [[record for _, _, rows in parts for record in rows[i]] for i in range(len(found.rows))]
        return _Pass(census, crops, rows, reals, fakes)

    @torch.inference_mode()
    def _measure(self, entry: Entry, batch: _Batch) -> tuple[_RowRecord, Tensor]:
        """Measure one batch of one entry; return also the finite reconstructions, uint8 (b, H, W, 3)."""
        result, decoding, broken = self._reconstruct(entry, batch)
        made, valid = torch.from_numpy(result.images).to(self.metrics.device), result.valid
        pairs = ImagePairs(batch.pixels, made, batch.spectra)
        if self.save_to is not None:
            folder = self.save_to / file_name(entry.label)
            for i in np.flatnonzero(valid):
                key = batch.keys[i]
                name = reconstruction_name(self.evaluation_set.source.key(key.image), key.crop)
                save_image(folder / name, result.images[i], overwrite=True)
        values = {name: np.where(valid, v, np.nan) for name, v in self.metrics.of(pairs).items()}
        record = _RowRecord(values, valid, pairs.spectra.power[valid], decoding, broken)
        return record, made[torch.from_numpy(valid).to(made.device)]

    def _reconstruct(self, entry: Entry, batch: _Batch) -> tuple[Rounded, Decoding | None, list[str]]:
        """Return the reconstructions of a batch, what they cost, and why saved images cannot be read."""
        autoencoder, device, seed = entry.autoencoder, self.metrics.device, self.protocol.seed
        if isinstance(autoencoder, SavedImages):
            height, width = batch.pixels.shape[1:3]
            images, broken = autoencoder.partners(batch.keys, height, width)
            return images, None, broken
        encoder = entry.encoder or autoencoder
        if id(encoder) not in batch.latents:  # it runs once for all entries that share it
            x = images_to_tensor(batch.pixels)
            batch.latents[id(encoder)] = timed(lambda: encoder.encode(x), device)
        latent, encode_seconds = batch.latents[id(encoder)]
        sizes = [size for size in autoencoder.latent_bytes(latent) if size]  # 0: a file that cannot be made
        latent = add_latent_noise(latent, entry.latent_noise, seed, batch.numbers)
        noise = autoencoder.noise(latent, seed, batch.numbers)

        def decode() -> tuple[Tensor, float]:
            return timed(lambda: autoencoder.decode(latent, steps=entry.steps, noise=noise), device)

        # On a CPU the memory of one row is kept for the next, which then seems to need none.
        on_gpu = device.type == "cuda"
        (decoded, decode_seconds), peak = memory_growth(decode, device) if on_gpu else (decode(), math.nan)
        shape, count = list(latent.shape[1:]) if isinstance(latent, Tensor) else None, len(batch.keys)
        return rounded(decoded), Decoding(encode_seconds / count, decode_seconds / count, sizes, shape, peak), []

    # ---- the result ----------------------------------------------------------------------------------------------

    def _begin(self, measured: _Pass) -> Evaluation:
        records = measured.crops
        keys = [key for record in records for key in record.keys]
        sizes = [record.size for record in records for _ in record.keys]
        crops = Crops(
            np.array([key.image for key in keys]),
            np.array([key.crop for key in keys]),
            [key.name for key in keys],
            {
                "pixels": np.array([float(height * width) for height, width in sizes]),
                DETAIL_WEIGHT: np.concatenate([record.high for record in records]),
            },
        )
        choices = {"sources": self.sources, "limit": self.limit, "reference": self._reference_name()}
        return Evaluation(
            protocol=self.protocol.describe(),
            data=measured.census.describe() | choices,
            metrics={},
            extractors=[],
            size=Counter(sizes).most_common(1)[0][0],
            crops=crops,
            frequencies=FREQUENCIES.tolist(),
            spectrum=mean_power([record.power for record in records]),
        )

    def _row(self, entry: Entry, records: list[_RowRecord]) -> Row:
        evaluation = self.evaluation
        assert evaluation is not None
        own = self.metrics.metrics
        evaluation.metrics |= {name: metric for name, metric in own.items() if name not in evaluation.metrics}
        known = {extractor["name"] for extractor in evaluation.extractors}
        new = [extractor for extractor in self.extractors if extractor.name not in known]
        evaluation.extractors += [describe_extractor(extractor, len(evaluation.crops)) for extractor in new]
        autoencoder, encoder = entry.autoencoder, entry.encoder
        decodings = [record.decoding for record in records if record.decoding is not None]
        facts = RowFacts(
            parameters=(autoencoder.parameters, autoencoder.decoder_parameters),
            flops=autoencoder.flops(*evaluation.size, entry.steps),
            pixels=float(evaluation.crops.columns["pixels"].mean()),
            decodings=decodings,
        )
        shapes = [decoding.latent_shape for decoding in decodings]
        broken = [reason for record in records for reason in record.broken]
        groups = {row.name: row.group for row in evaluation.rows}
        return Row(
            label=entry.label,
            name=entry.name,
            number=entry.number,
            group=groups.get(entry.name, 1 + max(groups.values(), default=-1)),
            steps=autoencoder.steps if entry.steps is None else entry.steps,
            precision_of=None if encoder is None else replace(entry, autoencoder=encoder, encoder=None).label,
            model=autoencoder.describe() | ({"broken": broken} if broken else {}),
            latent_shape=shapes[0] if shapes and all(shape == shapes[0] for shape in shapes) else None,
            costs={m.name: float(m.compute(facts)) for m in COSTS.values() if m.compute is not None},
            values=_columns(records),
            valid=np.concatenate([record.valid for record in records]),
            spectrum=mean_power([record.power for record in records]),
        )

    # ---- features ------------------------------------------------------------------------------------------------

    def finish_distances(self) -> None:
        """Compute the distances that an interrupted run has kept the features for."""
        for row in self.evaluation.rows if self.evaluation is not None and self.out is not None else ():
            fakes = self._load(self._unfinished(row))
            if fakes and self.reals:
                self._set_distances(row, fakes)
                self._save()

    def _set_distances(self, row: Row, fakes: Features) -> None:
        for name, fake in fakes.items():
            if self.reals is not None:
                row.distances[name] = set_distances(self.reals[name], fake)
        if self.evaluation is not None:
            self._name_distances(self.evaluation)
        if self.out is not None:
            for path in self._unfinished(row).values():
                path.unlink(missing_ok=True)

    def _name_distances(self, evaluation: Evaluation) -> None:
        """Have the headings of Fréchet distances say of how many images they are, where all rows are of as many."""
        described = {entry["name"]: entry for entry in evaluation.extractors}
        for extractor in self.extractors:
            found = [row.distances.get(extractor.name) for row in evaluation.rows]
            counts = {int(distances["count"]) for distances in found if distances}
            if counts and extractor.name in described:
                count = counts.pop() if len(counts) == 1 else None
                described[extractor.name]["frechet_name"] = extractor.frechet_name(count)

    def _unfinished(self, row: Row) -> dict[str, Path]:
        """Return where a row's features are kept until its distances are computed."""
        assert self.out is not None
        folder, label = self.out / "reference", file_name(row.label)
        return {e.name: folder / f"{label}-{file_name(e.name)}.safetensors" for e in self.extractors}

    def _kept(self, extractor: Extractor) -> Path:
        """Return where the originals' features by this protocol are kept."""
        assert self.cache is not None
        choice = [extractor.identity, self.protocol.describe(), self.sources, self.images]
        digest = hashlib.sha256(json.dumps(choice).encode()).hexdigest()
        return self.cache / f"{file_name(extractor.name)}-{digest[:16]}.safetensors"

    def _keep(self, reals: Features, fingerprint: str) -> Features:
        """Keep the originals' features for other runs, and return them."""
        for extractor in self.extractors if self.cache is not None else ():
            features = reals[extractor.name]
            features.extra = {"fingerprint": fingerprint}
            features.save(self._kept(extractor))
        return reals

    def _load(self, paths: dict[str, Path]) -> Features | None:
        """Return the features in files, where all of them are there."""
        if not paths or not all(path.is_file() for path in paths.values()):
            return None
        return {e.name: FeatureSet.load(paths[e.name], e) for e in self.extractors}

    # ---- pictures ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _draw(self, entries: Sequence[Entry], rows: Sequence[Row], out: Path) -> None:
        """Save what the rows make of the crops that are shown, with their noise of the comparison."""
        evaluation = self.evaluation
        assert evaluation is not None
        if not evaluation.pictures:
            evaluation.pictures = choose_crops(evaluation.rows[0], ranking_metric(evaluation))
        for picture in evaluation.pictures:
            item = self.evaluation_set[int(evaluation.crops.image[picture.crop])]
            if not isinstance(item, EvaluationItem):
                raise ValueError(f"expected the crop that was compared, found {item.reason}")
            crop = item.crops[evaluation.crops.crop[picture.crop]]
            if not picture.files:
                picture.files[""] = f"{PICTURES}/{picture.crop}.png"
                save_image(out / picture.files[""], crop.pixels, overwrite=True)
            for entry, row in zip(entries, rows, strict=True):
                made, _, _ = self._reconstruct(entry, self._batch([crop]))
                if made.valid[0]:
                    picture.files[row.label] = f"{PICTURES}/{picture.crop}-{file_name(row.label)}.png"
                    save_image(out / picture.files[row.label], made.images[0], overwrite=True)


def _is_a_set_alone(entry: Entry) -> bool:
    """Return whether these are saved images, not all of which are partners of originals."""
    return isinstance(entry.autoencoder, SavedImages) and not entry.autoencoder.all_paired


def _columns(records: Sequence[_RowRecord]) -> dict[str, np.ndarray]:
    """Return (n,) numbers by metric, NaN in batches of images that are too small for it."""
    return {
        name: np.concatenate([record.values.get(name, np.full(len(record.valid), np.nan)) for record in records])
        for name in dict.fromkeys(name for record in records for name in record.values)
    }


def choose_crops(row: Row, metric: Metric) -> list[Picture]:
    """Return the worst and the best crops of a row, and one that it failed on, with the reasons."""
    order = ranked(row, metric)
    worst, best = order[:_WORST], order[_WORST:][-_BEST:]

    def named(crops: Iterable[int], what: str) -> list[Picture]:
        reasons = (f"{nth}{what} of {row.label} by {metric.heading}" for nth in ("", "2nd ", "3rd ", "4th "))
        return [Picture(crop, [reason]) for crop, reason in zip(crops, reasons, strict=False)]

    failed = [Picture(int(i), [f"{row.label} has no finite reconstruction"]) for i in np.flatnonzero(~row.valid)[:1]]
    return [*named(worst, "worst"), *failed, *reversed(named(reversed(best), "best"))]


def add_latent_noise(latent: Any, level: float, seed: int, numbers: Sequence[int]) -> Any:
    """Return a latent (B, c, h, w) with noise of ``level`` standard deviations of each image's latent.

    The noise of image i depends on (seed, numbers[i]) and its size alone; a decoder starts from other noise.
    """
    if not level:
        return latent
    generators = image_generators(seed + _LATENT_NOISE_SEED, numbers)
    noise = torch.stack([torch.randn(latent.shape[1:], generator=g, device="cpu") for g in generators])
    return latent + level * latent.std((1, 2, 3), keepdim=True) * noise.to(latent)
