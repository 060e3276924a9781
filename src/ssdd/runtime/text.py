"""Tables as plain text, and how much libraries say."""

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

_LONGEST = 1500


def bars_are_off() -> bool:
    """Return whether the command has switched progress bars off, by the variable that tqdm has for its default."""
    return os.environ.get("TQDM_DISABLE") == "1"


@contextmanager
def quiet(library: Literal["diffusers", "transformers"]) -> Iterator[None]:
    """Switch off a library's progress bars and what it says of weights and config, such as those that are missing."""
    logging: Any = importlib.import_module(f"{library}.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def aligned(rows: Sequence[Sequence[str]], left: int = 1, between: str = "  ") -> list[str]:
    """Return a line for each row of a table: the first ``left`` columns flush left, the others flush right.

    Raises ValueError for rows of different lengths.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [between.join(_cells(row, widths, left)) for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in pairs]


def as_json(value: Any) -> Any:
    """Return a value as JSON types: dataclasses as objects, None for numbers that are not finite."""
    return json.loads(json.dumps(value, default=vars), parse_constant=lambda _: None)


def one_safe_line(message: str) -> str:
    """Return a message with words of somebody else's file: on one line, without what a terminal would obey,
    not endless.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
