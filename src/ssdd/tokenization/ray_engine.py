"""Shards made by a Ray cluster: a task each; a worker opens the job once."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..data.images import use_own_limit
from ..data.packages import require
from ..runtime.memory import keep_freed_memory
from ..runtime.text import one_safe_line
from .local import MOST_RESTARTS, Made, make_shard, portable
from .plan import OpenWork, ShardTask, Work
from .shard import Report

_LEAST_AT_ONCE = 64
"""Tasks that wait in the cluster's queue: one that grows by demand sees some, from no machine on."""


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to a cluster: the one that is there, RAY_ADDRESS, or one on this machine that ends with the block.

    Raises ImportError without Ray.
    """
    ray = _package()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    before = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, log_to_driver=False, include_dashboard=False)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own would change the exit status
    try:
        yield
    finally:
        ray.shutdown()


def make_by_ray(
    work: Work, tasks: Sequence[ShardTask], device: str, processes: int | None, report: Report
) -> Iterator[Made]:
    """Yield each shard when it is finished, in any order; ``report`` is told then.

    Args:
        work: What is to be done.
        tasks: The shards.
        device: ``cuda``: each task has a GPU.
        processes: Tasks at once, at most; None for what the cluster has room for.
        report: Receives the number of images of a shard.

    Raises:
        RuntimeError: With one line, if the processes of a shard die again and again; else as ``write_shard``.
    """
    ray = _package()
    cores = work.job.threads if device == "cpu" else 1
    make = ray.remote(num_cpus=cores, num_gpus=0 if device == "cpu" else 1, max_retries=MOST_RESTARTS)(_make)
    folder, left, running = os.getcwd(), list(reversed(tasks)), list[Any]()
    room = int(ray.cluster_resources().get("CPU", 0))
    try:
        while left or running:
            while left and len(running) < (processes or max(_LEAST_AT_ONCE, 2 * room)):
                running.append(make.remote(work, left.pop(), device, folder))
            (done,), running = ray.wait(running, num_returns=1)
            task, error, images = ray.get(done)
            report(images)
            yield task, error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # without pages of Ray's own
    except ray.exceptions.RayError as error:
        line = one_safe_line(str(error))[:300]
        raise RuntimeError(
            f"expected processes that live, found: {line}; the same command goes on from here"
        ) from error
    finally:
        for task in running:  # after an error they would go on writing
            ray.cancel(task, force=True)


def _make(work: Work, task: ShardTask, device: str, folder: str) -> tuple[ShardTask, str | None, int]:
    """Make a shard in a worker. ``folder`` is that of relative paths."""
    images: list[int] = []
    try:
        os.chdir(folder)
        error = make_shard(_open(work, device), task, images.append)
    except Exception as failure:
        raise portable(failure) from None
    return task, error, sum(images)


_open_jobs: dict[tuple[object, ...], OpenWork] = {}


def _open(work: Work, device: str) -> OpenWork:
    """Open a job once in each worker."""
    key = work.plan.digest, work.image_list, device
    if key not in _open_jobs:
        keep_freed_memory()
        use_own_limit()
        _open_jobs[key] = work.open(device)
    return _open_jobs[key]


def _package() -> Any:
    return require("ray", "the engine ray needs the package", "ssdd[ray]")
