"""Comparison sheets: where the pictures lie, and what a difference looks like."""

from collections.abc import Callable

import numpy as np
import pytest

from ssdd.evaluation.sheet import Panel, difference, sheet

Picture = Callable[..., np.ndarray]
MARGIN, TOP, LINE = 12, 40, 28


def test_difference_is_scaled_and_does_not_wrap_around() -> None:
    a = np.array([[[0, 10, 200]]], np.uint8)
    b = np.array([[[0, 13, 100]]], np.uint8)
    for pair in ((a, b), (b, a)):
        assert difference(*pair).tolist() == [[[0, 12, 255]]], "the sign matters, or large differences wrap around"
    assert difference(a, b, gain=1).tolist() == [[[0, 3, 100]]], "the gain is not followed"
    assert difference(a, b).dtype == np.uint8, "another type"


def test_pictures_lie_where_they_should(picture: Picture) -> None:
    """Two rows of three, one picture not as high as the other of its row: none is moved, cut or resampled."""
    heights = [[20, 30, 10], [8, 8, 8]]
    rows = [[Panel(picture(h, 50, 3 * r + c), "caption") for c, h in enumerate(row)] for r, row in enumerate(heights)]
    page = sheet(rows, ["a", "b", "c"], panel_width=50)
    assert page.shape == (TOP + 30 + LINE + MARGIN + 8 + LINE + MARGIN, MARGIN + 3 * (50 + MARGIN), 3), "another size"
    assert page.dtype == np.uint8, "another type"
    top = TOP
    for r, row in enumerate(heights):
        for c, height in enumerate(row):
            left = MARGIN + c * (50 + MARGIN)
            found = page[top : top + height, left : left + 50]
            assert np.array_equal(found, rows[r][c].image), f"the picture in row {r}, column {c} is another"
            assert (page[top : top + height, left - 2 : left] == 255).all(), "a picture runs into the margin"
        top += max(row) + LINE + MARGIN


def test_headings_and_captions_are_drawn() -> None:
    white = np.full((20, 100, 3), 255, np.uint8)
    blank = sheet([[Panel(white, "")]], [""], panel_width=100)
    assert (blank == 255).all(), "an empty sheet is not white"
    headed = sheet([[Panel(white, "")]], ["original"], panel_width=100) < 128
    assert headed[:TOP].any(), "no heading"
    assert not headed[TOP:].any(), "the heading is not above the picture"
    captioned = sheet([[Panel(white, "PSNR 20 dB")]], [""], panel_width=100) < 128
    assert captioned[TOP + 20 :].any(), "no caption"
    assert not captioned[: TOP + 20].any(), "the caption is not below the picture"


@pytest.mark.parametrize(("size", "height"), [((100, 200), 30), ((15, 30), 30), ((1, 1000), 1), ((90, 30), 180)])
def test_pictures_are_scaled_to_the_width_of_the_column(size: tuple[int, int], height: int) -> None:
    """Wide, small, extremely wide and high pictures keep their aspect ratio, and one row of pixels at least."""
    image = np.full((*size, 3), (10, 200, 30), np.uint8)
    page = sheet([[Panel(image, "")]], [""], panel_width=60)
    assert page.shape == (TOP + height + LINE + MARGIN, MARGIN + 60 + MARGIN, 3), "another size of the page"
    assert (page[TOP : TOP + height, MARGIN : MARGIN + 60] == (10, 200, 30)).all(), "the picture does not fill it"


@pytest.mark.parametrize("caption", ["日本語 ñ ß", "line\nbreak", "caf\udce9.png", "x" * 500])
def test_any_caption_is_taken(caption: str) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    page = sheet([[Panel(image, caption)]], [""], panel_width=8)
    assert (page[TOP : TOP + 8, MARGIN : MARGIN + 8] == 0).all(), "the caption covers the picture"


def test_rows_have_to_fit_the_headings() -> None:
    panel = Panel(np.zeros((8, 8, 3), np.uint8), "")
    for rows in ([[panel]], [[panel, panel], [panel]], [[panel] * 3], []):
        with pytest.raises(ValueError, match="expected rows of 2 panels"):
            sheet(rows, ["a", "b"])
