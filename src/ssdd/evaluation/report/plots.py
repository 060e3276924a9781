"""The figures of a report, one function each: None where the comparison has nothing for it to show.

Shapes: n crops, K bands of frequency.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import FAINT, INK, label_points, new_figure, plain_numbers, short, style_of
from .view import Metric, RowView, View, metric, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 5.6
_CURVE_POINTS = 200
_LEAST_RATIO = 1e-2
"""Where the spectrum's ratio is cut off: what is below is gone for any eye."""


def speed_and_quality(view: View) -> "Figure | None":
    """Decoding throughput across, the headline metric up: Figure 1 of the paper."""
    name, extractor = view.headline
    shown = [v for v in view.rows if math.isfinite(value_of(v, name, extractor).mean)]
    if not shown:
        return None
    figure = new_figure(_WIDTH, 4.0)
    axes = figure.subplots()
    x, y = [v.decode_rate for v in shown], [value_of(v, name, extractor).mean for v in shown]
    for model, rows in _by_model(shown).items():
        line = sorted((v.decode_rate, value_of(v, name, extractor).mean) for v in rows)
        axes.plot(*zip(*line, strict=True), color=style_of(rows[0]).colour, alpha=0.5, zorder=2, gid=f"model{model}")
    for v, a, b in zip(shown, x, y, strict=True):
        _points(axes, v, [a], [b], line=False)
    axes.set_xscale("log")
    axes.margins(0.22, 0.18)
    axes.set_xlim(min(x) / 2, max(x) * 2 if max(x) > 4 * min(x) else max(x) * 3)
    plain_numbers(axes, "x")
    axes.set_xlabel("images decoded a second, faster →")
    axes.set_ylabel(_axis_label(metric(name, extractor), extractor))
    label_points(axes, x, y, [short(v.label) for v in shown])
    return figure


def step_sweep(view: View) -> "Figure | None":
    """Metrics against the number of decoding steps, of each model with two numbers or more."""
    lines = [rows for rows in _by_model(view.rows).values() if len({v.steps for v in rows if v.steps}) > 1]
    if not lines:
        return None
    names: list[tuple[str, str | None]] = [("pooled_psnr", None), ("ssim_gaussian_11", None)]
    names += [(n, None) for n in view.image_metrics if n.startswith("lpips_")][:1]
    names += [("high_frequency_ratio", None)]
    names += [(name, extractor) for extractor in view.extractors[:1] for name in ("frechet", "coverage")]
    names = [n for n in names if any(math.isfinite(value_of(v, *n).mean) for rows in lines for v in rows)]
    if not names:
        return None
    figure = new_figure(_WIDTH, 0.5 + 2.1 * math.ceil(len(names) / 2))
    panels = figure.subplots(math.ceil(len(names) / 2), 2, squeeze=False).flatten()
    for axes, (name, extractor) in zip(panels, names, strict=False):
        for rows in lines:
            _swept(axes, sorted((v for v in rows if v.steps), key=lambda v: v.steps or 0), name, extractor)
        axes.set_xscale("log", base=2)
        axes.margins(x=0.12)
        plain_numbers(axes, "x", sorted({v.steps for rows in lines for v in rows if v.steps}))
        axes.set_title(_panel_title(metric(name, extractor), extractor), fontsize=9.5)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel("decoding steps", fontsize=10)
    if len(lines) > 1:
        _legend(figure, [rows[0] for rows in lines], [rows[0].name for rows in lines])
    return figure


def spectrum(view: View) -> "Figure | None":
    """Radial power spectra of the originals and of every row, and below them each row over the originals."""
    original = view.comparison.original_spectrum
    if not np.isfinite(original.power).any():
        return None
    figure = new_figure(_WIDTH, 5.0 + _legend_height(view.rows))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _curve(upper, original.frequency, original.power, color=INK, linewidth=3.2, alpha=0.75)
    least = 1.0
    for v in view.rows:
        found = v.row.spectrum
        style = style_of(v)
        look: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes}
        _curve(upper, found.frequency, found.power, **look)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = found.power / original.power
        _curve(lower, found.frequency, np.maximum(ratio, _LEAST_RATIO / 2), **look)
        least = min(least, float(np.nanmin(ratio, initial=1.0)))
    for axes in (upper, lower):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for place in (0.25, 0.5):
            axes.axvline(place, color=FAINT, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    for place, text in ((0.25, "half of Nyquist "), (0.5, "Nyquist ")):
        upper.text(
            place,
            0.99,
            text,
            transform=upper.get_xaxis_transform(),
            color=FAINT,
            rotation=90,
            size=8,
            ha="right",
            va="top",
        )
    lower.axhline(1.0, color=INK, linewidth=1.2, zorder=1)
    low, high = lower.get_ylim()
    lower.set_ylim(max(_LEAST_RATIO, min(low, 0.5)), max(high, 2.0))
    plain_numbers(upper, "y")
    plain_numbers(lower, "y")
    finite = original.frequency[np.isfinite(original.power)]
    lower.set_xlim(finite[0] * 0.9, finite[-1] * 1.1)
    plain_numbers(lower, "x", [p for p in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5) if p >= finite[0] * 0.9])
    lower.set_xlabel("spatial frequency, cycles a pixel (0.5: Nyquist)")
    upper.set_ylabel("power of luma, levels²")
    lower.set_ylabel("over the original's")
    _legend(figure, view.rows, [v.label for v in view.rows], original=True, lines=True)
    return figure


def compression(view: View) -> "Figure | None":
    """The headline metric against the size of the latent: in tokens where there are some, and in bits a pixel."""
    if view.crop_pixels is None:
        return None
    name, extractor = view.headline
    shown = [v for v in view.rows if math.isfinite(value_of(v, name, extractor).mean)]
    shaped = [v for v in shown if v.row.latent_shape is not None]
    if len({v.row.latent_shape for v in shaped}) < 2:
        return None
    tokens = [float(v.tokens or 0) for v in shaped]
    bits = [8 * v.latent_bytes / view.crop_pixels for v in shown]
    sizes = [(shaped, tokens, "tokens of a latent, h × w")] if len(set(tokens)) > 1 else []
    sizes += [(shown, bits, "bits a pixel of the latent or file")] if len(set(bits)) > 1 else []
    if not sizes:  # as many numbers, laid out in another way
        return None
    figure = new_figure(_WIDTH, 3.6 * len(sizes))
    for axes, (rows, x, text) in zip(figure.subplots(len(sizes), 1, squeeze=False).flatten(), sizes, strict=True):
        y = [value_of(v, name, extractor).mean for v in rows]
        for v, a, b in zip(rows, x, y, strict=True):
            _points(axes, v, [a], [b], line=False)
        axes.set_xscale("log", base=2)
        axes.margins(0.2, 0.16)
        axes.set_xlim(min(x) / 1.6, max(x) * 1.9)
        plain_numbers(axes, "x", sorted(set(x)) if len(set(x)) < 6 else None)
        axes.set_xlabel(text)
        axes.set_ylabel(_axis_label(metric(name, extractor), extractor))
    for axes, (rows, x, _) in zip(figure.axes, sizes, strict=True):
        label_points(axes, x, [value_of(v, name, extractor).mean for v in rows], [short(v.label) for v in rows])
    return figure


def sorted_crops(view: View) -> "Figure | None":
    """Each row's crops from its worst to its best."""
    name = "psnr" if view.ranking == "mse" else view.ranking
    columns = [(v, _worst_first(v, metric(name))) for v in view.rows]
    columns = [(v, values) for v, values in columns if len(values) > 1]
    if not columns:
        return None
    figure = new_figure(_WIDTH, 3.4 + _legend_height(view.rows))
    axes = figure.subplots()
    for v, values in columns:
        share = np.linspace(0, 100, len(values))
        at = np.linspace(0, 100, min(len(values), _CURVE_POINTS))
        style = style_of(v)
        axes.plot(at, np.interp(at, share, values), color=style.colour, linestyle=style.dashes)
    axes.set_xlabel("crops from the worst to the best of each row, %")
    axes.set_ylabel(_axis_label(metric(name), None))
    _legend(figure, [v for v, _ in columns], [v.label for v, _ in columns], lines=True)
    return figure


def _worst_first(view: RowView, of: Metric) -> np.ndarray:
    """(n,): the finite values of a metric that has a direction."""
    values = view.row.table.column(of.name) if of.name in view.row.table.names else np.empty(0)
    values = np.sort(values[np.isfinite(values)])
    return values if of.better == "higher" else values[::-1]


def _by_model(rows: Sequence[RowView]) -> dict[int, list[RowView]]:
    found: dict[int, list[RowView]] = {}
    for v in rows:
        found.setdefault(v.model, []).append(v)
    return found


def _swept(axes: "Axes", rows: Sequence[RowView], name: str, extractor: str | None) -> None:
    """One model's line with the intervals of its points."""
    x = np.array([v.steps for v in rows], float)
    found = [value_of(v, name, extractor) for v in rows]
    mean, low, high = (np.array([getattr(e, part) for e in found]) for part in ("mean", "low", "high"))
    _points(axes, rows[0], x, mean, line=True)
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=style_of(rows[0]).colour, alpha=0.15, linewidth=0)


def _points(
    axes: "Axes", view: RowView, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, line: bool
) -> None:
    style = style_of(view)
    look: dict[str, Any] = {
        "color": style.colour,
        "marker": style.marker,
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
    }
    axes.plot(x, y, linestyle="solid" if line else "none", markersize=7 if line else 9, zorder=3, **look)


def _curve(axes: "Axes", x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    finite = np.isfinite(y) & (y > 0)
    axes.plot(x[finite], y[finite], **look)


def _axis_label(of: Metric, extractor: str | None) -> str:
    direction = {"higher": "higher is better ↑", "lower": "lower is better ↓", "one": "1 is best", "zero": "0 is best"}
    name = of.heading if extractor is None else f"{of.heading} {short(extractor, 24)}"
    return f"{name}, {direction[of.better]}"


def _panel_title(of: Metric, extractor: str | None) -> str:
    return f"{of.heading} {of.arrow}" + ("" if extractor is None else f"\n{short(extractor, 26)}")


def _legend_height(rows: Sequence[RowView]) -> float:
    """About that of the legend, in inches, so that many rows leave the axes their height."""
    return 0.2 * (1 + len(rows) // 2)


def _legend(
    figure: "Figure", rows: Sequence[RowView], labels: Sequence[str], original: bool = False, lines: bool = False
) -> None:
    """Below the axes, as many columns as fit."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=INK, linewidth=3.2, alpha=0.75)] if original else []
    for v in rows:
        style = style_of(v)
        marker: dict[str, Any] = {} if lines else {"marker": style.marker}
        handles.append(Line2D([], [], color=style.colour, linestyle=style.dashes if lines else "solid", **marker))
    texts = (["original"] if original else []) + [short(label) for label in labels]
    columns = 2 if max(map(len, texts)) > 16 else 3
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, handlelength=3)
