"""Comparison sheets: rows of labelled pictures on one page."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 12
_INK = (32, 32, 32)
_PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet: uint8 (H, W, 3), and a line below it."""

    image: np.ndarray
    caption: str


def difference(a: np.ndarray, b: np.ndarray, gain: int = 4) -> np.ndarray:
    """Return the absolute difference times ``gain``, black where equal. uint8 (H, W, 3) each."""
    delta = np.abs(a.astype(np.int16) - b.astype(np.int16)) * gain
    return np.minimum(delta, 255).astype(np.uint8)


def sheet(rows: list[list[Panel]], headings: list[str], panel_width: int = 360) -> np.ndarray:
    """Return a page with a heading above each column.

    Args:
        rows: pictures with their captions; those of a row may differ in height.
        headings: one for each column.
        panel_width: width in pixels that each picture is scaled to.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: there are no rows, or one has more or fewer panels than there are headings.
    """
    if any(len(row) != len(headings) for row in rows) or not rows:
        raise ValueError(f"expected rows of {len(headings)} panels")
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    heights = [max(_height(panel.image, panel_width) for panel in row) for row in rows]
    top, line = _MARGIN + 28, 28
    width = _MARGIN + len(headings) * (panel_width + _MARGIN)
    page = Image.new("RGB", (width, top + sum(h + line + _MARGIN for h in heights)), _PAPER)
    draw = ImageDraw.Draw(page)
    for column, heading in enumerate(headings):
        draw.text((_MARGIN + column * (panel_width + _MARGIN), _MARGIN), heading, _INK, font)
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            left = _MARGIN + column * (panel_width + _MARGIN)
            size = (panel_width, _height(panel.image, panel_width))
            picture = Image.fromarray(panel.image)
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.LANCZOS)
            page.paste(picture, (left, top))
            draw.text((left, top + size[1] + 4), panel.caption, _INK, small)
        top += height + line + _MARGIN
    return np.asarray(page)


def _height(image: np.ndarray, width: int) -> int:
    return max(1, round(image.shape[0] * width / image.shape[1]))
