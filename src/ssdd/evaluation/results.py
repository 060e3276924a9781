"""The result of an evaluation: kept in a folder, added to, shown as a table.

    evaluation.json   protocol, data, metrics, and for each row its numbers with intervals
    crops-HASH.npz    every crop's numbers; the JSON names it, so that both change in one step
    pictures/         some crops and what each row made of them

Shapes: n crops, M metrics, R resamples of the bootstrap, K bands of frequency.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torchvision

from .. import __version__
from ..data.images import printable
from ..files import atomic_path
from ..text import aligned
from .features import Extractor
from .image_metrics import psnr
from .metrics import COLOURS, COSTS, SET_METRICS, Metric, ordered
from .weights import first_line

RESULTS, REPORT, PICTURES = "evaluation.json", "report.html", "pictures"
FORMAT = 2
"""Of evaluation.json. Files of format 1, without the entry, had every crop in the JSON."""

RESAMPLES = 2000
_BLOCK = 64


@dataclass(frozen=True)
class Estimate:
    """Mean over ``count`` crops, its 95 % interval, and how many infinite values are left out of both."""

    mean: float
    low: float
    high: float
    count: int
    infinite: int


@dataclass(frozen=True)
class Crops:
    """The crops of a set, in its order: of which image, which of the image's, its name, and columns of their own.

    image, crop: (n,) int64. columns: (n,) float64 by name: ``pixels``, and what metrics are weighted by.
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
    """An autoencoder in one setting, and what was found.

    Attributes:
        label: unlike that of any other row. name: the same without the steps.
        group: number of its model among the models.
        steps: that it decodes with, None where there is none to choose.
        precision_of: label of the row in the first precision, whose latents it decodes.
        model: what ``describe`` says of it.
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
    spectrum: list[float]
    image_metrics: dict[str, Estimate] = field(default_factory=dict)
    minus_first_row: dict[str, Estimate] = field(default_factory=dict)
    minus_precision: dict[str, Estimate] = field(default_factory=dict)
    distances: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Picture:
    """A crop that is shown: its number among the crops, why, and its files by row's label, ``""`` for the original."""

    crop: int
    reasons: list[str]
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Evaluation:
    """All rows, and what they have in common.

    Attributes:
        protocol, data: of the evaluation set, as their ``describe`` has them.
        metrics: image metrics of any row.
        extractors: name, title, width, sha256, preprocessing, frechet_name of each.
        size: height and width of most crops.
        frequencies, spectrum: (K,) bands in cycles per pixel, and the originals' mean power in them.
    """

    protocol: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Metric]
    extractors: list[dict[str, Any]]
    size: tuple[int, int]
    crops: Crops
    frequencies: list[float]
    spectrum: list[float]
    rows: list[Row] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    software: dict[str, str] = field(default_factory=lambda: software())
    finished: bool = False
    """Whether all rows that were asked for are there."""

    def add(self, row: Row) -> None:
        """Add a row, with the intervals of its numbers, of the differences to the first and to its other precision."""
        row.image_metrics = summarize(row, self.crops, self.metrics)
        if self.rows:
            row.minus_first_row = differences(row, self.rows[0], self.crops, self.metrics)
        other = next((r for r in self.rows if r.label == row.precision_of), None)
        if other is not None:
            row.minus_precision = differences(row, other, self.crops, self.metrics)
        self.rows.append(row)

    def invalid(self, row: Row) -> list[str]:
        """Return the names of crops that the row has no finite reconstruction of."""
        return [self.crops.label(int(i)) for i in np.flatnonzero(~row.valid)]

    def save(self, folder: Path) -> None:
        """Write the result, each file whole or not at all; what the folder had of the same name is replaced."""
        arrays: dict[str, np.ndarray] = {
            "image": self.crops.image,
            "crop": self.crops.crop,
            "name": np.array(self.crops.name, dtype=np.str_),
            **{f"column/{name}": column for name, column in self.crops.columns.items()},
        }
        for i, row in enumerate(self.rows):
            arrays |= {f"row/{i}/{name}": values for name, values in row.values.items()} | {f"valid/{i}": row.valid}
        crops = folder / f"crops-{_digest(arrays)}.npz"
        with atomic_path(crops, overwrite=True) as path:
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        with atomic_path(folder / RESULTS, overwrite=True) as path:
            path.write_text(json.dumps({**self.as_dict(), "crops": crops.name}, indent=1, allow_nan=False) + "\n")
        for old in folder.glob("crops-*.npz"):
            if old != crops:
                old.unlink()

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types alone; what is infinite (the PSNR of equal images) or not defined is None."""
        return _plain(
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
                "rows": [_row_as_dict(self, row) for row in self.rows],
                "pictures": [asdict(picture) for picture in self.pictures],
            }
        )

    @classmethod
    def load(cls, folder: Path) -> "Evaluation":
        """Read what ``save`` wrote. Raises FileNotFoundError or ValueError with one line for another folder."""
        path = folder / RESULTS
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: expected the result of an evaluation, found no {RESULTS} in it")
        try:
            found = json.loads(path.read_text())
            if found.get("format") != FORMAT:
                raise ValueError(f"format {found.get('format', 1)}, which another release reads")
            with np.load(folder / Path(found["crops"]).name, allow_pickle=False) as arrays:
                return _from_dict(found, dict(arrays))
        except Exception as error:  # whatever a damaged or hostile file leads to
            raise ValueError(f"{path}: expected a result of format {FORMAT}, found {first_line(error)}") from error


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of what the arrays hold; that of their file would change with its date."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:12]


def _row_as_dict(evaluation: Evaluation, row: Row) -> dict[str, Any]:
    found = {name: value for name, value in vars(row).items() if name not in ("values", "valid")}
    for name in ("image_metrics", "minus_first_row", "minus_precision"):
        found[name] = {metric: vars(estimate) for metric, estimate in found[name].items()}
    return found | {"invalid": evaluation.invalid(row)}


def _from_dict(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> Evaluation:
    columns = {name.removeprefix("column/"): a for name, a in arrays.items() if name.startswith("column/")}
    crops = Crops(arrays["image"], arrays["crop"], arrays["name"].tolist(), columns)
    rows = []
    for i, entries in enumerate(found["rows"]):
        entries.pop("invalid")
        for name in ("image_metrics", "minus_first_row", "minus_precision"):
            entries[name] = {metric: _estimate(e) for metric, e in entries[name].items()}
        entries["spectrum"] = _numbers(entries["spectrum"])
        start = f"row/{i}/"
        own = {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}
        rows.append(Row(**entries, valid=arrays[f"valid/{i}"], values=own))
        shapes = {column.shape for column in (*own.values(), rows[-1].valid)} | {(len(crops),)}
        if len(shapes) > 1 or rows[-1].valid.dtype != bool or any(c.dtype != np.float64 for c in own.values()):
            raise ValueError(f"numbers of other crops for {entries['label']}")
    return Evaluation(
        found["protocol"],
        found["data"],
        {name: Metric.of(name, described) for name, described in found["metrics"].items()},
        found["extractors"],
        (found["size"][0], found["size"][1]),
        crops,
        found["spectrum"]["cycles_per_pixel"],
        _numbers(found["spectrum"]["originals"]),
        rows,
        [_picture(picture, len(crops)) for picture in found["pictures"]],
        found["software"],
        found["finished"],
    )


def _picture(entries: dict[str, Any], crops: int) -> Picture:
    """Return a picture whose files lie in the result's folder. Raises ValueError for others."""
    picture = Picture(**entries)
    if not 0 <= picture.crop < crops or "" not in picture.files:
        raise ValueError(f"a picture of crop {picture.crop!r} of {crops}")
    for name in picture.files.values():
        if not re.fullmatch(rf"{PICTURES}/[\w.-]+\.png", name):
            raise ValueError(f"a picture outside of the folder, {name!r}")
    return picture


def _estimate(entries: dict[str, Any]) -> Estimate:
    """Return an estimate of JSON; without a mean, but of some crops, it is that of equal images' PSNR."""
    missing = math.inf if entries["count"] else math.nan
    mean, low, high = (missing if entries[name] is None else entries[name] for name in ("mean", "low", "high"))
    return Estimate(mean, low, high, entries["count"], entries["infinite"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: list[float | None]) -> list[float]:
    """Return NaN for None."""
    return [math.nan if v is None else v for v in value]


def software() -> dict[str, str]:
    """Return the versions of what takes part in the numbers."""
    return {
        "ssdd": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "diffusers": diffusers.__version__,
    }


# ---- means and intervals ---------------------------------------------------------------------------------------------


def summarize(row: Row, crops: Crops, metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Return estimates by metric, of ``pooled_psnr`` too; NaN for a metric without a finite value.

    The mean is over the crops where a metric is defined and finite (the PSNR of equal images is not). Intervals are
    percentiles of the bootstrap over images: crops of one image are not independent, so they are drawn together.
    """
    names = list(row.values)
    values = np.stack([*row.values.values(), row.values["mse"]], axis=1)
    weights = np.stack([*(_weight(crops, metrics[n]) for n in names), crops.columns["pixels"]], axis=1)
    *estimates, pooled = _estimates(values[row.valid], weights[row.valid], crops.image[row.valid])
    mean, low, high = psnr(np.array([pooled.mean, pooled.high, pooled.low])).tolist()
    return {"pooled_psnr": Estimate(mean, low, high, pooled.count, 0)} | dict(zip(names, estimates, strict=True))


def differences(row: Row, other: Row, crops: Crops, metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Return mean differences to another row, crop by crop, over the crops where both are finite.

    The images' own differences cancel, so that these intervals are much shorter than those of two summaries.
    """
    names = [name for name in row.values if name in other.values]
    both = row.valid & other.valid
    with np.errstate(invalid="ignore"):
        values = np.stack([row.values[n][both] - other.values[n][both] for n in names], axis=1)
    weights = np.stack([_weight(crops, metrics[n])[both] for n in names], axis=1)
    return dict(zip(names, _estimates(values, weights, crops.image[both]), strict=True))


def _weight(crops: Crops, metric: Metric) -> np.ndarray:
    return np.ones(len(crops)) if metric.weight is None else crops.columns[metric.weight]


def _estimates(values: np.ndarray, weights: np.ndarray, images: np.ndarray) -> list[Estimate]:
    """Return the estimate of each column of values (n, M), weighted by (n, M); crops of an image are drawn together."""
    weights = weights * np.isfinite(values)
    infinite = np.isinf(values).sum(0)
    sums = np.where(weights > 0, values, 0.0) * weights
    drawn = bootstrap_means(sums, weights, images)
    with np.errstate(invalid="ignore"):
        means = sums.sum(0) / weights.sum(0)
    found = []
    for k, column in enumerate(drawn.T):
        column = column[~np.isnan(column)]
        low, high = np.percentile(column, (2.5, 97.5)) if len(column) else (math.nan, math.nan)
        count = int((weights[:, k] > 0).sum())
        found.append(Estimate(float(means[k]), float(low), float(high), count, int(infinite[k])))
    return found


def bootstrap_means(sums: np.ndarray, weights: np.ndarray, images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return means of resamples that draw whole images: (R, M), NaN where all that was drawn weighs nothing.

    sums, weights: (n, M) float64; images: (n,). A mean is the sum of ``sums`` over that of ``weights``.
    """
    _, groups = np.unique(images, return_inverse=True)
    members, width = 1 + int(groups.max(initial=-1)), sums.shape[1]
    grouped = np.zeros((members, 2 * width))
    np.add.at(grouped, groups, np.concatenate([sums, weights], axis=1))
    random, totals = np.random.default_rng(seed), []
    for first in range(0, RESAMPLES if members else 0, _BLOCK):
        draws = random.integers(members, size=(min(_BLOCK, RESAMPLES - first), members))
        counts = np.stack([np.bincount(draw, minlength=members) for draw in draws])
        totals.append(counts.astype(np.float64) @ grouped)
    drawn = np.concatenate(totals) if totals else np.zeros((RESAMPLES, 2 * width))
    with np.errstate(invalid="ignore"):
        return drawn[:, :width] / drawn[:, width:]


def ranking_metric(evaluation: Evaluation) -> Metric:
    """Return the metric that crops are sorted by: the first LPIPS that the first row has values of, else MSE."""
    values = evaluation.rows[0].values
    names = [name for name in evaluation.metrics if name.startswith("lpips_") and name in values]
    return evaluation.metrics[names[0] if names else "mse"]


def ranked(evaluation: Evaluation, row: Row, metric: Metric) -> list[int]:
    """Return the numbers of the row's valid crops from the worst to the best by a metric."""
    values = row.values[metric.name]
    order = np.argsort([-metric.badness(v) if math.isfinite(v) else math.inf for v in values], kind="stable")
    return [int(i) for i in order if row.valid[i] and not math.isnan(values[i])]


# ---- the table -------------------------------------------------------------------------------------------------------


def as_text(evaluation: Evaluation) -> str:
    """Return a table, and below it the protocol. Intervals are of 95 %, by the bootstrap over images."""
    metrics = [
        m for m in ordered(evaluation.metrics) if m.in_text and any(m.name in r.image_metrics for r in evaluation.rows)
    ]
    sets = [
        (extractor, m)
        for extractor in evaluation.extractors
        for m in SET_METRICS.values()
        if m.in_text and any(m.name in row.distances.get(extractor["name"], {}) for row in evaluation.rows)
    ]
    costs = [m for m in COSTS.values() if m.in_text]
    headings = ["", *(m.heading for m in metrics), *(set_heading(*pair) for pair in sets), "latent"]
    lines = [[*headings, *(m.heading for m in costs)]]
    for row in evaluation.rows:
        cells = [row.label, *(_cell(m, row.image_metrics.get(m.name)) for m in metrics)]
        cells += [m.format(row.distances.get(extractor["name"], {}).get(m.name)) for extractor, m in sets]
        cells.append("x".join(map(str, row.latent_shape)) if row.latent_shape else "-")
        lines.append([*cells, *(m.format(row.costs.get(m.name)) for m in costs)])
    return "\n".join([*aligned(lines), "", *_notes(evaluation)])


def set_heading(extractor: Mapping[str, Any], metric: Metric) -> str:
    """Return the heading of a distance on an extractor's features; a Fréchet distance's has the number of images."""
    if metric.name == "frechet":
        return str(extractor["frechet_name"])
    return metric.heading if metric.name == "cmmd" else f"{metric.heading} {extractor['title']}"


def _cell(metric: Metric, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{metric.format(estimate.mean)} ±{metric.format((estimate.high - estimate.low) / 2)}"


def _notes(evaluation: Evaluation) -> list[str]:
    protocol, data = evaluation.protocol, evaluation.data
    notes = [
        f"{protocol['protocol']}: {data['crops']} crops of {data['images']} images",
        f"{data['skipped_images']} skipped, {data['enlarged_images']} enlarged; ± half of the 95 % interval",
    ]
    for row in evaluation.rows:
        what = "an image of their name and size" if row.model["kind"] == "images" else "a finite reconstruction"
        if missing := evaluation.invalid(row):
            notes.append(f"{row.label}: {len(missing)} crops without {what} are left out: {_few(missing)}")
    for row in evaluation.rows:
        if row.minus_precision:
            notes.append(f"{row.label} minus {row.precision_of}: {_precision(row.minus_precision)}")
    notes += set_notes(evaluation.extractors, {row.label: row.distances for row in evaluation.rows})
    if data["reference"]:
        notes.append(f"distances of sets are to the statistics in {data['reference']}, not to the originals")
    height, width = evaluation.size
    notes.append(f"GFLOP: of one image of {height} x {width}, a multiplication and an addition are two")
    notes += [f"{name}: {value}" for name, value in protocol.items() if name != "protocol"]
    notes += [
        f"{m.heading}: {m.description}"
        for m in evaluation.metrics.values()
        if m.name in ("dreamsim", "weave") and m.in_text
    ]
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

    distances: of each row by its label, then by extractor.
    """
    notes = []
    for extractor in extractors:
        notes.append(f"extractor {extractor['name']}: {extractor['preprocessing']}; sha256 {extractor['sha256'][:16]}")
        counts = {label: d[extractor["name"]]["count"] for label, d in distances.items() if d.get(extractor["name"])}
        if not counts:
            continue
        most = max(counts.values())
        fewer = "".join(f"; {label}: {count:.0f}" for label, count in counts.items() if count < most)
        notes.append(
            f"{extractor['frechet_name']}: of {most:.0f} images{fewer}; compare it with numbers of as many alone"
        )
        found = next(d[extractor["name"]] for d in distances.values() if d.get(extractor["name"]))
        if "kid_subsets" in found:
            kid = f"KID: mean of {found['kid_subsets']:.0f} subsets of {found['kid_subset_size']:.0f}"
            k = f"; precision, recall, density, coverage: k = {found['neighbors']:.0f}" if "neighbors" in found else ""
            notes.append(f"{kid}{k}; all on {found['subset']:.0f} images of each set, drawn by seed")
    return notes


def _precision(found: Mapping[str, Estimate]) -> str:
    shifts = ", ".join(f"{c} {found[f'colour_shift_{c}'].mean:+.3f}" for c in COLOURS)
    change = found["psnr"]
    return f"PSNR {change.mean:+.3f} dB [{change.low:+.3f}, {change.high:+.3f}]; colour, 8-bit levels: {shifts}"


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def file_name(label: str) -> str:
    """Return a row's label as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.")[:80] or "row"
