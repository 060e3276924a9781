"""Shards made by a Ray cluster: a pool of actors, each of which opens the job once.

An actor that dies is started again by Ray, and its shard made again; what it left is overwritten or removed.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..memory import keep_freed_memory
from .crop_reader import read_images
from .plan import OpenJob, ShardTask
from .processes import MOST_RESTARTS
from .shard import Report, write_shard
from .worker import Failed, Order, failure, open_like, reraise


@contextmanager
def cluster() -> Iterator[None]:
    """A connection to a cluster: the one that is there, RAY_ADDRESS, or one on this machine that ends with it.

    Raises ImportError without Ray.
    """
    ray = _package()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    ray.init(logging_level=logging.WARNING, log_to_driver=False, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def make_by_ray(
    job: OpenJob, tasks: Sequence[ShardTask], out: Path, processes: int | None, workers: int, report: Report
) -> Iterator[ShardTask]:
    """Yields each shard when it is finished, in any order; ``report`` is told then.

    Args:
        processes: actors; None for as many as the cluster has GPUs, or cores for the job's threads. On GPUs each has
            one of its own. workers: processes that read ahead, for each of them.

    Raises as ``write_shard``, and RuntimeError with one line if too many actors die.
    """
    if not tasks:
        return
    ray = _package()
    actors = min(processes or _room(ray.cluster_resources(), job), len(tasks))
    maker = ray.remote(
        num_cpus=job.job.threads if job.on_cpu else 1,
        num_gpus=0 if job.on_cpu else 1,
        max_restarts=MOST_RESTARTS,
        max_task_retries=MOST_RESTARTS,
    )(ShardMaker)
    order = Order(job.job, job.digest, job.encoder.device.type, workers, out)
    pool = ray.util.ActorPool([maker.remote(order, os.getcwd()) for _ in range(actors)])
    try:
        for answer in pool.map_unordered(lambda actor, task: actor.make.remote(task), list(tasks)):
            if isinstance(answer, Failed):
                reraise(answer)
            report(answer.last - answer.first)
            yield answer
    except ray.exceptions.RayError as error:
        line = " ".join(str(error).split())[:300]
        raise RuntimeError(f"expected actors that live, found: {line}; the same command goes on from here") from error


def _room(resources: dict[str, float], job: OpenJob) -> int:
    """For how many actors there are GPUs or cores. Raises ValueError for none."""
    cores = job.job.threads if job.on_cpu else 1
    room = int(resources.get("CPU", 0) // cores if job.on_cpu else resources.get("GPU", 0))
    if room < 1:
        kind = f"{cores} cores" if job.on_cpu else "a GPU"
        raise ValueError(f"expected {kind} for an actor in the Ray cluster, found {resources}")
    return room


class ShardMaker:
    """An actor."""

    def __init__(self, order: Order, folder: str) -> None:
        """folder: the current one, to which paths are relative."""
        os.chdir(folder)
        keep_freed_memory()
        self._order = order
        self._job: OpenJob | None = None

    def make(self, task: ShardTask) -> ShardTask | Failed:
        """The task when its shard is there. An error is an answer: Ray would wrap it in pages of its own."""
        order = self._order
        try:
            if self._job is None:
                self._job = open_like(order.job, order.device, order.digest)
            images = range(task.first, task.last)
            write_shard(self._job, task, order.out, read_images(self._job, images, order.workers))
        except Exception as error:
            return failure(error)
        return task


def _package() -> ModuleType:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise ImportError("the engine ray needs the package: pip install 'ssdd[ray]'") from error
    return ray
