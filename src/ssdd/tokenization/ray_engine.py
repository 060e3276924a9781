"""Shards made by a Ray cluster: a pool of actors, each of which opens the job once.

An actor that dies is started again by Ray, and its shard made again; what it left is overwritten or removed.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..memory import keep_freed_memory
from ..text import one_safe_line
from .crop_reader import read_images
from .plan import OpenJob, ShardTask
from .processes import MOST_RESTARTS
from .shard import Report, write_shard
from .worker import Failed, Order, failure, open_like, reraise

_END_SECONDS = 10
_READY_SECONDS = 120
"""In which the first actor has to start: a cluster may be full of other work."""


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
    before = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, log_to_driver=False, include_dashboard=False)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own would change the exit status
    try:
        yield
    finally:
        ray.shutdown()


def make_by_ray(
    job: OpenJob, tasks: Sequence[ShardTask], out: Path, processes: int | None, workers: int, report: Report
) -> Iterator[ShardTask]:
    """Yields each shard when it is finished, in any order; ``report`` is told then.

    Args:
        processes: actors, at most, and by default, as many as the machines of the cluster have GPUs, or cores for the
            job's threads. On GPUs each has one of its own. workers: processes that read ahead, for each of them.

    Raises as ``write_shard``, ValueError if the cluster has no room for an actor, and RuntimeError with one line if
    none starts, or too many of them die. However it ends, the actors end with it.
    """
    if not tasks:
        return
    ray = _package()
    room = _room(ray.nodes(), job)
    maker = ray.remote(
        num_cpus=_cores(job),
        num_gpus=0 if job.on_cpu else 1,
        max_restarts=MOST_RESTARTS,
        max_task_retries=MOST_RESTARTS,
    )(ShardMaker)
    order = Order(job.job, job.digest, job.encoder.device.type, workers, out)
    actors = [maker.remote(order, os.getcwd()) for _ in range(min(processes or room, room, len(tasks)))]
    started: set[Started] = set()
    try:
        for answer in _answers(ray, actors, tasks, started):
            if isinstance(answer, Failed):
                reraise(answer)
            else:
                report(answer.last - answer.first)
                yield answer
    except ray.exceptions.RayError as error:
        line = one_safe_line(str(error))[:300]
        raise RuntimeError(f"expected actors that live, found: {line}; the same command goes on from here") from error
    finally:
        for actor in actors:  # after an error they would go on writing
            ray.kill(actor, no_restart=True)
        _wait_for({maker.pid for maker in started if maker.node == ray.get_runtime_context().get_node_id()})


def _wait_for(pids: set[int]) -> None:
    """Until these processes, which were told to end, have, at most for some seconds."""
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.02)


def _answers(
    ray: ModuleType, actors: Sequence[Any], tasks: Sequence[ShardTask], started: "set[Started]"
) -> Iterator[ShardTask | Failed]:
    """Of ``ShardMaker.make`` for each task, in any order, by those actors that have ``started``.

    Raises RuntimeError if none of them does.
    """
    waiting = {actor.ready.remote(): actor for actor in actors}  # by what each of them is to answer next
    left, to_do = len(tasks), deque(tasks)
    while left:
        at_work = left > len(to_do)
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=None if at_work else _READY_SECONDS)
        if not done:
            raise RuntimeError(
                f"expected room for an actor in the Ray cluster, found none in {_READY_SECONDS} s: wait until its "
                "other work is done, or end it"
            )
        actor, answer = waiting.pop(done[0]), ray.get(done[0])
        if to_do:
            waiting[actor.make.remote(to_do.popleft())] = actor
        if isinstance(answer, Started):
            started.add(answer)
        else:
            left -= 1
            yield answer


def _cores(job: OpenJob) -> int:
    """Of an actor."""
    return job.job.threads if job.on_cpu else 1


def _room(nodes: Sequence[dict[str, Any]], job: OpenJob) -> int:
    """For how many actors there are GPUs and cores: each needs those of one machine. Raises ValueError for none."""
    machines: list[dict[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    room = 0
    for machine in machines:
        by_cores = int(machine.get("CPU", 0) // _cores(job))
        room += by_cores if job.on_cpu else min(by_cores, int(machine.get("GPU", 0)))
    if room < 1:
        need = f"{_cores(job)} cores" if job.on_cpu else "a GPU and a core"
        found = [{kind: machine.get(kind, 0) for kind in ("CPU", "GPU")} for machine in machines]
        raise ValueError(f"expected {need} for an actor on a machine of the Ray cluster, found {found}")
    return room


@dataclass(frozen=True)
class Started:
    """An actor's process. One that takes the place of another is not told of."""

    node: str
    pid: int


class ShardMaker:
    """An actor."""

    def __init__(self, order: Order, folder: str) -> None:
        """folder: the current one, to which paths are relative."""
        keep_freed_memory()
        self._order, self._folder = order, folder
        self._job: OpenJob | None = None

    def ready(self) -> Started:
        """Answers as soon as there is room for the actor."""
        return Started(_package().get_runtime_context().get_node_id(), os.getpid())

    def make(self, task: ShardTask) -> ShardTask | Failed:
        """The task when its shard is there. An error is an answer: Ray would wrap it in pages of its own."""
        order = self._order
        try:
            if self._job is None:
                os.chdir(self._folder)
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
