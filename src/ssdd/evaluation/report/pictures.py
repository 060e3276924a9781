"""The crops that a report shows, reconstructed again by every row, and parts of them enlarged.

Shapes: B crops of one size, H x W pixels of a crop, S side of the enlarged part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.loader import Skipped
from ...data.pixels import images_to_tensor
from ..compare import Comparison
from ..image_metrics import Rounded, rounded
from ..protocols import CropKey, EvaluationSet
from .view import View, metric

MOST_CROPS = 12
LEAST_ZOOM, MOST_ZOOM = 32, 128
"""Sides of the enlarged part, in pixels of the crop."""


@dataclass
class Choice:
    """A crop to show, and why, a line for each reason."""

    key: CropKey
    reasons: list[str] = field(default_factory=list)


class Window(NamedTuple):
    """A square part of a crop, in its pixels."""

    top: int
    left: int
    side: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (S, S, 3)."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True)
class Shown:
    """original: uint8 (H, W, 3). reconstructions: the same by row, None where one was not finite. window: the part
    where the first row that has a reconstruction is farthest from the original."""

    key: CropKey
    original: np.ndarray
    reconstructions: list[np.ndarray | None]
    window: Window


def choose_crops(view: View, count: int = 4, most: int = MOST_CROPS) -> list[Choice]:
    """The ``count`` worst and best crops of the first row; a crop of each row that it failed on, and the worst of each
    other row, up to ``most`` in all. By ``view.ranking``. The worst of the first row come first, its best last.
    """
    name = view.ranking
    heading, first = metric(name).heading, view.rows[0]
    worst = first.row.table.worst(name, count)
    best = [pair for pair in first.row.table.best(name, count) if pair[0] not in {key for key, _ in worst}]
    last = {
        key: Choice(key, [f"{_nth(k, 'best')} of {first.label} by {heading}"])
        for k, (key, _) in reversed(list(enumerate(best)))
    }
    chosen: dict[CropKey, Choice] = {}

    def choose(key: CropKey, reason: str) -> None:
        if key in last:
            last[key].reasons.append(reason)
        elif key in chosen or len(chosen) + len(last) < most:
            chosen.setdefault(key, Choice(key)).reasons.append(reason)

    for k, (key, _) in enumerate(worst):
        choose(key, f"{_nth(k, 'worst')} of {first.label} by {heading}")
    for v in view.rows:
        for key in v.row.table.invalid[:1]:
            choose(key, f"reconstruction of {v.label} not finite")
    for v in view.rows[1:]:
        for key, _ in v.row.table.worst(name, 1):
            choose(key, f"worst of {v.label} by {heading}")
    return [*chosen.values(), *last.values()]


def _nth(k: int, what: str) -> str:
    return what if k == 0 else f"{ {1: '2nd', 2: '3rd'}.get(k, f'{k + 1}th') } {what}"


def redraw(
    comparison: Comparison, evaluation_set: EvaluationSet, keys: Sequence[CropKey], batch_size: int = 4
) -> list[Shown]:
    """The crops read again and reconstructed by every row, with the noise that they had in the comparison.

    Raises ValueError if the set no longer has one of them.
    """
    crops = {key: _read(evaluation_set, key) for key in keys}
    by_size: dict[tuple[int, ...], list[CropKey]] = {}
    for key, pixels in crops.items():
        by_size.setdefault(pixels.shape, []).append(key)
    found: dict[CropKey, Shown] = {}
    for same in by_size.values():
        for first in range(0, len(same), batch_size):
            batch = same[first : first + batch_size]
            for shown in _redrawn(comparison, batch, np.stack([crops[key] for key in batch])):
                found[shown.key] = shown
    return [found[key] for key in keys]


def _read(evaluation_set: EvaluationSet, key: CropKey) -> np.ndarray:
    item = evaluation_set[key.image]
    if isinstance(item, Skipped) or key.crop >= len(item.crops):
        found = item.reason if isinstance(item, Skipped) else f"{len(item.crops)} crops"
        raise ValueError(f"{key}: expected the crop that was compared, found {found}; are the data still in place?")
    return item.crops[key.crop].pixels


@torch.inference_mode()
def _redrawn(comparison: Comparison, keys: Sequence[CropKey], originals: np.ndarray) -> Iterator[Shown]:
    """Of crops uint8 (B, H, W, 3)."""
    images = images_to_tensor(torch.from_numpy(originals))
    protocol, numbers = comparison.protocol, [comparison.protocol.number(key) for key in keys]
    latents: dict[int, Any] = {}
    results: list[Rounded] = []
    for row in comparison.rows:
        encoder = row.entry.encoder or row.entry.contestant
        if id(encoder) not in latents:
            latents[id(encoder)] = encoder.encode(images)
        decoded = row.entry.contestant.decode(latents[id(encoder)], row.entry.steps, protocol.seed, numbers)
        results.append(rounded(decoded))
    for i, (key, original) in enumerate(zip(keys, originals, strict=True)):
        found = [result.images[i] if result.valid[i] else None for result in results]
        reference = next((image for image in found if image is not None), original)
        yield Shown(key, original, found, worst_window(original, reference))


def worst_window(original: np.ndarray, reconstruction: np.ndarray) -> Window:
    """The square, a quarter of the shorter side but 32 to 128 pixels, with the largest squared error; the first of
    equals, the middle where there is no error at all. Both uint8 (H, W, 3)."""
    height, width = original.shape[:2]
    side = min(max(min(height, width) // 4, LEAST_ZOOM), MOST_ZOOM, height, width)
    error = np.square(original.astype(np.int64) - reconstruction).sum(2)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    if not within.any():
        return Window((height - side) // 2, (width - side) // 2, side)
    top, left = np.unravel_index(int(within.argmax()), within.shape)
    return Window(int(top), int(left), side)


def enlarged(image: np.ndarray, least: int = 224) -> np.ndarray:
    """By the smallest whole factor that makes the shorter side ``least`` or more, each pixel a square of its colour."""
    factor = max(1, -(-least // min(image.shape[:2])))
    return image.repeat(factor, 0).repeat(factor, 1)
