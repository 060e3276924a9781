"""Python blocks of README.md and of the guides, run as they are printed."""

from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python" in path.read_text("utf-8")
]
"""Every page with a Python block."""

_SYBIL = Sybil([PythonCodeBlockParser(), SkipParser()])


def run_blocks(page: str) -> dict[str, Any]:
    """Run the Python blocks of a page in the current folder, and return the names that they leave.

    The blocks share their names, as for a reader who pastes one after the other, and ``__name__`` is ``__main__``. In a
    page ``<!-- skip: next -->`` leaves the next block out, and ``<!-- invisible-code-block: python`` runs code that
    readers do not see.
    """
    document = _SYBIL.parse(ROOT / page)
    document.namespace["__name__"] = "__main__"
    for block in document.examples():
        block.evaluate()
    return document.namespace
