"""Generated images against photographs: FID, KID, precision, recall, density, coverage, for one guidance or several.

Shapes: N samples, S side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..evaluation.distances import FeatureSet, set_distances
from ..evaluation.features import Extractor
from ..evaluation.metrics import SET_METRICS
from ..evaluation.protocols import PROTOCOLS, Census, EvaluationSet, Progress, Protocol, crop_batches, silent
from ..evaluation.results import describe_extractor, set_notes, software
from ..text import aligned
from .decoding import spatial_factor
from .result import Generator
from .sampling import Sampling, generate_images

Distances = dict[str, dict[str, float]]

NEIGHBORS = 3
"""k of precision, recall, density and coverage, as guided-diffusion (ADM) has it for generated images."""


@dataclass(frozen=True)
class Reference:
    """Features of photographs by extractor, and what they are of."""

    protocol: Protocol
    census: Census
    extractors: list[Extractor]
    features: list[FeatureSet]


@dataclass(frozen=True)
class GuidedResult:
    """Distances by extractor of samples drawn in one way."""

    sampling: Sampling
    distances: Distances


def reference_protocol(side: int) -> Protocol:
    """Centre crops of S x S, as ``paper-S-v1`` and as tokenized data are by default."""
    return PROTOCOLS.get(f"paper-{side}-v1") or Protocol(f"centre-{side}-v1", "centre", side)


def image_side(generator: Generator, decoder: Any) -> int:
    """S of what the decoder makes of the generator's latents."""
    return generator.facts.latent_shape[1] * spatial_factor(decoder)


def measure_reference(
    evaluation_set: EvaluationSet,
    extractors: Sequence[Extractor],
    batch_size: int = 16,
    workers: int = 2,
    progress: Progress = silent,
) -> Reference:
    """One pass over the photographs. Raises ValueError if none can be used."""
    census, features = Census(), [FeatureSet(extractor) for extractor in extractors]
    for crops in crop_batches(evaluation_set, census, batch_size, workers, progress):
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops]))
        numbers = [evaluation_set.protocol.number(crop.key) for crop in crops]
        for extractor, found in zip(extractors, features, strict=True):
            found.add(extractor(pixels), numbers)
    census.check_used()
    return Reference(evaluation_set.protocol, census, list(extractors), features)


def measure_samples(
    generator: Generator,
    decoder: Any,
    labels: Sequence[int | None],
    sampling: Sampling,
    guidances: Sequence[float],
    reference: Reference,
    batch_size: int = 16,
    progress: Progress = silent,
) -> list[GuidedResult]:
    """The same noise and classes with each guidance in turn: a search, if there are several."""
    results = []
    for guidance in guidances:
        own = replace(sampling, guidance=guidance)
        features = [FeatureSet(extractor) for extractor in reference.extractors]
        batches = generate_images(generator, decoder, labels, own, batch_size=batch_size)
        count = 0
        for images in progress(batches, -(-len(labels) // batch_size)):
            for extractor, found in zip(reference.extractors, features, strict=True):
                found.add(extractor(torch.from_numpy(images)), range(count, count + len(images)))
            count += len(images)
        distances = {
            extractor.name: set_distances(real, fake, NEIGHBORS)
            for extractor, real, fake in zip(reference.extractors, reference.features, features, strict=True)
        }
        results.append(GuidedResult(own, distances))
    return results


def best(results: Sequence[GuidedResult], extractor: str) -> GuidedResult:
    """The one with the smallest Fréchet distance."""
    return min(results, key=lambda r: float(r.distances[extractor]["frechet"]))


def balanced_labels(classes: Sequence[int], count: int) -> list[int | None]:
    """The given classes in turn, equally often; None for each sample of a model without classes."""
    return [classes[i % len(classes)] for i in range(count)] if classes else [None] * count


def as_dict(
    results: Sequence[GuidedResult], reference: Reference, labels: Sequence[int | None], models: dict[str, Any]
) -> dict[str, Any]:
    """Everything, JSON types alone. models: how generator and decoder are called, and what is known of them."""
    return {
        **models,
        "reference": {**reference.protocol.describe(), **reference.census.describe()},
        "samples": len(labels),
        "classes": len(set(labels) - {None}),
        "labels": "the chosen classes in turn",
        "extractors": _extractors(reference, len(labels)),
        "software": software(),
        "rows": [{**result.sampling.describe(), "distances": result.distances} for result in results],
    }


def _extractors(reference: Reference, samples: int) -> list[dict[str, Any]]:
    """Return what is known of the extractors; the Fréchet distance is named by the smaller number of images."""
    count = min(samples, reference.census.describe()["crops"])
    return [describe_extractor(extractor, count) for extractor in reference.extractors]


def as_text(results: Sequence[GuidedResult], reference: Reference, labels: Sequence[int | None]) -> str:
    """Return a table, a row per guidance and extractor, and below it the protocol."""
    metrics = [m for m in SET_METRICS.values() if any(m.name in d for r in results for d in r.distances.values())]
    lines = [["guidance", "features", *(m.heading for m in metrics)]]
    for result in results:
        for name, found in result.distances.items():
            cells = [f"{found[m.name]:.4g}" if m.name in found else "-" for m in metrics]
            lines.append([f"{result.sampling.guidance:g}", name, *cells])
    return "\n".join([*aligned(lines, left=0), "", *_protocol(results, reference, labels)])


def _protocol(results: Sequence[GuidedResult], reference: Reference, labels: Sequence[int | None]) -> list[str]:
    sampling, data, crop = results[0].sampling, reference.census.describe(), reference.protocol.describe()
    classes, calls = len(set(labels) - {None}), 2 * sampling.steps - 1 if sampling.sampler == "heun" else sampling.steps
    low, high = sampling.interval
    lines = [
        f"samples: {len(labels)}, {classes} classes in turn" if classes else f"samples: {len(labels)}, no classes",
        f"sampler: {sampling.sampler}, {sampling.steps} steps ({calls} calls), guidance at t from {low:g} to {high:g}, "
        f"noise by (seed {sampling.seed}, number of the sample)",
        f"photographs: {data['crops']} crops, {crop['protocol']}: {crop['crop']}; sha256 {data['fingerprint'][:16]}",
        *set_notes(_extractors(reference, len(labels)), {f"{r.sampling.guidance:g}": r.distances for r in results}),
    ]
    names = [e.name for e in reference.extractors]
    if len(results) > 1:
        lines.append(f"best guidance by FD {names[0]}: {best(results, names[0]).sampling.guidance:g}")
    return lines
