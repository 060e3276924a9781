"""The crops of a report as markup: original and reconstructions side by side, a part enlarged, the difference.

Shapes: H x W pixels of a crop.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..protocols import CropKey
from ..sheet import difference
from .html import Html, image, join, number, tag, text
from .pictures import Choice, Shown, Window, enlarged
from .view import RowView, View, metric

GAIN = 4
"""Of difference maps."""

BUDGET = 6_000_000
"""Bytes of all pictures of a report, before base64 makes a third more of them."""


@dataclass(frozen=True)
class Encoding:
    """How whole crops and differences are stored: without loss, or as JPEG; no wider than ``width``."""

    lossless: bool
    width: int

    def bytes_of(self, pixels: np.ndarray) -> bytes:
        """Of uint8 (H, W, 3)."""
        picture = Image.fromarray(pixels)
        if picture.width > self.width:
            size = (self.width, max(1, round(picture.height * self.width / picture.width)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        if self.lossless:
            picture.save(stream, "PNG", optimize=True)
        else:
            picture.save(stream, "JPEG", quality=92, subsampling=0)
        return stream.getvalue()

    @property
    def kind(self) -> str:
        return "png" if self.lossless else "jpeg"

    def caption(self, widest: int) -> str:
        """What it does to crops of which the widest has so many pixels."""
        stored = "Whole crops are stored without loss" if self.lossless else "Whole crops are JPEG of high quality here"
        scaled = f", scaled to a width of at most {self.width} pixels" if widest > self.width else ""
        return f"{stored}{scaled}; the enlarged parts are the very pixels."


# The first that keeps all pictures within the budget is taken, the last one in any case.
_LADDER = (Encoding(True, 256), *(Encoding(False, width) for width in (768, 512, 384, 256, 160)))


@dataclass(frozen=True)
class _Column:
    """Encoded pictures of one reconstruction, or of the original without a difference; None where not finite."""

    whole: bytes | None
    part: bytes | None
    change: bytes | None


def gallery(view: View, choices: Sequence[Choice], shown: Sequence[Shown]) -> Html:
    """A block for each crop, in the order given; ``choices`` and ``shown`` are of the same crops."""
    if not shown:
        return tag("p", "No crop to show.")
    encoding, columns = _encoded(shown)
    values = [_values(v, view.ranking) for v in view.rows]
    large = " large" if max(s.original.shape[1] for s in shown) > 256 else ""
    note = (
        "The white frame is the square where the first row is farthest from the original, enlarged below pixel by "
        f"pixel. The last picture is the difference to the original, {GAIN} times as strong, black where equal. "
        + encoding.caption(max(s.original.shape[1] for s in shown))
    )
    blocks = [
        _block(view, choice, s, pictures, values, encoding.kind, large)
        for choice, s, pictures in zip(choices, shown, columns, strict=True)
    ]
    return join([tag("p", note, class_="note"), *blocks])


def _encoded(shown: Sequence[Shown]) -> tuple[Encoding, list[list[_Column]]]:
    widest = max(s.original.shape[1] for s in shown)
    parts = [[None if i is None else _png(enlarged(s.window.cut(i))) for i in _pictures(s)] for s in shown]
    room = BUDGET - sum(len(part) for line in parts for part in line if part)
    encodings = [e for e in _LADDER if not e.lossless or widest <= e.width]
    found: list[list[_Column]] = []
    for encoding in encodings:
        found = [_columns(s, line, encoding) for s, line in zip(shown, parts, strict=True)]
        used = sum(len(data) for line in found for c in line for data in (c.whole, c.change) if data)
        if used <= room or encoding is encodings[-1]:
            return encoding, found
    raise AssertionError("the last encoding is always taken")


def _pictures(shown: Shown) -> list[np.ndarray | None]:
    return [shown.original, *shown.reconstructions]


def _columns(shown: Shown, parts: Sequence[bytes | None], encoding: Encoding) -> list[_Column]:
    found = []
    for k, (pixels, part) in enumerate(zip(_pictures(shown), parts, strict=True)):
        if pixels is None:
            found.append(_Column(None, None, None))
            continue
        change = encoding.bytes_of(difference(shown.original, pixels, GAIN)) if k else None
        found.append(_Column(encoding.bytes_of(pixels), part, change))
    return found


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _values(view: RowView, ranking: str) -> dict[CropKey, list[tuple[str, float]]]:
    """Of each crop, what its picture's caption says."""
    names = list(dict.fromkeys([ranking, "psnr", "high_frequency_ratio"]))
    table = view.row.table
    columns = [table.column(name).tolist() if name in table.names else [math.nan] * len(table.keys) for name in names]
    return {key: list(zip(names, line, strict=True)) for key, *line in zip(table.keys, *columns, strict=True)}


def _block(
    view: View,
    choice: Choice,
    shown: Shown,
    columns: Sequence[_Column],
    values: Sequence[dict[CropKey, list[tuple[str, float]]]],
    kind: str,
    large: str,
) -> Html:
    height, width = shown.original.shape[:2]
    name = str(shown.key)
    size = tag("p", f"{width} × {height} pixels; enlarged: {shown.window.side} × {shown.window.side}")
    found = [_column("Original", columns[0], shown, kind, size, f"{name}, original")]
    for v, column, of_row in zip(view.rows, columns[1:], values, strict=True):
        numbers = of_row.get(shown.key, [])
        lines = [
            tag("p", Html(f"{text(metric(n).heading.removesuffix(' mean, dB'))} {number(x, metric(n).digits)}"))
            for n, x in numbers
        ]
        found.append(_column(v.label, column, shown, kind, join(lines), f"{name}, {v.label}"))
    reasons = tag("ul", *(tag("li", reason) for reason in choice.reasons))
    strip = tag("div", *found, class_=f"strip{large}", tabindex="0")
    return tag("article", tag("h3", name), reasons, strip)


def _column(label: str, column: _Column, shown: Shown, kind: str, notes: Html, alt: str) -> Html:
    parts = [tag("h4", label)]
    if column.whole is None or column.part is None:
        parts.append(tag("div", "not finite: no picture", class_="missing"))
    else:
        frame = _frame(shown.window, *shown.original.shape[:2])
        parts.append(tag("div", image(column.whole, kind, alt), frame, class_="whole"))
        parts.append(image(column.part, "png", f"{alt}, enlarged part"))
    if column.change is not None:
        parts.append(image(column.change, kind, f"{alt}, difference × {GAIN}"))
    return tag("div", *parts, notes)


def _frame(window: Window, height: int, width: int) -> Html:
    places = {"left": window.left / width, "top": window.top / height}
    places |= {"width": window.side / width, "height": window.side / height}
    return Html(f'<i style="{";".join(f"{name}:{100 * share:.3f}%" for name, share in places.items())}"></i>')
