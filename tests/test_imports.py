"""Who imports whom inside the package: arrows point down, and there are no circles between the rooms."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import ssdd

SOURCE = Path(ssdd.__file__).parent


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports, in functions too, but not for types alone."""
    package = path.relative_to(SOURCE).parts[:-1]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield ".".join([*base, *filter(None, [node.module])] or [alias.name])


def rooms() -> dict[str, set[str]]:
    """Return which rooms each room imports: packages, and modules beside them."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        others = {name.partition(".")[0] for name in imported(path)} - {room}
        found.setdefault(room, set()).update(others)
    return found


def test_there_are_no_circles() -> None:
    """A room cannot be read, or changed, without another that needs it."""
    circle: list[str] = []
    try:
        TopologicalSorter(rooms()).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle, "these import one another"


def test_the_method_needs_nothing_of_ours() -> None:
    """A reader of the networks meets files, formats or options."""
    graph = rooms()
    assert graph["nn"] == set()
    assert graph["flow"] == set()


def test_commands_are_imported_by_nobody() -> None:
    """The library needs its command line."""
    assert not [room for room, others in rooms().items() if "cli" in others and room not in ("__main__", "cli")]
