"""Tables as plain text."""

import pytest

from ssdd.runtime.text import aligned


def test_columns_are_aligned() -> None:
    rows = [["", "PSNR", "a"], ["model", "7.5", ""], ["x", "21.46", "bcd"]]
    assert aligned(rows) == ["        PSNR    a", "model    7.5     ", "x      21.46  bcd"]
    assert aligned(rows, left=0) == ["        PSNR    a", "model    7.5     ", "    x  21.46  bcd"]
    assert aligned(rows, left=2) == ["       PSNR     a", "model  7.5       ", "x      21.46  bcd"]


def test_rows_of_different_lengths_are_refused() -> None:
    """A cell would be missing, or stand in another column."""
    with pytest.raises(ValueError, match="shorter"):
        aligned([["a", "b"], ["c"]])
