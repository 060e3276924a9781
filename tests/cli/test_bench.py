"""``ssdd bench``: what there is, and wrong usage."""

from collections.abc import Callable
from typing import Any

import pytest

from ssdd.cli.bench import WHAT

Ssdd = Callable[..., Any]


def test_help_lists_all(ssdd: Ssdd) -> None:
    result = ssdd("bench", "--help")
    assert result.status == 0
    assert all(f"\n  {name} " in result.out for name in WHAT)
    assert ssdd("bench").status == 2


@pytest.mark.parametrize("what", WHAT)
def test_help_of_each(ssdd: Ssdd, what: str) -> None:
    result = ssdd("bench", what, "--help")
    assert result.status == 0, result.err
    for option in ("--device", "--out", "--overwrite"):
        assert option in result.out


def test_something_else(ssdd: Ssdd) -> None:
    result = ssdd("bench", "decoding")
    assert result.status == 2
    assert result.err == (
        "ssdd bench: error: expected one of decode, encode, train, memory, generation; found 'decoding'\n"
    )
