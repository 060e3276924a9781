"""Images a second against their size, one line a contender, in the style of the evaluation's reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.report.canvas import new_figure, plain_numbers, saved, style_of, styled
from ..files import atomic_path
from .throughput import Speed, Speeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Line:
    """What the style of a line depends on: the contender's number, and the batch's."""

    model: int
    nth: int


def write_plot(found: Speeds, path: Path, overwrite: bool) -> None:
    """A PNG. Raises ImportError, with what to install, without matplotlib; OutputExists, OSError."""
    with styled():
        image = saved(_figure(found), "png")
    with atomic_path(path, overwrite) as file:
        file.write_bytes(image)


def _figure(found: Speeds) -> "Figure":
    lines = _lines(found.rows)
    figure = new_figure(5.6, 4.0 + 0.2 * (1 + len(lines) // 2))
    axes = figure.subplots()
    several = len({row.batch for row in found.rows}) > 1
    for line, rows in lines.items():
        style = style_of(line)
        rows = sorted(rows, key=lambda row: row.size)
        axes.plot(
            [row.size for row in rows],
            [row.images_per_second for row in rows],
            color=style.colour,
            linestyle=style.dashes,
            marker=style.marker,
            markeredgecolor="white",
            markeredgewidth=0.8,
            label=rows[0].name + (f", batch {rows[0].batch}" if several else ""),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(0.12, 0.15)
    plain_numbers(axes, "x", sorted({row.size for row in found.rows}))
    plain_numbers(axes, "y")
    axes.set_xlabel("side of the image, pixels")
    axes.set_ylabel("images a second, faster ↑")
    figure.legend(loc="outside lower center", ncols=2, handlelength=3)
    return figure


def _lines(rows: list[Speed]) -> dict[_Line, list[Speed]]:
    """The rows of each contender and batch."""
    names = list(dict.fromkeys(row.name for row in rows))
    batches = list(dict.fromkeys(row.batch for row in rows))
    lines: dict[_Line, list[Speed]] = {}
    for row in rows:
        lines.setdefault(_Line(names.index(row.name), batches.index(row.batch)), []).append(row)
    return lines
