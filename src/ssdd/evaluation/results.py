"""The result of an evaluation: kept in a folder, added to, shown as a table.

    evaluation.json   protocol, data, metrics, and for each row its numbers with intervals
    crops-HASH.npz    every crop's numbers; the JSON names it, so that both change in one step
    pictures/         some crops and what each row made of them

Shapes: n crops, M metrics, R resamples of the bootstrap, K bands of frequency.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torchvision

from .. import __version__
from ..data.images import printable
from ..runtime.files import atomic_path
from ..runtime.text import aligned, as_json
from .features import Extractor
from .image_metrics import psnr
from .metrics import COLOURS, COSTS, SET_METRICS, Metric, ordered
from .weights import first_line

RESULTS, REPORT, PICTURES = "evaluation.json", "report.html", "pictures"
FORMAT = 2
"""Format of evaluation.json. Files of format 1, without the entry, had every crop in the JSON."""

RESAMPLES = 2000
_BLOCK = 64


@dataclass(frozen=True)
class Estimate:
    """Mean over ``count`` crops, its 95 % interval, and how many infinite values are left out of both."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    count: int = 0
    infinite: int = 0


UNKNOWN = Estimate(math.nan)


@dataclass(frozen=True)
class Crops:
    """The crops of a set, in its order.

    Attributes:
        image, crop: (n,) int64, of which image, and which of the image's.
        name: the images' names.
        columns: (n,) float64 by name: ``pixels``, and what metrics are weighted by.
    """

    image: np.ndarray
    crop: np.ndarray
    name: list[str]
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image)

    def label(self, index: int) -> str:
        """Return how a crop is called in lists."""
        return f"{printable(self.name[index])}#{self.crop[index]}"


@dataclass
class Row:
    """An autoencoder in one setting, and its numbers.

    Attributes:
        label: unlike that of any other row.
        name: the label without the steps.
        number: tells models of one name apart, behind the name where it is not 1.
        group: number of its model among the models.
        steps: number of decoding steps, None where there is none to choose.
        precision_of: label of the row in the first precision, whose latents it decodes.
        model: what ``describe`` says of it.
        latent_shape: (c, h, w), None where there is none, or crops have several.
        costs: by name of ``COSTS``, None where unknown.
        values: (n,) by metric, NaN where undefined.
        valid: (n,) bool, False for crops without a finite reconstruction, which are left out of all numbers.
        spectrum: (K,) mean power by band.
        image_metrics: means over all crops.
        minus_first_row, minus_precision: differences to the first row and to ``precision_of``, crop by crop.
        distances: by extractor, then by metric.
    """

    label: str
    name: str
    group: int
    steps: int | None
    precision_of: str | None
    model: dict[str, Any]
    latent_shape: list[int] | None
    costs: Mapping[str, float | None]
    values: dict[str, np.ndarray]
    valid: np.ndarray
    spectrum: Sequence[float | None]
    number: int = 1
    image_metrics: dict[str, Estimate] = field(default_factory=dict)
    minus_first_row: dict[str, Estimate] = field(default_factory=dict)
    minus_precision: dict[str, Estimate] = field(default_factory=dict)
    distances: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Image metrics by name, and distances of sets by ``extractor/name``, as ``set_metrics`` names them."""
        distances = {f"{e}/{name}": Estimate(v) for e, values in self.distances.items() for name, v in values.items()}
        return self.image_metrics | distances

    @property
    def tokens(self) -> int | None:
        """h * w of the latent (c, h, w); None where it has no such shape."""
        shape = self.latent_shape
        return shape[1] * shape[2] if shape and len(shape) == 3 else None


@dataclass
class Picture:
    """A crop that is shown: its number among the crops, why, and its files by row's label, ``""`` for the original."""

    crop: int
    reasons: list[str]
    files: dict[str, str] = field(default_factory=dict)


def software() -> dict[str, str]:
    """Return the versions of what takes part in the numbers."""
    return {
        "ssdd": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "diffusers": diffusers.__version__,
    }


@dataclass
class Evaluation:
    """All rows, and what they have in common.

    Attributes:
        protocol, data: description of the evaluation set, as their ``describe`` has them.
        metrics: image metrics of any row.
        extractors: what ``describe_extractor`` says of each.
        size: height and width of most crops.
        frequencies, spectrum: (K,) bands in cycles per pixel, and the originals' mean power in them.
        finished: whether all rows that were asked for are there.
    """

    protocol: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Metric]
    extractors: list[dict[str, Any]]
    size: tuple[int, int]
    crops: Crops
    frequencies: list[float]
    spectrum: Sequence[float | None]
    rows: list[Row] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    software: dict[str, str] = field(default_factory=software)
    finished: bool = False

    def add(self, row: Row) -> None:
        """Add a row, with the intervals of its numbers, of the differences to the first and to its other precision."""
        row.image_metrics = summarize(row, self.crops, self.metrics)
        if self.rows:
            row.minus_first_row = differences(row, self.rows[0], self.crops, self.metrics)
        for other in self.rows:
            if other.label == row.precision_of:
                row.minus_precision = differences(row, other, self.crops, self.metrics)
        self.rows.append(row)

    def invalid(self, row: Row) -> list[str]:
        """Return the names of crops that the row has no finite reconstruction of."""
        return [self.crops.label(int(i)) for i in np.flatnonzero(~row.valid)]

    @property
    def columns(self) -> list[Metric]:
        """The image metrics and the distances of sets that any row has, in the order of tables."""
        known = {name for row in self.rows for name in row.estimates}
        metrics = ordered(self.metrics) + [m for extractor in self.extractors for m in set_metrics(extractor)]
        return [metric for metric in metrics if metric.name in known]

    def save(self, folder: Path) -> None:
        """Write the result, each file whole or not at all; what the folder had of the same name is replaced."""
        arrays: dict[str, Any] = {
            "image": self.crops.image,
            "crop": self.crops.crop,
            "name": np.array(self.crops.name, dtype=np.str_),
            **{f"column/{name}": column for name, column in self.crops.columns.items()},
        }
        for i, row in enumerate(self.rows):
            arrays |= {f"row/{i}/{name}": values for name, values in row.values.items()} | {f"valid/{i}": row.valid}
        crops = folder / f"crops-{_digest(arrays)}.npz"
        content = io.BytesIO()  # where the disk is full, an open zip file would complain a second time
        np.savez_compressed(content, **arrays)
        with atomic_path(crops, overwrite=True) as path:
            path.write_bytes(content.getvalue())
        with atomic_path(folder / RESULTS, overwrite=True) as path:
            path.write_text(json.dumps({**self.as_dict(), "crops": crops.name}, indent=1, allow_nan=False) + "\n")
        for old in folder.glob("crops-*.npz"):
            if old != crops:
                old.unlink()

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types alone; what is infinite (the PSNR of equal images) or not defined is None."""
        rows = []
        for row in self.rows:
            entries = {name: value for name, value in vars(row).items() if name not in ("values", "valid")}
            rows.append(entries | {"invalid": self.invalid(row)})
        return as_json(
            {
                "format": FORMAT,
                "finished": self.finished,
                "protocol": self.protocol,
                "data": self.data,
                "software": self.software,
                "metrics": {name: metric.describe() for name, metric in self.metrics.items()},
                "extractors": self.extractors,
                "size": self.size,
                "spectrum": {"cycles_per_pixel": self.frequencies, "originals": self.spectrum},
                "rows": rows,
                "pictures": self.pictures,
            }
        )

    @classmethod
    def load(cls, folder: Path) -> "Evaluation":
        """Read what ``save`` wrote. Raises FileNotFoundError or ValueError with one line for another folder."""
        path = folder / RESULTS
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: expected the result of an evaluation, found no {RESULTS} in it")
        try:
            stored = json.loads(path.read_text(), object_hook=_estimate)
            if stored.get("format") != FORMAT:
                raise ValueError(f"format {stored.get('format', 1)}, which another release reads")
            with np.load(folder / Path(stored["crops"]).name, allow_pickle=False) as arrays:
                return _from_dict(stored, dict(arrays))
        except Exception as error:  # whatever a damaged or hostile file leads to
            raise ValueError(f"{path}: expected a result of format {FORMAT}, found {first_line(error)}") from error


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of what the arrays hold; that of their file would change with its date."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:12]


def _estimate(entries: dict[str, Any]) -> Any:
    """Return the estimate that an object of JSON is, or the object; without a mean, but of crops, it is infinite."""
    if entries.keys() != vars(UNKNOWN).keys():
        return entries
    missing = math.inf if entries["count"] else math.nan
    mean, low, high = (missing if entries[name] is None else entries[name] for name in ("mean", "low", "high"))
    return Estimate(mean, low, high, entries["count"], entries["infinite"])


def _from_dict(stored: dict[str, Any], arrays: dict[str, np.ndarray]) -> Evaluation:
    def below(folder: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(folder): array for name, array in arrays.items() if name.startswith(folder)}

    rows = []
    for i, entries in enumerate(stored["rows"]):
        del entries["invalid"]
        rows.append(Row(**entries, values=below(f"row/{i}/"), valid=arrays[f"valid/{i}"]))
    pictures = [Picture(**entries) for entries in stored["pictures"]]
    for name in (name for picture in pictures for name in picture.files.values()):
        if not re.fullmatch(rf"{PICTURES}/[\w.-]+\.png", name):
            raise ValueError(f"a picture outside of the folder, {name!r}")
    return Evaluation(
        stored["protocol"],
        stored["data"],
        {name: Metric(name, **described) for name, described in stored["metrics"].items()},
        stored["extractors"],
        tuple(stored["size"]),
        Crops(arrays["image"], arrays["crop"], arrays["name"].tolist(), below("column/")),
        stored["spectrum"]["cycles_per_pixel"],
        stored["spectrum"]["originals"],
        rows,
        pictures,
        stored["software"],
        stored["finished"],
    )


def file_name(label: str) -> str:
    """Return a row's label as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.")[:80] or "row"


# ---- means and intervals ---------------------------------------------------------------------------------------------


def summarize(row: Row, crops: Crops, metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Return estimates by metric, of ``pooled_psnr`` too; NaN for a metric without a finite value.

    The mean is over the crops where a metric is defined and finite (the PSNR of equal images is not). Intervals are
    percentiles of the bootstrap over images: crops of one image are not independent, so they are drawn together.
    """
    values = np.stack([*row.values.values(), row.values["mse"]], axis=1)
    weights = np.stack([*(_weight(crops, metrics[name]) for name in row.values), crops.columns["pixels"]], axis=1)
    *estimates, pooled = _estimates(values[row.valid], weights[row.valid], crops.image[row.valid])
    mean, low, high = psnr(np.array([pooled.mean, pooled.high, pooled.low])).tolist()
    return {"pooled_psnr": Estimate(mean, low, high, pooled.count)} | dict(zip(row.values, estimates, strict=True))


def differences(row: Row, other: Row, crops: Crops, metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Return mean differences to another row, crop by crop, over the crops where both are finite.

    The images' own differences cancel, so that these intervals are much shorter than those of two summaries.
    """
    names = [name for name in row.values if name in other.values]
    both = row.valid & other.valid
    with np.errstate(invalid="ignore"):
        values = np.stack([row.values[name] - other.values[name] for name in names], axis=1)
    weights = np.stack([_weight(crops, metrics[name]) for name in names], axis=1)
    return dict(zip(names, _estimates(values[both], weights[both], crops.image[both]), strict=True))


def _weight(crops: Crops, metric: Metric) -> np.ndarray:
    return np.ones(len(crops)) if metric.weight is None else crops.columns[metric.weight]


def _estimates(values: np.ndarray, weights: np.ndarray, images: np.ndarray) -> list[Estimate]:
    """Return the estimate of each column of values (n, M), weighted by (n, M); crops of an image are drawn together."""
    weights = weights * np.isfinite(values)
    infinite = np.isinf(values).sum(0)
    sums = np.where(weights > 0, values, 0.0) * weights
    with np.errstate(invalid="ignore"):
        means = sums.sum(0) / weights.sum(0)
    estimates = []
    for k, drawn in enumerate(bootstrap_means(sums, weights, images).T):
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (math.nan, math.nan)
        count = int((weights[:, k] > 0).sum())
        estimates.append(Estimate(float(means[k]), float(low), float(high), count, int(infinite[k])))
    return estimates


def bootstrap_means(sums: np.ndarray, weights: np.ndarray, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return means of resamples that draw whole images: (R, M), NaN where all that was drawn weighs nothing.

    Args:
        sums, weights: (n, M) float64. A mean is the sum of ``sums`` over that of ``weights``.
        images: (n,), the image of each crop.
        seed: seed of the resamples.
    """
    _, groups = np.unique(images, return_inverse=True)
    members, width = 1 + int(groups.max(initial=-1)), sums.shape[1]
    if not members:
        return np.full((RESAMPLES, width), math.nan)
    grouped = np.zeros((members, 2 * width))
    np.add.at(grouped, groups, np.concatenate([sums, weights], axis=1))
    random, totals = np.random.default_rng(seed), []
    for first in range(0, RESAMPLES, _BLOCK):
        draws = random.integers(members, size=(min(_BLOCK, RESAMPLES - first), members))
        counts = np.stack([np.bincount(draw, minlength=members) for draw in draws])
        totals.append(counts.astype(np.float64) @ grouped)
    drawn = np.concatenate(totals)
    with np.errstate(invalid="ignore"):
        return drawn[:, :width] / drawn[:, width:]


def ranking_metric(evaluation: Evaluation) -> Metric:
    """Return the metric that crops are sorted by: the first LPIPS that the first row has values of, else MSE."""
    values = evaluation.rows[0].values
    names = [name for name in evaluation.metrics if name.startswith("lpips_") and name in values]
    return evaluation.metrics[names[0] if names else "mse"]


def ranked(row: Row, metric: Metric) -> list[int]:
    """Return the numbers of the row's valid crops from the worst to the best by a metric."""
    values = row.values[metric.name]
    order = np.argsort([-metric.badness(v) if math.isfinite(v) else math.inf for v in values], kind="stable")
    return [int(i) for i in order if row.valid[i] and not math.isnan(values[i])]


# ---- the table -------------------------------------------------------------------------------------------------------


def as_text(evaluation: Evaluation) -> str:
    """Return a table, and below it the protocol. Intervals are of 95 %, by the bootstrap over images."""
    metrics = [metric for metric in evaluation.columns if metric.in_text]
    costs = [metric for metric in COSTS.values() if metric.in_text]
    lines = [["", *(m.heading for m in metrics), "latent", *(m.heading for m in costs)]]
    for row in evaluation.rows:
        estimates, shape = row.estimates, row.latent_shape
        cells = [_cell(metric, estimates.get(metric.name, UNKNOWN)) for metric in metrics]
        latent = "x".join(map(str, shape)) if shape else "-"
        lines.append([row.label, *cells, latent, *(m.format(row.costs.get(m.name)) for m in costs)])
    return "\n".join([*aligned(lines), "", *_notes(evaluation)])


def _cell(metric: Metric, estimate: Estimate) -> str:
    half = (estimate.high - estimate.low) / 2
    return metric.format(estimate.mean) + ("" if math.isnan(half) else f" ±{metric.format(half)}")


def set_metrics(extractor: Mapping[str, Any]) -> list[Metric]:
    """Return the distances of sets on an extractor's features, the Fréchet one first.

    They are named as in ``Row.estimates``; the heading of the Fréchet distance has the number of images.
    """
    headings = {"frechet": extractor["frechet_name"], "cmmd": SET_METRICS["cmmd"].heading}
    return [
        replace(
            metric,
            name=f"{extractor['name']}/{name}",
            heading=headings.get(name, f"{metric.heading} {extractor['title']}"),
        )
        for name, metric in SET_METRICS.items()
    ]


def _notes(evaluation: Evaluation) -> list[str]:
    protocol, data = evaluation.protocol, evaluation.data
    notes = [
        f"{protocol['protocol']}: {data['crops']} crops of {data['images']} images",
        f"{data['skipped_images']} skipped, {data['enlarged_images']} enlarged; ± half of the 95 % interval",
    ]
    for row in evaluation.rows:
        what = "an image of their name and size" if row.model["kind"] == "images" else "a finite reconstruction"
        if missing := evaluation.invalid(row):
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            notes.append(f"{row.label}: {len(missing)} crops without {what} are left out: {names}")
    for row in evaluation.rows:
        if change := row.minus_precision:
            psnr = change["psnr"]
            shifts = ", ".join(f"{colour} {change[f'colour_shift_{colour}'].mean:+.3f}" for colour in COLOURS)
            notes.append(
                f"{row.label} minus {row.precision_of}: PSNR {psnr.mean:+.3f} dB [{psnr.low:+.3f}, {psnr.high:+.3f}]; "
                f"colour, 8-bit levels: {shifts}"
            )
    notes += set_notes(evaluation.extractors, {row.label: row.distances for row in evaluation.rows})
    if data["reference"]:
        notes.append(f"distances of sets are to the statistics in {data['reference']}, not to the originals")
    height, width = evaluation.size
    notes.append(f"GFLOP: of one image of {height} x {width}, a multiplication and an addition are two")
    notes += [f"{name}: {value}" for name, value in protocol.items() if name != "protocol"]
    explained = [m for m in evaluation.metrics.values() if m.name in ("dreamsim", "weave")]
    notes += [f"{metric.heading}: {metric.description}" for metric in explained]
    notes.append("dtype: " + ", ".join(f"{row.label} {row.model['dtype']}" for row in evaluation.rows))
    notes.append(", ".join(f"{name} {version}" for name, version in evaluation.software.items()))
    notes.append(f"fingerprint of the crops: {data['fingerprint']}")
    return notes


def describe_extractor(extractor: Extractor, count: int) -> dict[str, Any]:
    """Return what a result says of an extractor, by whose features sets of ``count`` images are compared."""
    return {
        "name": extractor.name,
        "title": extractor.title,
        "frechet_name": extractor.frechet_name(count),
        "width": extractor.width,
        "sha256": extractor.sha256,
        "preprocessing": extractor.preprocessing,
    }


def set_notes(
    extractors: Sequence[Mapping[str, Any]], distances: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> list[str]:
    """Return lines that say what distances of sets are computed on, and what they can be compared with.

    Args:
        extractors: what ``describe_extractor`` says of each.
        distances: of each row by its label, then by extractor.
    """
    notes = []
    for extractor in extractors:
        notes.append(f"extractor {extractor['name']}: {extractor['preprocessing']}; sha256 {extractor['sha256'][:16]}")
        by_row = {label: d[extractor["name"]] for label, d in distances.items() if d.get(extractor["name"])}
        if not by_row:
            continue
        most = max(d["count"] for d in by_row.values())
        fewer = "".join(f"; {label}: {d['count']:.0f}" for label, d in by_row.items() if d["count"] < most)
        comparable = "compare it with numbers of as many alone"
        notes.append(f"{extractor['frechet_name']}: of {most:.0f} images{fewer}; {comparable}")
        first = next(iter(by_row.values()))
        if "kid_subsets" in first:
            kid = f"KID: mean of {first['kid_subsets']:.0f} subsets of {first['kid_subset_size']:.0f}"
            k = f"; precision, recall, density, coverage: k = {first['neighbors']:.0f}" if "neighbors" in first else ""
            notes.append(f"{kid}{k}; all on {first['subset']:.0f} images of each set, drawn by seed")
    return notes
