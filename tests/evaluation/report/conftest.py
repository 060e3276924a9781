"""A comparison that all tests of the report share: real autoencoders, names that mean harm, unusable data."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data.sources import open_source
from ssdd.evaluation.compare import Comparison, Entry, Row, compare
from ssdd.evaluation.contestants import Bicubic, Jpeg, load_contestant
from ssdd.evaluation.protocols import EvaluationSet, Protocol

HOSTILE = '<script>alert("1")<img src=x onerror=alert(1)>&amp;$\\frac{$_'
"""A name for files and models: markup, an entity, and mathematics that cannot be set."""


@dataclass(frozen=True)
class Compared:
    """A comparison and the set that it is of."""

    comparison: Comparison
    evaluation_set: EvaluationSet


class Flawed(Bicubic):
    """Bicubic, but NaN for the crops of the images with these numbers."""

    def __init__(self, name: str, bad: set[int]) -> None:
        super().__init__(8)
        self.name, self.bad = name, bad

    def decode(self, latent: Any, steps: int | None = None, seed: int = 0, numbers: Any = None) -> torch.Tensor:
        images = super().decode(latent, steps, seed, numbers)
        for i, number in enumerate(numbers):
            if number in self.bad:
                images[i, 0, 3, 3] = float("nan")
        return images


def changed(row: Row, **attributes: Any) -> Row:
    """A copy of a row with other measurements."""
    other = copy.copy(row)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def photographs(folder: Path, picture: Callable[..., np.ndarray], sizes: list[tuple[int, int]]) -> EvaluationSet:
    """Pictures of these sizes in the folder, by a protocol with 64 pixels and one crop."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sizes):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}.png")
    return EvaluationSet(open_source([folder]), Protocol("test-v1", "random", 64))


@pytest.fixture(scope="session")
def compared(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, picture: Callable[..., np.ndarray]
) -> Compared:
    """Six rows on eight crops of four images; one image is too small, one file is broken, one crop is not finite."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, size in enumerate([(70, 80), (64, 90), (100, 64), (75, 75), (20, 90)]):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}{HOSTILE if i == 1 else ''}.png")
    (folder / f"9{HOSTILE}.jpg").write_bytes(b"no image")
    evaluation_set = EvaluationSet(open_source([folder]), Protocol("test-v1", "random", 64, crops=2))
    model = load_contestant(str(tiny_model))
    entries = [Entry(model, 1), Entry(model, 2), Entry(Jpeg(1500)), Entry(Bicubic(8)), Entry(Bicubic(16))]
    entries.append(Entry(Flawed(HOSTILE, {3})))
    return Compared(compare(entries, evaluation_set, workers=0), evaluation_set)
