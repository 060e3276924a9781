"""The API reference has every public name, and each of them a docstring."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ssdd
from ssdd import AutoencoderSSDD, recipes, tokenization

ROOT = Path(__file__).parents[1]
REFERENCE = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md")))
DOCUMENTED = re.findall(r"^::: (ssdd[\w.]*)$", REFERENCE, re.MULTILINE)
MODULES = {"demo", "stages"}
"""Modules in ``ssdd.recipes.__all__``: places of recipes, whose names the command line knows."""


def imported_by_readers() -> Iterator[tuple[str, str]]:
    """Yield module and name of whatever README, guides and examples import from the package."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.*")]
    for page in pages:
        for module, names in re.findall(r"\bfrom (ssdd[\w.]*) import ([\w, ]+)", page.read_text("utf-8")):
            yield from ((module, name.strip()) for name in names.split(","))


def resolve(path: str) -> Any:
    """Return the object of a dotted path, which may go through re-exports."""
    if path == "ssdd":
        return ssdd
    parent, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(parent), name)
    except AttributeError:
        return importlib.import_module(path)


def public_names() -> set[tuple[str, str]]:
    packages = [(module, name) for module in (ssdd, recipes, tokenization) for name in module.__all__]
    exported = {(module.__name__, name) for module, name in packages if name not in MODULES}
    return exported | set(imported_by_readers())


@pytest.mark.parametrize(("module", "name"), sorted(public_names()), ids=".".join)
def test_a_public_name_is_in_the_reference(module: str, name: str) -> None:
    entries = [resolve(path) for path in DOCUMENTED]
    if inspect.ismodule(value := resolve(f"{module}.{name}")):  # from ssdd.training import loop
        assert any(path.startswith(f"{module}.{name}.") for path in DOCUMENTED)
    elif name == "RECIPES":
        assert "members: [RECIPES]" in REFERENCE
    else:
        assert any(entry is value for entry in entries), f"{module}.{name} is on no page of docs/api"


@pytest.mark.parametrize("path", DOCUMENTED)
def test_an_entry_of_the_reference_has_a_docstring(path: str) -> None:
    value = resolve(path)
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        assert inspect.getdoc(value)


def test_every_public_part_of_the_autoencoder_has_a_docstring() -> None:
    """The page has what has one: members of the class and of its mixins in this package."""
    ours = [base for base in AutoencoderSSDD.__mro__ if base.__module__.startswith("ssdd.")]
    members = {name: value for base in ours for name, value in vars(base).items() if not name.startswith("_")}
    assert {"encode", "decode", "optimize", "normalize_latents", "tile_sample_min_size"} <= members.keys()
    parts = {name: value for name, value in members.items() if callable(value) or hasattr(value, "__get__")}
    undocumented = [name for name, value in parts.items() if not inspect.getdoc(getattr(value, "__func__", value))]
    assert undocumented == []
    assert "::: ssdd.AutoencoderSSDD\n    options:\n      inherited_members: true" in REFERENCE
