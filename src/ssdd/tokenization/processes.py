"""Shards made by several processes of one machine. One that dies loses only the shard that it was at."""

import logging
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path

import torch

from ..processes import usable_cores
from .plan import OpenJob, ShardTask
from .shard import Report
from .worker import READER_DIED, STOPPING, Ask, Encoded, Failed, Finished, Message, Order, reraise, serve

MOST_RESTARTS = 3
"""Fresh processes in place of dead ones, in one run."""

_LOOK_SECONDS = 0.5
"""How often is looked for processes that died without closing their connection: their readers may hold it."""
_DISMISS_SECONDS = 2
"""For processes that have nothing to do; one that has only begun to start is then told to end."""
_END_SECONDS = 10
"""For a process that was told to end."""

_LOG = logging.getLogger(__name__)


def encoder_devices(device: torch.device, processes: int | None, threads: int) -> list[str]:
    """The device of each process.

    ``processes``: None for one on each GPU, one on a GPU that is named with its number, and on a CPU as many as its
    cores allow with so many ``threads`` each.
    """
    if device.type == "cuda" and device.index is None:
        cards = max(1, torch.cuda.device_count())
        return [f"cuda:{k % cards}" for k in range(processes or cards)]
    usual = max(1, usable_cores() // threads) if device.type == "cpu" else 1
    return [str(device)] * (processes or usual)


def make_in_processes(
    job: OpenJob, tasks: Sequence[ShardTask], out: Path, devices: Sequence[str], workers: int, report: Report
) -> Iterator[ShardTask]:
    """Yields each shard when it is finished, in any order.

    Args:
        devices: a process for each. workers: processes that read ahead, for each of them.

    Raises as ``write_shard``, and RuntimeError with one line if too many processes die. However it ends, and also if
    this process is killed, the others end with it.
    """
    order = Order(job.job, job.digest, "", workers, out)
    pool = _Pool(order, tasks, report)
    try:
        for device in devices[: len(tasks)]:
            pool.start(device)
        yield from pool.run()
        pool.dismiss()
    finally:
        pool.end()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Those that stop the command wait. A process that is started here waits too, until it has handlers of its own."""
    resource_tracker.ensure_running()  # started below, it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process, the end of its connection that is ours, and what it has been given and not finished.

    asked: it has begun. told_all: it was told that there is no more.
    """

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not live through a fork
        self.device = order.device
        self.connection, theirs = context.Pipe()
        # No daemon: those may not have processes, and this one has readers.
        self.process = context.Process(target=serve, args=(order, theirs), name="ssdd-tokenize")
        self.process.start()
        theirs.close()
        self.tasks: deque[ShardTask] = deque()
        self.encoded = 0
        self.asked = self.told_all = False

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def messages(self) -> Iterator[Message]:
        """Those that have arrived."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()  # nobody is left to write

    def send(self, task: ShardTask | None) -> None:
        try:
            self.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died, which is seen elsewhere

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def how_it_ended(self) -> str:
        code = self.process.exitcode or 0
        if code == READER_DIED:
            return "lost a process that read for it"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


class _Pool:
    def __init__(self, order: Order, tasks: Sequence[ShardTask], report: Report) -> None:
        self._order, self._report = order, report
        self._open = deque(tasks)
        self._left = len(tasks)
        self._workers: list[_Worker] = []
        self._restarts = 0

    def start(self, device: str) -> None:
        with _no_signals():
            self._workers.append(_Worker(replace(self._order, device=device)))

    def run(self) -> Iterator[ShardTask]:
        while self._left:
            wait([worker.connection for worker in self._workers], _LOOK_SECONDS)
            for worker in list(self._workers):
                alive = worker.is_alive()  # before its last messages are read
                for message in worker.messages():
                    if isinstance(message, Finished):
                        worker.tasks.remove(message.task)
                        worker.encoded = 0
                        self._left -= 1
                        yield message.task
                    else:
                        self._answer(worker, message)
                if not alive:
                    self._bury(worker)

    def _answer(self, worker: _Worker, message: Message) -> None:
        if isinstance(message, Ask):
            task = self._open.popleft() if self._open else None
            worker.asked = True
            if task is None:
                worker.told_all = True
            else:
                worker.tasks.append(task)
            worker.send(task)
        elif isinstance(message, Encoded):
            worker.encoded += message.images
            self._report(message.images)
        elif isinstance(message, Failed):
            reraise(message)

    def _bury(self, worker: _Worker) -> None:
        """Gives back what it had, and starts another one in its place if there is work for it.

        Raises RuntimeError if none is left, and work is.
        """
        worker.connection.close()
        self._workers.remove(worker)
        if worker.told_all and not worker.tasks and not worker.process.exitcode:
            if self._open:  # one that died has given it back since
                self.start(worker.device)
            return
        self._report(-worker.encoded)
        self._open.extendleft(reversed(worker.tasks))
        shards = ", ".join(str(task.number) for task in worker.tasks) or "none yet"
        what = f"process {worker.pid} on {worker.device} {worker.how_it_ended()}; its shards: {shards}"
        if not self._open:
            _LOG.warning("%s; nothing is lost", what)
        elif self._restarts < MOST_RESTARTS:
            self._restarts += 1
            _LOG.warning("%s; another one takes its place", what)
            self.start(worker.device)
        elif not self._workers:
            raise RuntimeError(
                f"expected processes that live, but {what}, the last one left after {MOST_RESTARTS} others in its "
                "place. If memory ran out, pass a smaller --processes; the same command goes on from here"
            )
        else:
            _LOG.warning("%s; the others go on", what)

    def dismiss(self) -> None:
        """When all is done: they end when they find nobody to ask."""
        end = time.monotonic() + _DISMISS_SECONDS
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(max(0.0, end - time.monotonic()))

    def end(self) -> None:
        """All of them, whatever they are at."""
        for worker in self._workers:
            worker.connection.close()
            if worker.asked:
                worker.process.terminate()
            else:
                worker.process.kill()  # it listens only when it has begun, and has nothing to clean up
        for worker in self._workers:
            worker.process.join(_END_SECONDS)
            if worker.is_alive():
                worker.process.kill()
                worker.process.join()
