"""What all figures share: matplotlib without its global state, one style, one colour a model, labels kept apart.

Shapes: N points.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

# Okabe and Ito's colours, told apart by all common kinds of colour vision; without yellow, too pale on white.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A")
_MARKERS = "osD^vPX<>"
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
INK, FAINT = "#222222", "#777777"

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ssdd",  # else ids in the file are random
    "svg.fonttype": "path",
    "text.usetex": False,
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.7,
    "lines.markersize": 6.0,
}


@dataclass(frozen=True)
class Style:
    """Of a row in every figure: the colour is its model's, marker and dashes tell that model's rows apart."""

    colour: str
    marker: str
    dashes: Any


class Numbered(Protocol):
    """What a style depends on: the number of a model, and that of its row among the model's."""

    @property
    def model(self) -> int: ...

    @property
    def nth(self) -> int: ...


def style_of(view: Numbered) -> Style:
    """Colours repeat after seven models, with other markers."""
    turn = view.model // len(_PALETTE)
    return Style(
        _PALETTE[view.model % len(_PALETTE)],
        _MARKERS[(view.nth + 3 * turn) % len(_MARKERS)],
        _DASHES[(view.nth + turn) % len(_DASHES)],
    )


def check_matplotlib() -> None:
    """Raises ImportError, with what to install, if there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("figures of a report need matplotlib: pip install 'ssdd[eval]'") from error


@contextmanager
def styled() -> Iterator[None]:
    """Figures are made and saved within it: the defaults of matplotlib and this module's, no setting of the user's."""
    check_matplotlib()
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from.*font")  # of names: the page has them in full
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> "Figure":
    """In inches; lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # measures text; a figure of its own, pyplot knows nothing of it
    return figure


def saved(figure: "Figure", file_format: Format) -> bytes:
    """The same bytes each time."""
    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if file_format == "svg" else {"Software": None}
    figure.savefig(stream, format=file_format, metadata=metadata, dpi=144)
    return stream.getvalue()


def short(label: str, most: int = 30) -> str:
    """For a figure: no longer than ``most``, cut in the middle; never taken for a label to be left out."""
    if len(label) > most:
        head = (most - 1) // 2
        label = f"{label[:head]}…{label[-(most - 1 - head) :]}"
    return f" {label}" if label.startswith("_") else label


def plain_numbers(axes: "Axes", which: Literal["x", "y"], at: Sequence[float] | None = None) -> None:
    """Ticks of a logarithmic axis as plain numbers: at 1, 2 and 5 times powers of ten, or at the given places."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    narrow = low > 0 and high / low < 300
    axis.set_major_locator(FixedLocator(at) if at else LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))


def label_points(axes: "Axes", x: Sequence[float], y: Sequence[float], labels: Sequence[str]) -> None:
    """A label beside each of N points, where it covers least: of other labels, points, and what is outside.

    Scales and limits must be final.
    """
    figure: Any = axes.get_figure()
    figure.draw_without_rendering()  # places the axes: positions in pixels are known from here
    renderer = figure.canvas.get_renderer()
    points = axes.transData.transform(np.column_stack([x, y]))
    reach = figure.dpi / 72 * 5
    taken = [np.array([*(p - reach), *(p + reach)]) for p in points]
    frame = np.array(axes.get_window_extent(renderer).extents)
    for i, label in enumerate(labels):
        text = axes.annotate(
            label, (x[i], y[i]), xytext=(0, 0), textcoords="offset points", fontsize=9, ha="center", va="center"
        )
        text.set_in_layout(False)
        box = text.get_window_extent(renderer)
        size = np.array([box.width, box.height]) + 2
        others = taken[:i] + taken[i + 1 :]
        places = [points[i] + shift for shift in _shifts(size, reach)]
        costs = [_covered(place, size, others, frame) + 0.01 * k for k, place in enumerate(places)]
        best = places[int(np.argmin(costs))]
        text.xyann = tuple((best - points[i]) * 72 / figure.dpi)
        taken.append(np.array([*(best - size / 2), *(best + size / 2)]))


def _shifts(size: np.ndarray, reach: float) -> Iterator[np.ndarray]:
    """Places of a label's centre around its point, the preferred ones first: beside, above, below, then farther."""
    for far in (1.4, 3.5, 6.5):
        gap = reach * far
        across, along = size[0] / 2 + gap, size[1] / 2 + gap
        for dx, dy in ((1, 0), (0, 1), (0, -1), (-1, 0), (0.7, 0.9), (0.7, -0.9), (-0.7, 0.9), (-0.7, -0.9)):
            yield np.array([dx * across, dy * along])


def _covered(centre: np.ndarray, size: np.ndarray, others: Sequence[np.ndarray], frame: np.ndarray) -> float:
    """Share of a label's area that lies on others' or outside of the frame."""
    box = np.array([*(centre - size / 2), *(centre + size / 2)])
    inside = _overlap(box, frame)
    return float((size.prod() - inside) * 3 + sum(_overlap(box, other) for other in others)) / float(size.prod())


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area common to two boxes (left, bottom, right, top)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(sides.clip(0).prod())
