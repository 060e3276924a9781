"""A comparison as its report sees it: names, estimates and colours, each worked out once.

Shapes: K bands of frequency, c x h x w a latent, S side of the crops.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ...data.images import printable
from ..compare import Comparison, Row
from ..results import seconds
from ..tables import Estimate

Better = Literal["higher", "lower", "one", "zero"]


@dataclass(frozen=True)
class Metric:
    """How a metric is called and read. better: which values are; a ratio is best at one, a shift at zero."""

    name: str
    heading: str
    digits: int
    better: Better

    @property
    def arrow(self) -> str:
        """The direction of better values, for a heading."""
        return {"higher": "↑", "lower": "↓", "one": "→ 1", "zero": "→ 0"}[self.better]

    def badness(self, value: float) -> float:
        """Smaller is better; infinite for NaN."""
        if math.isnan(value):
            return math.inf
        return {"higher": -value, "lower": value, "one": abs(value - 1), "zero": abs(value)}[self.better]


_INCEPTION = "inception-torch-fidelity"
"""The features whose Fréchet distance is called FID."""

_KNOWN = {
    m.name: m
    for m in (
        Metric("pooled_psnr", "PSNR pooled, dB", 2, "higher"),
        Metric("psnr", "PSNR mean, dB", 2, "higher"),
        Metric("ssim_uniform_7", "SSIM 7×7", 3, "higher"),
        Metric("ssim_gaussian_11", "SSIM 11×11", 3, "higher"),
        Metric("high_frequency_ratio", "Detail energy ratio", 3, "one"),
        Metric("dreamsim", "DreamSim", 3, "lower"),
        Metric("mse", "MSE", 5, "lower"),
        Metric("mae", "MAE", 4, "lower"),
        *(Metric(f"colour_shift_{c}", f"Shift of {c}, levels", 2, "zero") for c in ("red", "green", "blue")),
        Metric("frechet", "FD", 2, "lower"),
        Metric("kid", "KID", 5, "lower"),
        *(Metric(name, name.capitalize(), 3, "higher") for name in ("precision", "recall", "density", "coverage")),
    )
}


def metric(name: str, extractor: str | None = None) -> Metric:
    """Of an image metric or, with an extractor, of a number that compares two sets of its features."""
    if name == "frechet" and extractor == _INCEPTION:
        return Metric(name, "FID", 2, "lower")
    if name in _KNOWN:
        return _KNOWN[name]
    if name.startswith("lpips_"):
        return Metric(name, f"LPIPS-{name.removeprefix('lpips_')}", 3, "lower")
    return Metric(name, printable(name).replace("_", " "), 3, "lower")


@dataclass(frozen=True)
class RowView:
    """A row and what pages and figures say of it.

    label: one printable line, unlike that of any other row. name: the same without the steps. model: which of the
    autoencoders, from 0. nth: which of that autoencoder's rows, from 0. steps: that it decodes with, None without.
    """

    row: Row
    label: str
    name: str
    model: int
    nth: int
    steps: int | None
    estimates: dict[str, Estimate]

    @property
    def encode_rate(self) -> float:
        """Images a second."""
        return 1 / max(seconds(self.row.encode_seconds), 1e-9)

    @property
    def decode_rate(self) -> float:
        """Images a second."""
        return 1 / max(seconds(self.row.decode_seconds), 1e-9)

    @property
    def latent_bytes(self) -> float:
        return sum(self.row.latent_bytes) / len(self.row.latent_bytes)

    @property
    def tokens(self) -> int | None:
        """h x w of a latent; None where its shape is not one, as of a file."""
        shape = self.row.latent_shape
        return shape[1] * shape[2] if shape is not None and len(shape) == 3 else None

    def estimate(self, name: str) -> Estimate:
        """Of an image metric, all NaN where there is none; count and infinite are 0 then."""
        return self.estimates.get(name) or Estimate(math.nan, math.nan, math.nan, 0, 0)

    def distance(self, extractor: str, name: str) -> float:
        """One of the numbers that compare two sets of features, NaN where there is none."""
        return float(self.row.distances.get(extractor, {}).get(name, math.nan))

    def reliable(self, extractor: str) -> bool:
        """Whether the Fréchet distance is of enough crops to be compared with others' numbers."""
        return bool(self.row.distances.get(extractor, {}).get("frechet_reliable", False))


class View:
    """rows: in the comparison's order. comparison: as it is."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.rows = _rows(comparison.rows)

    @cached_property
    def image_metrics(self) -> list[str]:
        """Names of all image metrics that any row has."""
        return list(dict.fromkeys(name for view in self.rows for name in view.estimates))

    @property
    def extractors(self) -> list[str]:
        return [extractor.name for extractor in self.comparison.extractors]

    @property
    def ranking(self) -> str:
        """What crops are sorted by: LPIPS of the first network there is, else MSE."""
        return next((n for n in self.image_metrics if n.startswith("lpips_")), "mse")

    @property
    def headline(self) -> tuple[str, str | None]:
        """What stands for quality: (``frechet``, extractor) if reliable in every row, else (image metric, None)."""
        first = self.extractors[0] if self.extractors else None
        if first is not None and all(view.reliable(first) for view in self.rows):
            return "frechet", first
        return ("pooled_psnr" if self.ranking == "mse" else self.ranking), None

    @property
    def crop_pixels(self) -> int | None:
        """S x S; None where crops are of many sizes."""
        protocol = self.comparison.protocol
        return None if protocol.rule == "native" else protocol.size**2


def value_of(view: RowView, name: str, extractor: str | None = None) -> Estimate:
    """A metric or, with an extractor, a distance; without an interval where there is none."""
    if extractor is None:
        return view.estimate(name)
    value = view.distance(extractor, name)
    return Estimate(value, math.nan, math.nan, len(view.row.table.keys), 0)


def _rows(rows: Sequence[Row]) -> list[RowView]:
    found: list[RowView] = []
    models: dict[int, int] = {}
    nth: Counter[int] = Counter()
    labels: set[str] = set()
    for row in rows:
        contestant = row.entry.contestant
        name = contestant.name
        if row.entry.encoder is not None:  # the same model in another precision
            name += f", {contestant.describe()['dtype']}"
        model = models.setdefault(id(contestant), len(models))
        steps = row.entry.steps if row.entry.steps is not None else contestant.describe().get("steps")
        label = _unlike(printable(row.entry.label), labels)
        labels.add(label)
        summary = row.table.summary()
        found.append(RowView(row, label, printable(name), model, nth[model], steps, summary))
        nth[model] += 1
    return found


def _unlike(label: str, others: set[str]) -> str:
    """Two folders may have one name: the second is numbered."""
    number, found = 1, label
    while found in others:
        number += 1
        found = f"{label} ({number})"
    return found
