"""The figures of an evaluation: matplotlib without pyplot and its global state.

Shapes: n crops, K bands of frequency.
"""

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..data.images import printable
from .metrics import ARROWS, Metric
from .results import UNKNOWN, Evaluation, Row, ranked, ranking_metric, set_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by all common kinds of color vision; without yellow, too pale on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A")
_MARKERS = "osD^vPX<>"
_LINES = ("solid", "dashed", "dotted", "dashdot")
_STYLE = {
    "axes.prop_cycle": f"cycler('color', {list(_COLORS)})",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 9,
}

MANY_CROPS = 5000
"""Crops from which a Fréchet distance says more of the images than of their number."""


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


def new_figure(height: float, width: float = 5.6) -> "Figure":
    """Return a figure that lays itself out; sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", file_format: Literal["svg", "png"]) -> bytes:
    """Return the file of a figure, with the legend of its first axes below, for which it grows."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    ncols = 1 if max(map(len, labels)) > 30 else 2
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(labels) / ncols))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, handlelength=3)
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


def plain_label(text: str, longest: int = 60) -> str:
    """Return text, cut in the middle, that matplotlib neither hides for an underscore nor reads as mathematics."""
    text = printable(text)
    if len(text) > longest:
        text = f"{text[: longest // 2 - 1]}…{text[-longest // 2 :]}"
    text = f" {text}" if text.startswith("_") else text
    return text.replace("$", r"\$")


def binary_scale(axes: "Axes") -> None:
    """Make the x axis of a plot logarithmic, with plain numbers at powers of two, unless there may be none to show."""
    low, high = axes.dataLim.intervalx
    if not low < high < 2 * low:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")


# ---- the figures: None where an evaluation has nothing for one to show -----------------------------------------------


def headline(evaluation: Evaluation) -> Metric:
    """Return the metric that stands for quality: of many crops a Fréchet distance, else LPIPS, else PSNR."""
    for extractor in evaluation.extractors if len(evaluation.crops) >= MANY_CROPS else ():
        frechet = set_metrics(extractor)[0]
        if np.isfinite(_estimates(evaluation.rows, frechet)[0]).all():
            return frechet
    metric = ranking_metric(evaluation)
    return evaluation.metrics["pooled_psnr"] if metric.name == "mse" else metric


def draw_figures(evaluation: Evaluation) -> dict[str, bytes]:
    """Return SVG files by name: the figures that the evaluation has something for."""
    with figure_style():
        figures = {
            "speed-quality": speed_and_quality(evaluation),
            "step-sweep": step_sweep(evaluation),
            "spectrum": spectrum(evaluation),
            "compression": compression(evaluation),
            "sorted-crops": sorted_crops(evaluation),
        }
        return {name: save_figure(figure, "svg") for name, figure in figures.items() if figure is not None}


def speed_and_quality(evaluation: Evaluation) -> "Figure | None":
    """Plot the headline metric against decoding throughput: Figure 1 of the paper."""
    speeds = [row.costs.get("decode_rate") for row in evaluation.rows]
    return _quality_against(evaluation, {"images decoded a second, faster →": speeds}, least=1)


def compression(evaluation: Evaluation) -> "Figure | None":
    """Plot the headline metric against the size of the latent, where sizes differ."""
    x_axes: dict[str, list[float | None]] = {
        "tokens of a latent, h × w": [row.tokens for row in evaluation.rows],
        "bits a pixel of the latent or file": [row.costs.get("bits_per_pixel") for row in evaluation.rows],
    }
    return _quality_against(evaluation, x_axes, least=2)


def _quality_against(
    evaluation: Evaluation, x_axes: Mapping[str, Sequence[float | None]], least: int
) -> "Figure | None":
    """Plot the headline metric against each x that has so many different values; join the points of one model."""
    rows, styles, quality = evaluation.rows, _styles(evaluation.rows), headline(evaluation)
    means, _, _ = _estimates(rows, quality)
    panels = {name: np.array(values, float) for name, values in x_axes.items()}  # None is NaN
    panels = {name: x for name, x in panels.items() if len(np.unique(x[np.isfinite(x + means)])) >= least}
    if not panels:
        return None
    figure = new_figure(3.4 * len(panels))
    for axes, (name, x) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        points = {row.label: (x[i], means[i]) for i, row in enumerate(rows)}
        for model in _by_model(rows):
            line = np.array(sorted(points[row.label] for row in model))
            axes.plot(line[:, 0], line[:, 1], color=styles[model[0].label]["color"], alpha=0.5)
        for label, point in points.items():
            axes.plot(*point, **styles[label] | {"linestyle": ""}, markersize=9)
        binary_scale(axes)
        axes.margins(0.1)
        axes.set(xlabel=name, ylabel=_title(quality))
    return figure


def step_sweep(evaluation: Evaluation) -> "Figure | None":
    """Plot every metric of the printed table against the number of decoding steps, for models with two or more."""
    models = [[row for row in model if row.steps] for model in _by_model(evaluation.rows)]
    models = [sorted(model, key=lambda row: row.steps or 0) for model in models if len({r.steps for r in model}) > 1]
    swept = [row for model in models for row in model]
    metrics = [m for m in evaluation.columns if m.in_text and not np.isnan(_estimates(swept, m)[0]).all()]
    if not metrics:
        return None
    height, styles = math.ceil(len(metrics) / 3), _styles(evaluation.rows)
    figure = new_figure(2.1 * height, 7.5)
    for place, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(height, 3, place)
        for model in models:
            look = styles[model[0].label] | {"linestyle": "solid", "label": plain_label(model[0].name)}
            steps = [row.steps or 0 for row in model]
            mean, low, high = _estimates(model, metric)
            axes.plot(steps, mean, **look)
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        binary_scale(axes)
        axes.set_title(_title(metric), fontsize=9)
        axes.set_xlabel("decoding steps", fontsize=9)
    return figure


def spectrum(evaluation: Evaluation) -> "Figure | None":
    """Plot the radial power spectra of the originals and of every row, and below them each row over the originals."""
    frequencies, originals = np.array(evaluation.frequencies), np.array(evaluation.spectrum, float)  # (K,) each
    if not np.isfinite(originals).any():
        return None
    figure = new_figure(4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upper.plot(frequencies, originals, color="black", linewidth=3, alpha=0.7, label="original")
    for row, look in zip(evaluation.rows, _styles(evaluation.rows).values(), strict=True):
        power = np.array(row.spectrum, float)
        upper.plot(frequencies, power, **look | {"marker": ""})
        with np.errstate(divide="ignore", invalid="ignore"):
            lower.plot(frequencies, power / originals, **look | {"marker": ""})
    for axes in (upper, lower):
        axes.set(xscale="log", yscale="log")
        for frequency in (0.25, 0.5):
            axes.axvline(frequency, color="gray", linewidth=1, linestyle="dotted")
    lower.axhline(1, color="black", linewidth=1)
    low, high = lower.get_ylim()
    lower.set_ylim(max(0.01, min(low, 0.5)), max(high, 2))  # what is below a hundredth is gone for any eye
    lower.set(xlabel="cycles a pixel; dotted: half of Nyquist, Nyquist", ylabel="over the original's")
    upper.set_ylabel("power of luma, levels²")
    return figure


def sorted_crops(evaluation: Evaluation) -> "Figure | None":
    """Plot each row's crops from its worst to its best."""
    metric = ranking_metric(evaluation)
    if metric.name == "mse":
        metric = evaluation.metrics["psnr"]
    figure, styles = new_figure(3.4), _styles(evaluation.rows)
    axes = figure.subplots()
    for row in evaluation.rows:
        if metric.name in row.values:
            values = row.values[metric.name][ranked(row, metric)]
            values = values[np.isfinite(values)]  # (n,)
            if len(values) > 1:
                axes.plot(np.linspace(0, 100, len(values)), values, **styles[row.label] | {"marker": ""})
    axes.set(xlabel="crops from the worst to the best of each row, %", ylabel=_title(metric))
    return figure if axes.lines else None


def _title(metric: Metric) -> str:
    return plain_label(f"{metric.heading} {ARROWS[metric.better]}")


def _estimates(rows: Sequence[Row], metric: Metric) -> np.ndarray:
    """Return mean, low and high of each row as (3, rows), NaN where a row has none."""
    estimates = [row.estimates.get(metric.name, UNKNOWN) for row in rows]
    return np.array([(e.mean, e.low, e.high) for e in estimates]).reshape(-1, 3).T


def _by_model(rows: Sequence[Row]) -> list[list[Row]]:
    names = dict.fromkeys(row.name for row in rows)
    return [[row for row in rows if row.name == name] for name in names]


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the look of each row, and its name in the legend, by its label."""
    styles = {}
    for i, row in enumerate(rows):
        nth = sum(earlier.group == row.group for earlier in rows[:i])
        styles[row.label] = row_style(row.group, nth) | {"label": plain_label(row.label)}
    return styles
