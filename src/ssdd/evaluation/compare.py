"""Autoencoders side by side: the same crops through each of them, one pass, every metric, in one or several processes.

Shapes: c latent channels, h x w latent grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..objectives import LPIPSNetwork
from ..processes import Processes, broadcast, gather
from .batches import Progress, nothing_usable, unchanged
from .feature_sets import set_distances
from .features import Extractor
from .image_metrics import BatchMetrics, PairMetric
from .measure import Entry, Measured, Share, measure
from .protocols import Census, EvaluationSet, Protocol
from .spectrum import MeanSpectrum

__all__ = ["Comparison", "Entry", "Row", "compare"]

Distances = dict[str, dict[str, float | bool]]


@dataclass(kw_only=True)
class Row(Measured):
    """An entry with what was measured of it.

    distances: by extractor. size: height and width of most crops.
    """

    entry: Entry
    size: tuple[int, int]
    distances: Distances = field(default_factory=dict)

    @cached_property
    def flops(self) -> tuple[int, int] | None:
        """Operations to encode and to decode one image of that ``size``; counted when first asked for."""
        return self.entry.contestant.flops(*self.size, self.entry.steps)

    @property
    def latent_shape(self) -> tuple[int, ...] | None:
        """(c, h, w) of a latent; None where they are of several sizes, or no tensors."""
        return next(iter(self.latent_shapes)) if len(self.latent_shapes) == 1 else None


@dataclass(frozen=True)
class Comparison:
    """All rows, the protocol, what of the data was used, and which extractors and other metrics by which files.

    other_metrics: by the name of their column. original_spectrum: of the crops. size: height and width of most of them,
    which FLOPs are of.
    """

    protocol: Protocol
    census: Census
    rows: list[Row]
    extractors: list[Extractor]
    other_metrics: dict[str, PairMetric]
    original_spectrum: MeanSpectrum
    size: tuple[int, int]


@dataclass(frozen=True)
class _Result:
    """What the main process makes of all shares."""

    measured: list[Measured]
    distances: list[Distances]
    census: Census
    spectrum: MeanSpectrum
    size: tuple[int, int] | None


def compare(
    entries: Sequence[Entry],
    evaluation_set: EvaluationSet,
    *,
    batch_size: int = 16,
    workers: int = 2,
    lpips_networks: Sequence[LPIPSNetwork] = (),
    other_metrics: Mapping[str, PairMetric] | None = None,
    extractors: Sequence[Extractor] = (),
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    progress: Progress = unchanged,
) -> Comparison:
    """Runs every entry on every crop of the set.

    With several ``processes`` each takes a part of the images, and all of them return the whole. No number depends on
    their number, the batch size or the workers, but for rounding. ``other_metrics``: by name, beside our own.

    Raises ValueError if the set has no usable image, or a crop does not fit an autoencoder.
    """
    device = torch.device(device)
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    total = len(evaluation_set)
    share = measure(
        entries,
        evaluation_set,
        range(total * rank // count, total * (rank + 1) // count),
        BatchMetrics(lpips_networks, device, other_metrics or {}),
        extractors,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    shares = gather(share.on_cpu() if count > 1 else share)
    result = broadcast(_result(shares, [e.name for e in extractors]) if shares else None)
    if result.size is None:
        raise nothing_usable(result.census)
    rows = [
        Row(**vars(measured), entry=entry, size=result.size, distances=distances)
        for entry, measured, distances in zip(entries, result.measured, result.distances, strict=True)
    ]
    return Comparison(
        evaluation_set.protocol,
        result.census,
        rows,
        list(extractors),
        dict(other_metrics or {}),
        result.spectrum,
        result.size,
    )


def _result(shares: list[Share], extractors: list[str]) -> _Result:
    """All shares, in order of their processes, put together."""
    whole, *others = shares
    for share in others:
        whole.merge(share)
    distances = [
        {name: set_distances(a, b) for name, a, b in zip(extractors, whole.real, fakes, strict=True)}
        for fakes in whole.fakes
    ]
    common = whole.sizes.most_common(1)
    return _Result(whole.measured, distances, whole.census, whole.spectrum, common[0][0] if common else None)
