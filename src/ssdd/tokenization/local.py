"""The engine of one machine: one process encodes, others read ahead of it. Other engines call ``write_shard`` too."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files import only_one
from .format import MANIFEST, PLAN, ShardIndex
from .manifest import make_manifest, write_manifest
from .plan import OpenJob, ShardTask, TokenizeJob, settle_plan
from .shard import finished_shard, read_images, write_shard

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Shows how far the work is: gets the images and their number, gives the images."""

_TEMPORARY = re.compile(
    rf"\.[0-9]+-[0-9a-f]{{12}}-(shard-[0-9]{{6}}\.(tar|json)|{re.escape(PLAN)}|{re.escape(MANIFEST)})"
)


@dataclass(frozen=True)
class Tokenized:
    """A finished set: its manifest, and how many shards were made now and before."""

    manifest: dict[str, Any]
    made: int
    kept: int


def unchanged(images: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows nothing."""
    return images


def tokenize(
    job: TokenizeJob,
    out: Path,
    *,
    workers: int = 2,
    device: torch.device | str = "cpu",
    progress: Progress = unchanged,
) -> Tokenized:
    """Makes what is missing of a tokenized set in the folder ``out``, and its manifest.

    Whatever ended an earlier attempt, and whenever, the set is in the end the one that a single attempt makes, byte
    for byte: on the same kind of device, with the same release of torch and as many threads.

    Args:
        job: what is to be made.
        workers: processes that read and crop ahead of the encoder; 0 does it in this one.
        device: where the encoder runs.
        progress: goes round the images of the missing shards.

    Raises ValueError or OSError with one line for data, a model or settings that do not fit, for a folder with
    something else in it or of other settings, and if another process works there.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: expected a folder for the shards, found a file")
    with only_one(out, "tokenized into"):
        opened = OpenJob(job, device)
        plan = settle_plan(out, opened.plan)
        _remove_temporaries(out)
        shards = {task: finished_shard(out, task, opened.digest) for task in opened.shards()}
        missing = [task for task, index in shards.items() if index is None]
        for task, index in zip(missing, _make(opened, missing, out, workers, progress), strict=True):
            shards[task] = index
        manifest = make_manifest(plan, [index for index in shards.values() if index is not None])
        write_manifest(out, manifest)
    return Tokenized(manifest, len(missing), len(shards) - len(missing))


def _make(job: OpenJob, tasks: list[ShardTask], out: Path, workers: int, progress: Progress) -> Iterable[ShardIndex]:
    """The shards one after the other, from one stream of images: the next shard's are read while this one ends."""
    if not tasks:
        return
    images = [image for task in tasks for image in range(task.first, task.last)]
    items = iter(progress(read_images(job, images, workers), len(images)))
    for task in tasks:
        yield write_shard(job, task, out, items)
    for _ in items:  # none is left; the progress bar learns that here
        raise RuntimeError("expected no image after the last shard")


def _remove_temporaries(out: Path) -> None:
    """What a killed process left: nobody else writes here now."""
    for path in out.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
