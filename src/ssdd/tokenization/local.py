"""Shards made by one process, which reads ahead beyond their ends."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from .crop_reader import read_images
from .plan import OpenJob, ShardTask
from .shard import Report, write_shard


def make_shards(
    job: OpenJob, tasks: Iterable[ShardTask], out: Path, workers: int, report: Report
) -> Iterator[ShardTask]:
    """The shards one after the other, from one stream of images: the next shard's are read while this one ends.

    Args:
        tasks: asked for as far ahead as images are read.
        workers: processes that read and crop ahead of the encoder; 0 does it in this one.

    Yields each shard when it is finished. Raises as ``write_shard``.
    """
    begun: deque[ShardTask] = deque()

    def images() -> Iterator[int]:
        for task in tasks:
            begun.append(task)
            yield from range(task.first, task.last)

    items = read_images(job, images(), workers)
    for first in items:
        task = begun.popleft()
        write_shard(job, task, out, chain([first], items), report)
        yield task
