"""The report of an evaluation: one HTML page, made from the saved result alone.

The page holds everything that it shows, loads nothing and runs nothing. ``report.html.j2`` is its template.

Shapes: H x W pixels of a crop, S side of the enlarged part.
"""

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data.images import printable
from ..files import atomic_path
from .figures import (
    Quantity,
    check_matplotlib,
    draw_figures,
    image_quantity,
    known,
    number_of_tokens,
    ranking_metric,
    set_quantity,
    without_interval,
)
from .metrics import ARROWS, COLOURS, COSTS, SET_METRICS, Metric, ordered
from .results import REPORT, Estimate, Evaluation, Picture, Row, set_notes
from .sheet import difference

_GAIN = 4
"""Factor of the difference pictures."""

_WIDEST = 512
"""Pixels across a whole crop on the page; the enlarged parts keep every pixel."""

_LEAST_PART, _MOST_PART = 32, 128
_FEW_IMAGES = 30
_LISTED = 20


def check_report() -> None:
    """Raise ImportError, with what to install, unless matplotlib and jinja2 are there."""
    check_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError("a report needs jinja2: pip install 'ssdd[eval]'") from error


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``folder/report.html`` from the result, in place of an earlier one.

    Args:
        evaluation: the result; the files of its pictures are in ``folder``.
        folder: the result's folder.

    Returns:
        The path of the page.

    Raises:
        ImportError: as ``check_report``.
        OSError: a picture cannot be read, or the page not be written.
    """
    check_report()
    page = _render(evaluation, folder)
    with atomic_path(folder / REPORT, overwrite=True) as path:
        path.write_text(page, encoding="utf-8")
    return folder / REPORT


def _render(evaluation: Evaluation, folder: Path) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def one_line(value: Any) -> Any:
        """Show characters that do not print by their codes: names come from anybody's files."""
        if value is None:
            return "–"
        return printable(value) if isinstance(value, str) and value and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=one_line,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"base64": lambda data: base64.b64encode(data).decode()}
    rows = evaluation.rows
    return environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        rows=rows,
        warnings=list(_warnings(evaluation)),
        quality=_quality(evaluation),
        differences=_differences(evaluation),
        precision=_precision(evaluation),
        distances=list(_distances(evaluation)),
        costs=_costs(rows),
        detail=_detail(evaluation),
        colour=_table(rows, [image_quantity(m) for m in _colour_shifts(evaluation)]),
        figures=draw_figures(evaluation),
        crops=[_shown_crop(evaluation, picture, folder) for picture in evaluation.pictures],
        gain=_GAIN,
        widest=_WIDEST,
        metrics=[
            *ordered(evaluation.metrics),
            *(m for m in SET_METRICS.values() if any(m.name in d for row in rows for d in row.distances.values())),
            *COSTS.values(),
        ],
    )


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
class Cell:
    """A cell of a table. notes: lines in small below the text. best: whether it is the best of its column."""

    text: str
    notes: list[str] = field(default_factory=list)
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a line for each row. headings: each with its arrow, and with a description to hover over."""

    headings: list[tuple[str, str, str]]
    lines: list[tuple[str, list[Cell]]]


def _no_notes(quantity: Quantity, row: Row) -> list[str]:
    return []


def _table(
    rows: Sequence[Row],
    quantities: Sequence[Quantity],
    mark_best: bool = False,
    notes: Callable[[Quantity, Row], list[str]] = _no_notes,
) -> Table:
    columns = []
    for quantity in quantities:
        metric, estimates = quantity.metric, [quantity.of(row) for row in rows]
        best = best_of(metric, [e.mean for e in estimates]) if mark_best else set()
        columns.append(
            [
                Cell(metric.format(e.mean), _interval(metric, e) + notes(quantity, row), i in best)
                for i, (e, row) in enumerate(zip(estimates, rows, strict=True))
            ]
        )
    lines = [(row.label, [column[i] for column in columns]) for i, row in enumerate(rows)]
    return Table([(q.heading, ARROWS[q.metric.better], q.metric.description) for q in quantities], lines)


def _interval(metric: Metric, estimate: Estimate) -> list[str]:
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return []
    return [f"{metric.format(estimate.low)} … {metric.format(estimate.high)}"]


def best_of(metric: Metric, means: Sequence[float]) -> set[int]:
    """Return the places of the best mean: none where all are equal, or where no direction is better."""
    badness = [metric.badness(mean) for mean in means]
    if metric.better == "none" or not math.isfinite(min(badness)) or min(badness) == max(badness):
        return set()
    return {i for i, value in enumerate(badness) if value == min(badness)}


def _colour_shifts(evaluation: Evaluation) -> list[Metric]:
    names = [f"colour_shift_{colour}" for colour in COLOURS]
    return [evaluation.metrics[name] for name in names if name in evaluation.metrics]


def _quality(evaluation: Evaluation) -> Table:
    shifts = _colour_shifts(evaluation)
    quantities = [image_quantity(m) for m in ordered(evaluation.metrics) if m not in shifts]
    return _table(evaluation.rows, known(quantities, evaluation.rows), mark_best=True)


def _differences(evaluation: Evaluation) -> Table:
    """Return the differences to the first row, with what each interval says."""
    rows = evaluation.rows[1:]
    metrics = [m for m in ordered(evaluation.metrics) if m.in_text]
    quantities = [_difference(m, lambda row: row.minus_first_row) for m in metrics]
    return _table(rows, known(quantities, rows), notes=_clear)


def _precision(evaluation: Evaluation) -> Table:
    """Return the differences between precisions, those of colours too."""
    rows = [row for row in evaluation.rows if row.minus_precision]
    metrics = [*(m for m in ordered(evaluation.metrics) if m.in_text), *_colour_shifts(evaluation)]
    quantities = [_difference(m, lambda row: row.minus_precision) for m in metrics]
    table = _table(rows, known(quantities, rows), notes=_clear)
    labels = [f"{row.label} minus {row.precision_of}" for row in rows]
    return replace(table, lines=[(label, cells) for label, (_, cells) in zip(labels, table.lines, strict=True)])


def _difference(metric: Metric, differences: Callable[[Row], Mapping[str, Estimate]]) -> Quantity:
    return Quantity(metric.heading, metric, lambda row: differences(row).get(metric.name, without_interval(None)))


def _clear(quantity: Quantity, row: Row) -> list[str]:
    """Return what the interval of a difference says. Of a ratio that is best at one a difference says nothing."""
    better, estimate = quantity.metric.better, quantity.of(row)
    if better not in ("higher", "lower") or not _interval(quantity.metric, estimate):
        return []
    if estimate.low <= 0 <= estimate.high:
        return ["no clear difference"]
    return ["better" if (estimate.mean > 0) == (better == "higher") else "worse"]


def _distances(evaluation: Evaluation) -> Iterator[tuple[str, Table, list[str]]]:
    """Yield the title of each extractor, the table of its distances, and notes on what they can be compared with."""
    rows = evaluation.rows
    for extractor in evaluation.extractors:

        def standard_error(quantity: Quantity, row: Row, name: str = extractor["name"]) -> list[str]:
            error = row.distances.get(name, {}).get(f"{quantity.metric.name}_standard_error", 0)
            # of few images all subsets are the same
            return [f"± {quantity.metric.format(error)}"] if round(error, quantity.metric.digits) else []

        quantities = known([set_quantity(m, extractor) for m in SET_METRICS.values()], rows)
        table = _table(rows, quantities, mark_best=True, notes=standard_error)
        yield extractor["title"], table, set_notes([extractor], [row.distances for row in rows])[1:]


def _costs(rows: Sequence[Row]) -> Table:
    table = _table(rows, [_cost(metric) for metric in COSTS.values()])
    headings = [("Latent c × h × w", "", ""), ("Tokens", "", "h × w of the latent"), *table.headings]
    lines = []
    for row, (label, cells) in zip(rows, table.lines, strict=True):
        tokens = number_of_tokens(row)
        shape = " × ".join(map(str, row.latent_shape)) if row.latent_shape else "–"
        lines.append((label, [Cell(shape), Cell("–" if tokens is None else f"{tokens:,}"), *cells]))
    return Table(headings, lines)


def _cost(metric: Metric) -> Quantity:
    return Quantity(metric.heading, metric, lambda row: without_interval(row.costs.get(metric.name)))


def _detail(evaluation: Evaluation) -> Table:
    """Return the ratio of detail energy of each row, and the verdict that its interval allows."""
    rows, ratio = evaluation.rows, image_quantity(evaluation.metrics["high_frequency_ratio"])
    table = _table(rows, [replace(ratio, heading="Detail energy over the original's")])
    lines = [
        (row.label, [*cells, Cell(verdict(ratio.of(row)))]) for row, (_, cells) in zip(rows, table.lines, strict=True)
    ]
    return Table([*table.headings, ("Verdict", "", "")], lines)


def verdict(ratio: Estimate) -> str:
    """Return what the 95 % interval of ``high_frequency_ratio`` says of a row."""
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return "Not defined on these crops."
    sample = f"{ratio.count} crop{'' if ratio.count == 1 else 's'}"
    if ratio.high < 1:
        lost = f"{100 * (1 - ratio.mean):.1f} %"
        return f"Smoothed: {lost} of the detail energy is lost (the whole interval is below 1)."
    if ratio.low > 1:
        return (
            f"More detail energy than the original, by {100 * (ratio.mean - 1):.1f} % (the whole interval is above "
            "1): noise, ringing or invented texture."
        )
    return f"Indistinguishable from the original at this sample of {sample} (the interval holds 1)."


# ---- crops -----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A square part of a crop, in its pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the part, (H, W, 3) -> (S, S, 3)."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True)
class ShownPicture:
    """The original or a reconstruction of a crop.

    Attributes:
        label: of the row.
        notes: lines below the pictures.
        whole, part, difference: data URIs; the original has no difference.
        missing: why there are none.
    """

    label: str
    notes: list[str]
    whole: str = ""
    part: str = ""
    difference: str = ""
    missing: str = ""


@dataclass(frozen=True)
class ShownCrop:
    """A crop side by side. frame: percentages of left, top, width and height of the enlarged part."""

    name: str
    reasons: list[str]
    wide: bool
    frame: tuple[float, float, float, float]
    pictures: list[ShownPicture]


def _shown_crop(evaluation: Evaluation, picture: Picture, folder: Path) -> ShownCrop:
    images = {}
    for label, file in picture.files.items():
        with Image.open(folder / file) as image:
            images[label] = np.asarray(image.convert("RGB"))
    original = images[""]
    height, width = original.shape[:2]
    first = next((images[row.label] for row in evaluation.rows if row.label in images), original)
    part = farthest_part(original, first)
    size = f"{width} × {height} pixels; enlarged: {part.side} × {part.side}"
    shown = [ShownPicture("Original", [size], _png(original), _png(part.cut(original)))]
    for row in evaluation.rows:
        notes = _numbers_of_crop(evaluation, row, picture.crop)
        if row.label not in images:
            missing = "no picture" if row.valid[picture.crop] else "not finite: no picture"
            shown.append(ShownPicture(row.label, notes, missing=missing))
            continue
        made = images[row.label]
        change = _png(difference(original, made, _GAIN))
        shown.append(ShownPicture(row.label, notes, _png(made), _png(part.cut(made)), change))
    shares = (part.left / width, part.top / height, part.side / width, part.side / height)
    left, top, across, down = (round(100 * share, 3) for share in shares)
    return ShownCrop(
        evaluation.crops.label(picture.crop), picture.reasons, width > 256, (left, top, across, down), shown
    )


def _numbers_of_crop(evaluation: Evaluation, row: Row, crop: int) -> list[str]:
    names = dict.fromkeys([ranking_metric(evaluation).name, "psnr", "high_frequency_ratio"])
    metrics = [evaluation.metrics[name] for name in names if name in row.values]
    return [f"{m.heading.removesuffix(' mean')} {m.format(row.values[m.name][crop])}" for m in metrics]


def farthest_part(original: np.ndarray, reconstruction: np.ndarray) -> Part:
    """Return the square with the largest squared error: a quarter of the shorter side, but 32 to 128 pixels.

    The first of equals, the middle where there is no error at all. Both are uint8 (H, W, 3).
    """
    height, width = original.shape[:2]
    side = min(max(min(height, width) // 4, _LEAST_PART), _MOST_PART, height, width)
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
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
