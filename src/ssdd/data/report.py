"""What was read of a data set, in words, as JSON, and as a contact sheet."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .check import THUMBNAIL, Summary
from .sources import ConcatSource

SHEET_IMAGES = 64
_COLUMNS, _MARGIN, _CAPTION = 8, 8, 18
_LISTED = 1000  # duplicates that the report names
_EDGES = (0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
_BAR = 40


def describe(summary: Summary, duplicates: int) -> list[str]:
    """Lines for the terminal."""
    broken = len(summary.broken)
    lines = [
        f"{summary.readable + broken:,} images, {summary.total_bytes / 2**20:,.1f} MiB: "
        f"{summary.readable:,} readable, {broken:,} broken, {duplicates:,} duplicates of others"
    ]
    if not summary.readable:
        return lines
    sides = summary.shorter_sides()
    lines += [
        "",
        f"shorter side    {_spread(sides, '.0f')} px",
        f"width / height  {_spread(summary.aspect_ratios(), '.2f')}",
        "formats         " + ", ".join(f"{kind} {count:,}" for kind, count in summary.kinds.most_common()),
        "",
        "shorter side in pixels",
    ]
    for first, last, count in histogram(sides):
        bar = "#" * -(-count * _BAR // summary.readable)
        lines.append(f"{f'{first}-{last}' if last else f'{first}-':>11}  {count:>9,}  {bar}".rstrip())
    lines.append("")
    for limit, count in _smaller(sides).items():
        lines.append(f"smaller than {limit} px: {count:,} ({count / summary.readable:.1%})")
    return lines


def report(
    paths: Sequence[str], source: ConcatSource, summary: Summary, duplicates: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return the same for programs, and the names of what is broken or there twice."""
    sides = summary.shorter_sides()
    return {
        "paths": list(paths),
        "images": len(source),
        "readable": summary.readable,
        "bytes": summary.total_bytes,
        "shorter_side": _quantiles(sides),
        "aspect_ratio": _quantiles(summary.aspect_ratios()),
        "shorter_side_histogram": [{"from": a, "to": b, "images": n} for a, b, n in histogram(sides)],
        "smaller_than": {str(limit): count for limit, count in _smaller(sides).items()},
        "formats": dict(summary.kinds.most_common()),
        "broken": summary.broken,
        "left_out": dict(source.left_out.most_common()),
        "duplicates": len(duplicates),
        "duplicate_of": {source.name(i): source.name(first) for i, first in duplicates[:_LISTED]},
    }


def histogram(sides: np.ndarray) -> list[tuple[int, int | None, int]]:
    """First and last side (None: no limit) of each bin and the images in it, from the first to the last that has any.

    Empty for no image.
    """
    which = np.searchsorted(_EDGES, sides, side="right") - 1
    count = np.bincount(which, minlength=len(_EDGES))
    filled = np.flatnonzero(count)
    bins = range(int(filled[0]), int(filled[-1]) + 1) if len(filled) else range(0)
    return [(_EDGES[i], _EDGES[i + 1] - 1 if i + 1 < len(_EDGES) else None, int(count[i])) for i in bins]


def _smaller(sides: np.ndarray) -> dict[int, int]:
    return {limit: int((sides < limit).sum()) for limit in (128, 256, 512)}


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}


def _spread(values: np.ndarray, spec: str) -> str:
    return ", ".join(f"{name} {value:{spec}}" for name, value in (_quantiles(values) or {}).items())


def contact_sheet(thumbnails: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """Small pictures, uint8 (h, w, 3) with h, w <= THUMBNAIL, in rows, with the ends of their names below."""
    columns = min(_COLUMNS, len(thumbnails))
    across, down = THUMBNAIL + _MARGIN, THUMBNAIL + _CAPTION + _MARGIN
    rows = -(-len(thumbnails) // columns)
    page = Image.new("RGB", (_MARGIN + columns * across, _MARGIN + rows * down), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for i, (image, name) in enumerate(thumbnails):
        left, top = _MARGIN + i % columns * across, _MARGIN + i // columns * down
        height, width = image.shape[:2]
        page.paste(Image.fromarray(image), (left + (THUMBNAIL - width) // 2, top + (THUMBNAIL - height) // 2))
        caption = name.rsplit("/", 1)[-1].encode("ascii", "replace").decode()  # the font has few other letters
        draw.text((left, top + THUMBNAIL + 2), caption[-26:], "black", font)
    return np.asarray(page)
