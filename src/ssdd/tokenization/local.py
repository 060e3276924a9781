"""Shards made on this machine, by this process or by several; one that dies loses only the shard that it was at."""

import logging
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.sharedctypes import RawArray
from typing import Any

import torch

from ..data.loader import end_with_parent
from ..runtime.memory import keep_freed_memory
from ..runtime.processes import usable_cores
from ..runtime.text import one_safe_line
from .plan import OpenWork, ShardTask, Work
from .shard import InputShardError, Report, write_shard

MOST_RESTARTS = 3
"""How often in a row processes die before a shard is finished, until that ends the command."""
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_LOOK_SECONDS = 0.5
_LOG = logging.getLogger(__name__)


Made = tuple[ShardTask, str | None]
"""A shard that is there, or, with an error in one line, one whose input is none."""


def make_shard(job: OpenWork, task: ShardTask, report: Report) -> str | None:
    """Make a shard. Return one line if its input is none. Raises as ``write_shard``."""
    try:
        write_shard(job, task, report)
    except InputShardError as error:
        return one_safe_line(str(error))
    return None


def portable(error: Exception) -> Exception:
    """Return an error of one line that survives the way to another process: not all exceptions do."""
    line = one_safe_line(str(error))
    for kind in (OSError, ValueError, RuntimeError):
        if isinstance(error, kind):
            return kind(line)
    return RuntimeError(f"{type(error).__name__}: {line}")


def encoder_devices(device: torch.device, processes: int | None, threads: int) -> list[str]:
    """Return the device of each process.

    ``processes``: None for one on each GPU, one on a GPU that is named with its number, and on a CPU as many as its
    cores allow with so many ``threads`` each.
    """
    if device.type == "cuda" and device.index is None:
        cards = max(1, torch.cuda.device_count())
        return [f"cuda:{k % cards}" for k in range(processes or cards)]
    usual = max(1, usable_cores() // threads) if device.type == "cpu" else 1
    return [str(device)] * (processes or usual)


def make_in_processes(work: Work, tasks: Sequence[ShardTask], devices: Sequence[str], report: Report) -> Iterator[Made]:
    """Make shards in a process for each of the devices; yield each when it is finished, in any order.

    Raises as ``write_shard``, and RuntimeError with one line if processes die again and again. However it ends, also if
    this process is killed, the others end with it.
    """
    left, deaths = deque(tasks), 0
    while left:
        pool = _Pool(work, devices[: len(left)], report)
        try:
            for made in pool.run(left):
                deaths = 0
                yield made
        except BrokenProcessPool:
            deaths += 1
            lost = pool.give_back(left)
            shards = ", ".join(str(task.number) for task in lost) or "none"
            if deaths > MOST_RESTARTS:
                raise RuntimeError(
                    f"expected processes that live, but one died for the {deaths}th time in a row, with the shards "
                    f"{shards} begun. If memory ran out, pass a smaller --processes; the same command goes on from here"
                ) from None
            _LOG.warning("a process died; new ones make the shards that were begun again: %s", shards)
        finally:
            pool.end()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Hold back the signals that stop the command: a process that is started here listens when it is ready to."""
    resource_tracker.ensure_running()  # started below, it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool:
    """A ``ProcessPoolExecutor`` whose processes have a device each, and say how far they are."""

    def __init__(self, work: Work, devices: Sequence[str], report: Report) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not live through a fork
        self._at_once = 2 * len(devices)  # one ahead of each process
        self._done = RawArray("q", self._at_once)
        names = context.SimpleQueue()
        for device in devices:
            names.put(device)
        self._others = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(len(devices), context, _begin, (work, names, self._done))
        self._running: dict[Future[str | None], tuple[ShardTask, int]] = {}
        self._report, self._reported, self._finished = report, 0, 0

    def run(self, tasks: deque[ShardTask]) -> Iterator[Made]:
        """Take tasks, and yield them when they are done. Raises BrokenProcessPool when a process has died."""
        free = set(range(self._at_once))
        while tasks or self._running:
            while tasks and free:
                slot = free.pop()
                self._done[slot] = 0
                task = tasks.popleft()
                with _no_signals():
                    future = self._pool.submit(_make, task, slot)
                self._running[future] = task, slot
            done, _ = wait(self._running, _LOOK_SECONDS, FIRST_COMPLETED)
            for future in done:
                error = future.result()  # raises BrokenProcessPool with the task still among the running ones
                task, slot = self._running.pop(future)
                self._finished += self._done[slot]
                self._done[slot] = 0
                free.add(slot)
                yield task, error
            self._tell(sum(self._done))

    def _tell(self, begun: int) -> None:
        """Report what changed: images of finished shards, and so many of those that are begun."""
        now = self._finished + begun
        if now != self._reported:
            self._report(now - self._reported)
            self._reported = now

    def give_back(self, tasks: deque[ShardTask]) -> list[ShardTask]:
        """Put the tasks that were begun back, and take back what was reported of them."""
        begun = [task for task, slot in self._running.values() if self._done[slot]]
        self._tell(0)
        tasks.extendleft(task for task, _ in reversed(self._running.values()))
        self._running.clear()
        return begun

    def end(self) -> None:
        """End all processes, whatever they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        processes = set(multiprocessing.active_children()) - self._others
        for process in processes if self._running else ():
            process.kill()
        for process in processes:
            process.join()


# ---- in the processes ----------------------------------------------------------------------------------------------

_here: "tuple[Work, str, Any] | None" = None
_job: OpenWork | None = None


def _begin(work: Work, devices: Any, done: Any) -> None:
    """Prepare a process."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; its parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=end_with_parent, daemon=True).start()
    keep_freed_memory()
    _here = work, devices.get(), done


def _make(task: ShardTask, slot: int) -> str | None:
    global _job
    assert _here is not None
    work, device, done = _here

    def report(images: int) -> None:
        done[slot] += images

    try:
        if _job is None:
            _job = work.open(device)
        return make_shard(_job, task, report)
    except Exception as error:
        raise portable(error) from None
