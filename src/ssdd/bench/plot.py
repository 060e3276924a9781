"""Images a second against their size, one line a contender, in the style of the evaluation's figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.figures import binary_scale, figure_style, new_figure, plain_label, row_style, save_figure
from ..files import atomic_path
from .throughput import Speeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plot(speeds: Speeds, path: Path, overwrite: bool) -> None:
    """Write a PNG. Raises ImportError without matplotlib; OutputExists, OSError."""
    with figure_style():
        image = save_figure(_figure(speeds), "png")
    with atomic_path(path, overwrite) as file:
        file.write_bytes(image)


def _figure(speeds: Speeds) -> "Figure":
    figure = new_figure(4.0)
    axes = figure.subplots()
    names = list(dict.fromkeys(row.name for row in speeds.rows))
    batches = list(dict.fromkeys(row.batch for row in speeds.rows))
    for i, name in enumerate(names):
        for k, batch in enumerate(batches):
            rows = sorted((r for r in speeds.rows if (r.name, r.batch) == (name, batch)), key=lambda row: row.size)
            label = plain_label(name) + (f", batch {batch}" if len(batches) > 1 else "")
            rates = [row.images_per_second for row in rows]
            axes.plot([row.size for row in rows], rates, **row_style(i, k), label=label)
    binary_scale(axes)
    axes.set(yscale="log", xlabel="side of the image, pixels", ylabel="images a second, faster ↑")
    axes.margins(0.12, 0.15)
    return figure
