"""Generated images against photographs: FID, KID, precision, recall, density, coverage, for one guidance or several.

Several processes share the photographs and the samples. Shapes: N samples, S side.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.sources import ImageSource
from ..evaluation.decoders import LatentDecoder
from ..evaluation.distances import FeatureSet, read_statistics, set_distances
from ..evaluation.features import Extractor
from ..evaluation.figures import figure_style, new_figure, save_figure
from ..evaluation.metrics import SET_METRICS
from ..evaluation.protocols import PROTOCOLS, Census, EvaluationSet, Progress, Protocol, crop_batches, silent
from ..evaluation.results import describe_extractor, set_notes, software
from ..evaluation.weights import sha256
from ..runtime.files import OutputExists, atomic_path, one_after_another, write_json
from ..runtime.processes import Processes, gather
from ..runtime.text import aligned
from ..tokenization.labels import folder_of
from .output import other_settings
from .result import Generator
from .sampling import Sampling, generate_images

Distances = dict[str, dict[str, float]]

NEIGHBORS = 3
"""k of precision, recall, density and coverage, as guided-diffusion (ADM) has it for generated images."""

_ALONE = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Reference:
    """Features of photographs by extractor, and what they are of: JSON types, the same in all processes' main one."""

    facts: dict[str, Any]
    extractors: list[Extractor]
    features: list[FeatureSet]
    skipped: list[str]

    @property
    def count(self) -> int | None:
        """Return the number of photographs; None for published statistics."""
        return self.facts.get("crops")


@dataclass(frozen=True)
class GuidedResult:
    """Distances by extractor of samples drawn in one way."""

    sampling: Sampling
    distances: Distances


def reference_protocol(side: int) -> Protocol:
    """Return centre crops of S x S, as ``paper-S-v1`` and as tokenized data are by default."""
    return PROTOCOLS.get(f"paper-{side}-v1") or Protocol(f"centre-{side}-v1", "centre", side)


def image_side(generator: Generator) -> int:
    """Return S of the images of a generator's latents."""
    return generator.facts.latent_shape[1] * generator.facts.tokenizer.spatial_factor


def measure_reference(
    evaluation_set: EvaluationSet,
    extractors: Sequence[Extractor],
    batch_size: int = 16,
    workers: int = 2,
    progress: Progress = silent,
    processes: Processes = _ALONE,
) -> Reference:
    """Return the features of photographs, in the main process; the others' are empty.

    Raises ValueError if no photograph can be used.
    """
    census, features = Census(), [FeatureSet(extractor) for extractor in extractors]
    count = len(evaluation_set)
    share = range(count * processes.rank // processes.count, count * (processes.rank + 1) // processes.count)
    for crops in crop_batches(evaluation_set, census, batch_size, workers, progress, share):
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops]))
        numbers = [evaluation_set.protocol.number(crop.key) for crop in crops]
        for extractor, feature_set in zip(extractors, features, strict=True):
            feature_set.add(extractor(pixels), numbers)
    features = [feature_set.reduce(processes) for feature_set in features]
    whole = Census()
    for part in gather(census):
        whole.merge(part)
    if processes.main:
        whole.check_used()
    facts = {**evaluation_set.protocol.describe(), **whole.describe()} if processes.main else {}
    return Reference(facts, list(extractors), features, [skipped.reason for skipped in whole.skipped])


def published_reference(path: Path, extractor: Extractor) -> Reference:
    """Return the mean and covariance that others have published of a set, for the Fréchet distance alone.

    Raises OSError or ValueError with one line.
    """
    return Reference(
        {"statistics": str(path), "sha256": sha256(path)}, [extractor], [read_statistics(path, extractor)], []
    )


def measure_samples(
    generator: Generator,
    decoder: LatentDecoder,
    labels: Sequence[int | None],
    sampling: Sampling,
    reference: Reference,
    batch_size: int = 16,
    progress: Progress = silent,
    processes: Processes = _ALONE,
    guide: Generator | None = None,
) -> GuidedResult | None:
    """Return the distances of samples, in the main process; None in the others."""
    count, rank = len(labels), processes.rank
    numbers = range(count * rank // processes.count, count * (rank + 1) // processes.count)
    own_labels = [labels[number] for number in numbers]
    batches = generate_images(generator, decoder, own_labels, sampling, numbers, batch_size, guide)
    distances = measure_images(progress(batches, -(-len(numbers) // batch_size)), numbers, reference, processes)
    return None if distances is None else GuidedResult(sampling, distances)


def measure_images(
    batches: Iterable[np.ndarray], numbers: Sequence[int], reference: Reference, processes: Processes = _ALONE
) -> Distances | None:
    """Return the distances of images from the reference by extractor, in the main process; None in the others.

    Args:
        batches: of images, uint8 (B, S, S, 3): the share of this process.
        numbers: of these images among all.
        reference: what they are compared with.
        processes: that share the images.
    """
    features = [FeatureSet(extractor) for extractor in reference.extractors]
    done = 0
    for images in batches:
        own_numbers = numbers[done : done + len(images)]
        for extractor, feature_set in zip(reference.extractors, features, strict=True):
            feature_set.add(extractor(torch.from_numpy(images)), own_numbers)
        done += len(images)
    features = [feature_set.reduce(processes) for feature_set in features]
    if not processes.main:
        return None
    return {
        extractor.name: set_distances(real, fake, NEIGHBORS)
        for extractor, real, fake in zip(reference.extractors, reference.features, features, strict=True)
    }


def best(results: Sequence[GuidedResult], extractor: str) -> GuidedResult:
    """Return the result with the smallest Fréchet distance."""
    return min(results, key=lambda r: float(r.distances[extractor]["frechet"]))


# ---- classes ---------------------------------------------------------------------------------------------------------


def balanced_labels(classes: Sequence[int], count: int) -> list[int | None]:
    """Return the given classes in turn, equally often; None for each sample of a model without classes."""
    return [classes[i % len(classes)] for i in range(count)] if classes else [None] * count


def photograph_classes(source: ImageSource, names: Sequence[str]) -> Counter[int]:
    """Count the photographs of each class, which is the name of a photograph's folder, as ``ssdd tokenize`` has it.

    Raises ValueError where none is of a class that there is.
    """
    numbers = {name: number for number, name in enumerate(names)}
    folders = (folder_of(source.key(i)) or folder_of(source.name(i)) for i in range(len(source)))
    counts = Counter(numbers[folder] for folder in folders if folder in numbers)
    if not counts:
        raise ValueError(
            f"expected photographs in folders named by a class, such as {names[0]!r}, for --shares data, found none"
            if names
            else "expected a generator with classes for --shares data, found one without"
        )
    return counts


def proportional_labels(counts: Counter[int], count: int, seed: int) -> list[int | None]:
    """Return classes by their share of the photographs, rounded to whole samples, in an order drawn by the seed."""
    classes = sorted(counts)
    exact = np.array([counts[label] for label in classes]) * count / counts.total()
    shares = np.floor(exact).astype(int)
    largest_remainders = np.argsort(shares - exact, kind="stable")[: count - shares.sum()]
    shares[largest_remainders] += 1
    return [int(label) for label in np.random.default_rng(seed).permutation(np.repeat(classes, shares))]


# ---- the result ------------------------------------------------------------------------------------------------------


@dataclass
class SearchFile:
    """The JSON file of a search over guidances, and its plot: written after each row, and gone on with.

    Several processes may write to one file.

    Attributes:
        path: of the file, with the suffix .json; None to keep nothing. The plot has .png instead.
        facts: everything but the rows, JSON types alone.
        overwrite: replace what is there, once the first row is done.
    """

    path: Path | None
    facts: dict[str, Any]
    overwrite: bool = False
    _written: bool = field(default=False, init=False)

    def check(self, samplings: Sequence[Sampling]) -> None:
        """Raise what ``kept`` and ``write`` would raise in the end for rows of these samplings."""
        kept = self.kept()
        if self.path is None or self.overwrite or not _has_plot(len({row.sampling for row in kept} | set(samplings))):
            return
        plot = self.path.with_suffix(".png")
        if len(kept) < 2 and plot.exists():  # of something else
            raise OutputExists(
                f"{plot} exists already, where the plot of {self.path.name} would be: choose another --out, or pass "
                "--overwrite to replace it"
            )

    def kept(self) -> list[GuidedResult]:
        """Return the rows that are there. Raises ValueError if they are of another generator, or other data."""
        if self.path is None or not self.path.exists() or (self.overwrite and not self._written):
            return []
        try:
            found = json.loads(self.path.read_text())
            rows = [(row.pop("distances"), row) for row in found.pop("rows")]
            results = [GuidedResult(Sampling.read(row), distances) for distances, row in rows]
            found, expected = _without_names(found), _without_names(json.loads(json.dumps(self.facts)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: expected a result of ssdd generate evaluate, found {error!r}") from error
        if different := other_settings(found, expected):
            raise ValueError(
                f"{self.path} holds rows with another {different}: choose another --out, or pass --overwrite to "
                "replace it"
            )
        return results

    def content(self, results: Sequence[GuidedResult]) -> dict[str, Any]:
        """Return the facts and all rows, JSON types alone."""
        return {**self.facts, "rows": [{**r.sampling.describe(), "distances": r.distances} for r in results]}

    def write(self, results: Sequence[GuidedResult]) -> list[GuidedResult]:
        """Write these rows beside those that are there by now, and a plot if that makes several. Return all rows."""
        if self.path is None:
            return list(results)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with one_after_another(self.path.parent, self.path.name):
            kept = self.kept()
            known = {row.sampling for row in kept}
            rows = [*kept, *(row for row in results if row.sampling not in known)]
            write_json(self.path, self.content(rows))
            self._written = True
            if _has_plot(len(rows)):
                with atomic_path(self.path.with_suffix(".png"), self.overwrite or len(kept) > 1) as path:
                    path.write_bytes(draw_search(rows))
        return rows


def _has_plot(rows: int) -> bool:
    return rows > 1 and find_spec("matplotlib") is not None


def _without_names(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without the names of the Fréchet distances, which follow from the numbers of images."""
    if "extractors" not in facts:
        return facts
    return {**facts, "extractors": [{**extractor, "frechet_name": None} for extractor in facts["extractors"]]}


def describe(reference: Reference, labels: Sequence[int | None], shares: str, models: dict[str, Any]) -> dict[str, Any]:
    """Return everything but the rows, JSON types alone. models: how generator and decoder are called and known."""
    return {
        **models,
        "reference": reference.facts,
        **describe_labels(labels, shares),
        "extractors": _extractors(reference, len(labels)),
        "software": software(),
    }


def describe_labels(labels: Sequence[int | None], shares: str) -> dict[str, Any]:
    """Return how many samples there are of how many classes, in which shares, and the digest of each one's class."""
    numbers = [None if label is None else int(label) for label in labels]
    return {
        "samples": len(labels),
        "classes": len(set(numbers) - {None}),
        "labels": shares,
        "labels_sha256": hashlib.sha256(json.dumps(numbers).encode()).hexdigest(),
    }


def _extractors(reference: Reference, samples: int) -> list[dict[str, Any]]:
    """Return what is known of the extractors; the Fréchet distance is named by the smaller number of images."""
    count = samples if reference.count is None else min(samples, reference.count)
    return [describe_extractor(extractor, count) for extractor in reference.extractors]


def as_text(results: Sequence[GuidedResult], reference: Reference, labels: Sequence[int | None], shares: str) -> str:
    """Return a table, a row per guidance and extractor, and below it the protocol."""
    metrics = [m for m in SET_METRICS.values() if any(m.name in d for r in results for d in r.distances.values())]
    lines = [["guidance", "features", *(m.heading for m in metrics)]]
    for result in results:
        for name, found in result.distances.items():
            cells = [f"{found[m.name]:.4g}" if m.name in found else "-" for m in metrics]
            lines.append([f"{result.sampling.guidance:g}", name, *cells])
    return "\n".join([*aligned(lines, left=0), "", *_protocol(results, reference, labels, shares)])


def _protocol(
    results: Sequence[GuidedResult], reference: Reference, labels: Sequence[int | None], shares: str
) -> list[str]:
    sampling, data = results[0].sampling, reference.facts
    classes, (low, high) = len(set(labels) - {None}), sampling.interval
    photographs = f"photographs: mean and covariance of {data.get('statistics')}; sha256 {data.get('sha256', '')[:16]}"
    if reference.count is not None:
        crops, sha256 = f"{data['crops']} crops", data["fingerprint"][:16]
        photographs = f"photographs: {crops}, {data['protocol']}: {data['crop']}; sha256 {sha256}"
    lines = [
        f"samples: {len(labels)}, {classes} classes, {shares}" if classes else f"samples: {len(labels)}, no classes",
        f"sampler: {sampling.sampler}, {sampling.steps} steps ({sampling.calls} calls), guidance at t from {low:g} to "
        f"{high:g}, times shifted by {sampling.shift:g}, noise by (seed {sampling.seed}, number of the sample)",
        photographs,
        *set_notes(_extractors(reference, len(labels)), {f"{r.sampling.guidance:g}": r.distances for r in results}),
    ]
    names = [e.name for e in reference.extractors]
    if len(results) > 1:
        lines.append(f"best guidance by FD {names[0]}: {best(results, names[0]).sampling.guidance:g}")
    return lines


def draw_search(results: Sequence[GuidedResult]) -> bytes:
    """Return a PNG of the Fréchet distance by guidance, a curve for each extractor."""
    rows = sorted(results, key=lambda result: result.sampling.guidance)
    with figure_style():
        figure = new_figure(3.2)
        axes = figure.subplots()
        for name in rows[0].distances:
            values = [float(row.distances[name]["frechet"]) for row in rows]
            axes.plot([row.sampling.guidance for row in rows], values, marker="o", label=name)
        axes.set(xlabel="guidance", ylabel="Fréchet distance", ylim=(0, None))
        return save_figure(figure, "png")
