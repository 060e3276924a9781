"""Batches of an evaluation set's crops, and the census of what the set was made of.

Shapes: B crops of one size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from ..data.loader import Skipped
from .protocols import Census, EvaluationCrop, EvaluationSet, read_items

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Shows how far the work is: gets the items and their number, gives the items."""


def unchanged(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows nothing."""
    return items


def crop_batches(
    evaluation_set: EvaluationSet,
    census: Census,
    batch_size: int,
    workers: int,
    progress: Progress = unchanged,
    indices: Sequence[int] | None = None,
) -> Iterator[list[EvaluationCrop]]:
    """Crops in the set's order, those of one size that follow one another up to ``batch_size`` at a time.

    Args:
        evaluation_set: where they come from.
        census: counts every image, the skipped ones too.
        batch_size: B at most.
        workers: processes that read and crop; 0 does it in this one.
        progress: goes round the images.
        indices: of the images; all by default.
    """
    total = len(evaluation_set) if indices is None else len(indices)

    def crops() -> Iterator[EvaluationCrop]:
        for index, item in progress(read_items(evaluation_set, workers, indices), total):
            census.add(index, item)
            if not isinstance(item, Skipped):
                yield from item.crops

    for _, group in groupby(crops(), key=lambda crop: crop.pixels.shape):
        batch: list[EvaluationCrop] = []
        for crop in group:
            batch.append(crop)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def nothing_usable(census: Census) -> ValueError:
    """What to raise where a pass over the set met no usable image."""
    reason = census.skipped[0].reason if census.skipped else "the data are empty"
    return ValueError(f"expected usable images, found none: {len(census.skipped)} skipped; {reason}")
