"""Shards made on this machine, by this process or by several; one that dies loses only the shard that it was at."""

import logging
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch

from ..data.images import use_own_limit
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
        running: dict[Future[tuple[str | None, int]], ShardTask] = {}
        finished = told = 0  # images of finished shards, and those that were reported
        try:
            with _processes(work, devices[: len(left)], running) as (pool, done):
                while left or running:
                    while left and len(running) < 2 * len(devices):  # one ahead of each process
                        with _no_signals():
                            running[pool.submit(_make, left[0])] = left[0]
                        left.popleft()
                    for future in wait(running, _LOOK_SECONDS, FIRST_COMPLETED).done:
                        error, images = future.result()
                        deaths, finished = 0, finished + images
                        yield running.pop(future), error
                    if (now := done.get_obj().value) != told:
                        report(now - told)
                        told = now
        except BrokenProcessPool:
            deaths += 1
            report(finished - told)
            left.extendleft(reversed(running.values()))
            shards = ", ".join(str(task.number) for task in running.values()) or "none"
            if deaths > MOST_RESTARTS:
                raise RuntimeError(
                    f"expected processes that live, but one died for the {deaths}th time in a row, with the shards "
                    f"{shards} begun. If memory ran out, pass a smaller --processes; the same command goes on from here"
                ) from None
            _LOG.warning("a process died; new ones make the shards that were begun again: %s", shards)


@contextmanager
def _processes(work: Work, devices: Sequence[str], running: Collection[object]) -> Iterator[tuple[Executor, Any]]:
    """Yield a pool of a process on each device, and how many images they have done; while something is running, the
    end is at once.
    """
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not live through a fork
    done, names = context.Value("q", 0), context.SimpleQueue()
    for device in devices:
        names.put(device)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(len(devices), context, _begin, (work, names, done))
    try:
        yield pool, done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        processes = set(multiprocessing.active_children()) - others
        for process in processes if running else ():
            process.kill()
        for process in processes:
            process.join()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Hold back the signals that stop the command: a process that is started here listens when it is ready to."""
    resource_tracker.ensure_running()  # started below, it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    use_own_limit()
    _here = work, devices.get(), done


def _make(task: ShardTask) -> tuple[str | None, int]:
    """Return what ``make_shard`` does, and how many images it took."""
    global _job
    assert _here is not None
    work, device, done = _here
    made = 0

    def report(images: int) -> None:
        nonlocal made
        made += images
        with done.get_lock():
            done.value += images

    try:
        if _job is None:
            _job = work.open(device)
        return make_shard(_job, task, report), made
    except Exception as error:
        raise portable(error) from None
