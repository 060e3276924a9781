"""The report of an evaluation: one HTML page, made from the saved result alone.

The page holds everything that it shows, loads nothing and runs nothing. ``report.html.j2`` is its template.

Shapes: H x W pixels of a crop, S side of the enlarged part.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.images import printable
from ..runtime.files import atomic_path
from .figures import check_matplotlib, draw_figures, headline
from .metrics import ARROWS, COSTS, SET_METRICS, Metric, ordered
from .results import REPORT, UNKNOWN, Estimate, Evaluation, Picture, ranking_metric, set_metrics, set_notes
from .sheet import difference

_WIDEST = 512
"""Pixels across a whole crop on the page; the enlarged parts keep every pixel."""

_FEW_IMAGES = 30
_LISTED = 20
_DETAIL = "high_frequency_ratio"
_TOKENS = Metric("tokens", "Latent tokens", 0, "none", "h × w of the latent, below it c × h × w")


def check_report() -> None:
    """Raise ImportError, with what to install, unless matplotlib and jinja2 are there."""
    check_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError("a report needs jinja2: pip install 'ssdd[eval]'") from error


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``folder/report.html`` from the result, in place of an earlier one; return its path.

    Args:
        evaluation: the result.
        folder: the result's folder, with the files of its pictures.

    Raises:
        ImportError: as ``check_report``.
        OSError: a picture cannot be read, or the page not be written.
    """
    check_report()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_one_line,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png": _png, "base64": _base64}
    environment.tests["finite"] = math.isfinite
    crop_metrics = dict.fromkeys([ranking_metric(evaluation).name, "psnr", _DETAIL])
    page = environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        rows=evaluation.rows,
        warnings=list(_warnings(evaluation)),
        arrows=ARROWS,
        crops=[_shown_crop(evaluation, picture, folder) for picture in evaluation.pictures],
        crop_metrics=[evaluation.metrics[name] for name in crop_metrics],
        difference=difference,
        widest=_WIDEST,
        figures=draw_figures(evaluation),
        headline=headline(evaluation),
        **_tables(evaluation),
    )
    with atomic_path(folder / REPORT, overwrite=True) as path:
        path.write_text(page, encoding="utf-8")
    return folder / REPORT


def _one_line(value: Any) -> Any:
    """Show a dash for None, and characters that do not print by their codes: names come from anybody's files."""
    if value is None:
        return "–"
    return printable(value) if type(value) is str and value else value  # markup is another type


def _warnings(evaluation: Evaluation) -> Iterator[str]:
    """Yield what a reader should know before quoting a number."""
    data = evaluation.data
    if data["skipped_images"]:
        yield f"{data['skipped_images']} skipped, no number is about them: {_listed(data['skipped'])}"
    if data["enlarged_images"]:
        yield f"{data['enlarged_images']} smaller than the crops and enlarged for them: those have no fine detail."
    for row in evaluation.rows:
        if names := evaluation.invalid(row):
            yield f"{row.label}: {len(names)} not finite, and left out of all its numbers: {_listed(names)}"
        if (psnr := row.image_metrics.get("psnr")) and psnr.infinite:
            yield f"{row.label}: {psnr.infinite} equal to their originals; the mean PSNR is of the others."
    if data["images"] < _FEW_IMAGES:
        yield f"Intervals from {data['images']} images are rough."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return "; ".join(names[:_LISTED]) + more


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows by metrics.

    Attributes:
        metrics: the columns.
        lines: estimates by label of the row, then by metric.
        notes: what is below a number, by label and metric.
        mark_best: whether the best of each column are shaded.
    """

    metrics: Sequence[Metric]
    lines: Mapping[str, Mapping[str, Estimate]]
    notes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    mark_best: bool = False

    def estimate(self, label: str, metric: Metric) -> Estimate:
        """Return the estimate of a cell, whose mean is NaN where there is none."""
        return self.lines[label].get(metric.name, UNKNOWN)

    def best(self, metric: Metric) -> set[str]:
        """Return the rows to mark: none where all are equal, or where no direction is better."""
        badness = {label: metric.badness(self.estimate(label, metric).mean) for label in self.lines}
        if not self.mark_best or metric.better == "none" or len(set(badness.values())) < 2:
            return set()
        least = min(badness.values())
        return {label for label, value in badness.items() if value == least}


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the template shows as tables, by its names for them."""
    rows, metrics = evaluation.rows, ordered(evaluation.metrics)
    lines = {row.label: row.estimates for row in rows}
    shifts = [metric for metric in metrics if metric.name.startswith("colour_shift_")]
    compared = [metric for metric in metrics if metric.in_text]
    detail = replace(evaluation.metrics[_DETAIL], heading="Detail energy over the original's")
    verdicts = {(label, _DETAIL): verdict(line.get(_DETAIL, UNKNOWN)) for label, line in lines.items()}
    precision = {f"{row.label} minus {row.precision_of}": row.minus_precision for row in rows if row.minus_precision}
    used_distances = {name for row in rows for distances in row.distances.values() for name in distances}
    return {
        "quality": Table(_known([m for m in metrics if m not in shifts], lines), lines, mark_best=True),
        "differences": _differences(compared, {row.label: row.minus_first_row for row in rows[1:]}),
        "precision": _differences([*compared, *shifts], precision),
        "distances": [_distances(evaluation, extractor) for extractor in evaluation.extractors],
        "costs": _costs(evaluation),
        "detail": Table([detail], lines, verdicts),
        "colour": Table(shifts, lines),
        "metrics": [*metrics, *(m for m in SET_METRICS.values() if m.name in used_distances), *COSTS.values()],
    }


def _known(metrics: Sequence[Metric], lines: Mapping[str, Mapping[str, Estimate]]) -> list[Metric]:
    """Return the metrics that any row has."""
    known = {name for line in lines.values() for name, estimate in line.items() if not math.isnan(estimate.mean)}
    return [metric for metric in metrics if metric.name in known]


def _differences(metrics: Sequence[Metric], lines: Mapping[str, Mapping[str, Estimate]]) -> Table:
    metrics = _known(metrics, lines)
    notes = {(label, m.name): _clear(m, line.get(m.name, UNKNOWN)) for label, line in lines.items() for m in metrics}
    return Table(metrics, lines, notes)


def _clear(metric: Metric, estimate: Estimate) -> str:
    """Return what the interval of a difference says; nothing for a ratio that is best at one."""
    if metric.better not in ("higher", "lower") or not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    if estimate.low <= 0 <= estimate.high:
        return "no clear difference"
    return "better" if (estimate.mean > 0) == (metric.better == "higher") else "worse"


def _distances(evaluation: Evaluation, extractor: Mapping[str, Any]) -> tuple[str, Table, list[str]]:
    """Return the title of an extractor, the table of its distances, and what they can be compared with."""
    lines = {row.label: row.estimates for row in evaluation.rows}
    metrics = _known(set_metrics(extractor), lines)
    notes = {}
    for label, line in lines.items():
        for metric in metrics:
            error = line.get(f"{metric.name}_standard_error", UNKNOWN).mean
            if not math.isnan(error) and round(error, metric.digits):  # of few images all subsets are the same
                notes[label, metric.name] = f"± {metric.format(error)}"
    _, *comparable = set_notes([extractor], {row.label: row.distances for row in evaluation.rows})
    return extractor["title"], Table(metrics, lines, notes, mark_best=True), comparable


def _costs(evaluation: Evaluation) -> Table:
    lines, shapes = {}, {}
    for row in evaluation.rows:
        costs = {"tokens": row.tokens, **row.costs}
        lines[row.label] = {name: Estimate(value) for name, value in costs.items() if value is not None}
        shapes[row.label, "tokens"] = " × ".join(map(str, row.latent_shape or []))
    return Table([_TOKENS, *COSTS.values()], lines, shapes)


def verdict(ratio: Estimate) -> str:
    """Return what the 95 % interval of ``high_frequency_ratio`` says of a row."""
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return "Not defined on these crops."
    if ratio.high < 1:
        lost = f"{100 * (1 - ratio.mean):.1f} %"
        return f"Smoothed: {lost} of the detail energy is lost (the whole interval is below 1)."
    if ratio.low > 1:
        more = f"{100 * (ratio.mean - 1):.1f} %"
        return (
            f"More detail energy than the original, by {more} (the whole interval is above 1): noise, ringing or "
            "invented texture."
        )
    crops = f"{ratio.count} crop{'' if ratio.count == 1 else 's'}"
    return f"Indistinguishable from the original at this sample of {crops} (the interval holds 1)."


# ---- crops -----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A square part of a crop, in its pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the part, (H, W, 3) -> (S, S, 3)."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def _shown_crop(evaluation: Evaluation, picture: Picture, folder: Path) -> dict[str, Any]:
    """Return what the template shows of a crop: its pictures, uint8 (H, W, 3) by label, and the part to enlarge."""
    images = {}
    for label, file in picture.files.items():
        with Image.open(folder / file) as image:
            images[label] = np.asarray(image.convert("RGB"))
    first = next((images[row.label] for row in evaluation.rows if row.label in images), images[""])
    part = farthest_part(images[""], first)
    return {"name": evaluation.crops.label(picture.crop), "picture": picture, "images": images, "part": part}


def farthest_part(original: np.ndarray, reconstruction: np.ndarray) -> Part:
    """Return the square with the largest squared error: a quarter of the shorter side, but 32 to 128 pixels.

    The first of equals, the middle where there is no error at all. Both are uint8 (H, W, 3).
    """
    height, width = original.shape[:2]
    side = min(max(min(height, width) // 4, 32), 128, height, width)
    error = np.square(original.astype(np.int64) - reconstruction).sum(2)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    if not within.any():
        return Part((height - side) // 2, (width - side) // 2, side)
    top, left = np.unravel_index(int(within.argmax()), within.shape)
    return Part(int(top), int(left), side)


def _png(pixels: np.ndarray) -> str:
    """Return a picture, uint8 (H, W, 3), as a data URI, scaled down to the page's width."""
    image = Image.fromarray(pixels)
    image.thumbnail((_WIDEST, image.height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{_base64(stream.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
