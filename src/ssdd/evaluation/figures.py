"""The figures of an evaluation: plain matplotlib, no pyplot and no global state.

Shapes: n crops, K bands of frequency.
"""

import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..data.images import printable
from .metrics import ARROWS, SET_METRICS, Metric, ordered
from .results import Estimate, Evaluation, Row, ranked, set_heading

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by all common kinds of color vision; without yellow, too pale on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A")
_MARKERS = "osD^vPX<>"
_LINES = ("solid", "dashed", "dotted", "dashdot")
_WIDTH = 5.6
_CURVE_POINTS = 200
_LEAST_RATIO = 1e-2
"""Lower end of the spectrum's ratio: what is below is gone for any eye."""

_STYLE = {
    "axes.prop_cycle": f"cycler('color', {list(_COLORS)})",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a name with dollar signs is a name
}


# ---- what is shown of a row ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """A number that rows have: a column of a table, an axis of a figure.

    Attributes:
        heading: display name.
        metric: gives digits and direction.
        of: returns the estimate of a row, NaN where there is none.
    """

    heading: str
    metric: Metric
    of: Callable[[Row], Estimate]

    @property
    def title(self) -> str:
        """Return the heading with an arrow towards better values."""
        return f"{self.heading} {ARROWS[self.metric.better]}".rstrip()


def without_interval(value: float | None) -> Estimate:
    """Return an estimate that has only a mean; NaN for None."""
    return Estimate(math.nan if value is None else value, math.nan, math.nan, 0, 0)


def image_quantity(metric: Metric) -> Quantity:
    """Return the mean of an image metric."""
    return Quantity(metric.heading, metric, lambda row: row.image_metrics.get(metric.name, without_interval(None)))


def set_quantity(metric: Metric, extractor: Mapping[str, Any]) -> Quantity:
    """Return a distance of two sets of an extractor's features."""
    return Quantity(
        set_heading(extractor, metric),
        metric,
        lambda row: without_interval(row.distances.get(extractor["name"], {}).get(metric.name)),
    )


def known(quantities: Sequence[Quantity], rows: Sequence[Row]) -> list[Quantity]:
    """Return the quantities that any of the rows has."""
    return [q for q in quantities if any(not math.isnan(q.of(row).mean) for row in rows)]


def ranking_metric(evaluation: Evaluation) -> Metric:
    """Return the metric that crops are sorted by: LPIPS of the first network there is, else MSE."""
    names = [name for name in evaluation.metrics if name.startswith("lpips_")]
    return evaluation.metrics[names[0] if names else "mse"]


def headline(evaluation: Evaluation) -> Quantity:
    """Return what stands for quality: a Fréchet distance that all rows have, else LPIPS, else PSNR."""
    for extractor in evaluation.extractors:
        distance = set_quantity(SET_METRICS["frechet"], extractor)
        if all(math.isfinite(distance.of(row).mean) for row in evaluation.rows):
            return distance
    ranking = ranking_metric(evaluation)
    return image_quantity(evaluation.metrics["pooled_psnr"] if ranking.name == "mse" else ranking)


# ---- matplotlib ------------------------------------------------------------------------------------------------------


def check_matplotlib() -> None:
    """Raise ImportError, with what to install, if there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'ssdd[eval]'") from error


@contextmanager
def figure_style() -> Iterator[None]:
    """Make and save figures with matplotlib's defaults and this module's style, whatever the user has set."""
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from.*font")  # tables have the names in full
        yield


def new_figure(height: float, width: float = _WIDTH) -> "Figure":
    """Return a figure that lays itself out; sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", file_format: Literal["svg", "png"]) -> bytes:
    """Return the figure as a file's bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format=file_format, dpi=144)
    return stream.getvalue()


def row_style(group: int, nth: int) -> dict[str, Any]:
    """Return the look of the n-th row of a model: the model has the color, marker and line tell its rows apart."""
    nth += group // len(_COLORS)  # colors repeat
    return {
        "color": f"C{group}",
        "marker": _MARKERS[nth % len(_MARKERS)],
        "linestyle": _LINES[nth % len(_LINES)],
        "markeredgecolor": "white",
    }


def legend_label(name: str, longest: int = 60) -> str:
    """Return a name cut in the middle, and such that matplotlib does not leave it out for a leading underscore."""
    name = printable(name)
    if len(name) > longest:
        name = f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}"
    return f" {name}" if name.startswith("_") else name


def add_legend(figure: "Figure") -> None:
    """Add the legend below the axes; the figure grows by its height."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    columns = 1 if max(map(len, labels)) > 30 else 2
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(labels) / columns))
    figure.legend(loc="outside lower center", ncols=columns, handlelength=3)


def plain_numbers(axis: "Axis", at: Sequence[float] | None = None) -> None:
    """Label a logarithmic axis with numbers instead of powers: the given ones, or 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator(at) if at else LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


# ---- the figures: None where an evaluation has nothing for one to show -----------------------------------------------


@dataclass(frozen=True)
class EvaluationFigure:
    """A finished figure. name: its anchor on a page. caption: how to read it. svg: the file."""

    name: str
    title: str
    caption: str
    svg: bytes


def draw_figures(evaluation: Evaluation) -> list[EvaluationFigure]:
    """Return the figures that the evaluation has something for. Raises ImportError without matplotlib."""
    check_matplotlib()
    quality = headline(evaluation)
    towards = "bottom" if quality.metric.better == "lower" else "top"
    with figure_style():
        figures = [
            (
                "speed-quality",
                "Speed and quality",
                f"Images decoded a second on this machine against {quality.heading}: the best corner is {towards} "
                "right. Points of one model at several numbers of steps are joined.",
                speed_and_quality(evaluation),
            ),
            (
                "step-sweep",
                "Number of decoding steps",
                "Each step costs one pass of the decoder. Bands are 95 % intervals over images; all rows share the "
                "same crops, so two rows may differ for sure although their bands overlap.",
                step_sweep(evaluation),
            ),
            (
                "spectrum",
                "Radial power spectrum",
                "Energy of luma by fineness of detail, mean over all crops. Below, each row over the originals: under "
                "the line detail is lost, above it there is more than there was. The detail ratio of the tables is "
                "that of all energy right of half of Nyquist.",
                spectrum(evaluation),
            ),
            (
                "compression",
                "Quality and size of the latent",
                f"{quality.heading} against what is stored of an image. Fewer tokens make a generator on the latents "
                "cheaper; fewer bits leave the decoder less to go by.",
                compression(evaluation),
            ),
            (
                "sorted-crops",
                "All crops, sorted",
                "Each curve is one row's crops from worst to best, so that a mean does not hide how bad the worst "
                "ones are. At one place two curves may show two different crops.",
                sorted_crops(evaluation),
            ),
        ]
        return [
            EvaluationFigure(name, title, caption, save_figure(figure, "svg"))
            for name, title, caption, figure in figures
            if figure is not None
        ]


def speed_and_quality(evaluation: Evaluation) -> "Figure | None":
    """Plot the headline metric against decoding throughput: Figure 1 of the paper."""
    quality, styles = headline(evaluation), _styles(evaluation.rows)
    points = {row.label: (row.costs.get("decode_rate") or math.nan, quality.of(row).mean) for row in evaluation.rows}
    if not np.isfinite(list(points.values())).all(1).any():
        return None
    figure = new_figure(3.8)
    axes = figure.subplots()
    for rows in _by_model(evaluation.rows):
        line = sorted(points[row.label] for row in rows)
        axes.plot(*zip(*line, strict=True), color=styles[rows[0].label]["color"], alpha=0.5)
    for row in evaluation.rows:
        x, y = points[row.label]
        axes.plot([x], [y], **styles[row.label] | {"linestyle": ""}, markersize=9, label=legend_label(row.label))
    axes.set_xscale("log")
    axes.margins(0.1)
    plain_numbers(axes.xaxis)
    axes.set_xlabel("images decoded a second, faster →")
    axes.set_ylabel(quality.title)
    add_legend(figure)
    return figure


def step_sweep(evaluation: Evaluation) -> "Figure | None":
    """Plot every metric of the printed table against the number of decoding steps, for models with two or more."""
    models = [sorted((row for row in rows if row.steps), key=lambda row: row.steps or 0)
              for rows in _by_model(evaluation.rows)]  # fmt: skip
    models = [rows for rows in models if len({row.steps for row in rows}) > 1]
    quantities = [image_quantity(m) for m in ordered(evaluation.metrics) if m.in_text]
    quantities += [set_quantity(m, e) for e in evaluation.extractors for m in SET_METRICS.values() if m.in_text]
    quantities = known(quantities, [row for rows in models for row in rows])
    if not quantities:
        return None
    lines = math.ceil(len(quantities) / 3)
    figure = new_figure(2.1 * lines, 7.5)
    panels = figure.subplots(lines, 3, squeeze=False).flatten()
    styles = _styles(evaluation.rows)
    for axes, quantity in zip(panels, quantities, strict=False):
        for rows in models:
            steps = [row.steps for row in rows]
            mean, low, high = np.array([(e.mean, e.low, e.high) for e in map(quantity.of, rows)]).T
            look = styles[rows[0].label] | {"linestyle": "solid"}
            axes.plot(steps, mean, **look, label=legend_label(rows[0].name) if axes is panels[0] else None)
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        plain_numbers(axes.xaxis, sorted({row.steps for rows in models for row in rows if row.steps}))
        axes.set_title(quantity.title, fontsize=9)
    for axes in panels[: len(quantities)][-3:]:
        axes.set_xlabel("decoding steps")
    for axes in panels[len(quantities) :]:
        axes.set_axis_off()
    add_legend(figure)
    return figure


def spectrum(evaluation: Evaluation) -> "Figure | None":
    """Plot the radial power spectra of the originals and of every row, and below them each row over the originals."""
    frequencies, originals = np.array(evaluation.frequencies), np.array(evaluation.spectrum)  # (K,) each
    if not np.isfinite(originals).any():
        return None
    figure = new_figure(4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upper.plot(frequencies, originals, color="black", linewidth=3, alpha=0.7, label="original")
    styles = _styles(evaluation.rows)
    for row in evaluation.rows:
        power, look = np.array(row.spectrum), styles[row.label] | {"marker": ""}
        upper.plot(frequencies, power, **look, label=legend_label(row.label))
        with np.errstate(divide="ignore", invalid="ignore"):
            lower.plot(frequencies, power / originals, **look)
    for axes in (upper, lower):
        axes.set(xscale="log", yscale="log")
        for place in (0.25, 0.5):
            axes.axvline(place, color="gray", linewidth=1, linestyle="dotted")
    for place, text in ((0.25, "half of Nyquist "), (0.5, "Nyquist ")):
        upper.text(place, 0.98, text, transform=upper.get_xaxis_transform(), rotation=90, size=8, ha="right", va="top")
    lower.axhline(1, color="black", linewidth=1)
    low, high = lower.get_ylim()
    lower.set_ylim(max(_LEAST_RATIO, min(low, 0.5)), max(high, 2))
    for axis in (upper.yaxis, lower.yaxis):
        plain_numbers(axis)
    plain_numbers(lower.xaxis, [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5])
    lower.set_xlim(left=frequencies[np.isfinite(originals)][0] * 0.9)
    lower.set_xlabel("spatial frequency, cycles a pixel (0.5: Nyquist)")
    upper.set_ylabel("power of luma, levels²")
    lower.set_ylabel("over the original's")
    add_legend(figure)
    return figure


def compression(evaluation: Evaluation) -> "Figure | None":
    """Plot the headline metric against the size of the latent, in tokens and in bits a pixel, where sizes differ."""
    quality, styles, rows = headline(evaluation), _styles(evaluation.rows), evaluation.rows
    tokens = [float(number_of_tokens(row) or math.nan) for row in rows]
    bits = [row.costs.get("bits_per_pixel") or math.nan for row in rows]
    sizes = {"tokens of a latent, h × w": tokens, "bits a pixel of the latent or file": bits}
    sizes = {name: x for name, x in sizes.items() if len(set(np.array(x)[np.isfinite(x)])) > 1}
    if not sizes:
        return None
    figure = new_figure(3.2 * len(sizes))
    for axes, (name, x) in zip(figure.subplots(len(sizes), 1, squeeze=False).flatten(), sizes.items(), strict=True):
        for row, size in zip(rows, x, strict=True):
            look = styles[row.label] | {"linestyle": "", "markersize": 9}
            label = legend_label(row.label) if axes is figure.axes[0] else None
            axes.plot([size], [quality.of(row).mean], **look, label=label)
        axes.set_xscale("log", base=2)
        axes.margins(0.1)
        different = sorted(set(np.array(x)[np.isfinite(x)]))
        plain_numbers(axes.xaxis, different if len(different) < 6 else None)
        axes.set_xlabel(name)
        axes.set_ylabel(quality.title)
    add_legend(figure)
    return figure


def sorted_crops(evaluation: Evaluation) -> "Figure | None":
    """Plot each row's crops from its worst to its best."""
    metric = ranking_metric(evaluation)
    if metric.name == "mse":
        metric = evaluation.metrics["psnr"]
    figure = new_figure(3.4)
    axes = figure.subplots()
    styles = _styles(evaluation.rows)
    for row in evaluation.rows:
        if metric.name not in row.values:
            continue
        values = row.values[metric.name][ranked(evaluation, row, metric)]
        values = values[np.isfinite(values)]  # (n,)
        if len(values) > 1:
            share = np.linspace(0, 100, min(len(values), _CURVE_POINTS))
            curve = np.interp(share, np.linspace(0, 100, len(values)), values)
            axes.plot(share, curve, **styles[row.label] | {"marker": ""}, label=legend_label(row.label))
    if not axes.lines:
        return None
    axes.set_xlabel("crops from the worst to the best of each row, %")
    axes.set_ylabel(image_quantity(metric).title)
    add_legend(figure)
    return figure


def number_of_tokens(row: Row) -> int | None:
    """Return h * w of the row's latents (c, h, w); None where they have no such shape."""
    shape = row.latent_shape
    return shape[1] * shape[2] if shape and len(shape) == 3 else None


def _by_model(rows: Sequence[Row]) -> list[list[Row]]:
    names = dict.fromkeys(row.name for row in rows)
    return [[row for row in rows if row.name == name] for name in names]


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the look of each row by its label."""
    seen: Counter[int] = Counter()
    styles = {}
    for row in rows:
        styles[row.label] = row_style(row.group, seen[row.group])
        seen[row.group] += 1
    return styles
