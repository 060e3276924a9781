"""Watch a run: count updates that were not finite, and note signals that ask it to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..runtime.processes import Processes


class TrainingStopped(Exception):
    """Raised when a signal has stopped the run and a checkpoint is saved."""

    def __init__(self, signal_number: int, images_seen: int) -> None:
        self.signal_number, self.images_seen = signal_number, images_seen
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} at {images_seen} images; saved: the same command goes on from there")


class FiniteCount:
    """Count skipped updates on the device; the host reads the counts at log steps and for a checkpoint only.

    It counts those ``skipped`` in all, those in a ``row`` until now, the ``longest`` row since the last reading, and
    the images ``seen`` at the start of the last skipped update (-1 if there is none).

    Args:
        device: device of the counts.
        skipped: number of updates that the run skipped before.
        row: how many of them were the last.
    """

    def __init__(self, device: torch.device, skipped: int = 0, row: int = 0) -> None:
        self.numbers = torch.tensor([skipped, row, row, -1], device=device)

    def add(self, finite: Tensor, seen: int) -> None:
        """Count an update that began at ``seen`` images."""
        skipped, row, longest, last = self.numbers.unbind()
        row = torch.where(finite, 0, row + 1)
        last = torch.where(finite, last, seen)
        self.numbers = torch.stack([skipped + ~finite, row, torch.maximum(longest, row), last])

    def read(self) -> dict[str, int]:
        """Return the counts by name. Waits for the device."""
        skipped, row, longest, last = (int(n) for n in self.numbers.tolist())
        self.numbers[2] = self.numbers[1]
        return {"skipped": skipped, "row": row, "longest": longest, "seen": last}

    def until_now(self) -> dict[str, int]:
        """Return what a checkpoint keeps."""
        skipped, row, *_ = (int(n) for n in self.numbers.tolist())
        return {"skipped_updates": skipped, "skipped_in_a_row": row}


class StopRequest:
    """A signal that any process received, and on which all processes agree at the same update."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.received = 0
        self._pending: tuple[Any, Tensor] | None = None

    def agreed(self) -> int:
        """Return the signal, or 0. Every process calls this once per update.

        Each call posts what this process knows and returns what all knew one call ago, so that nobody waits.
        """
        if self.processes.count == 1:
            return self.received
        answer = 0
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            answer = int(flag)
        flag = torch.tensor([self.received], device="cpu")  # on the CPU, whatever the device of the model
        self._pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag)
        return answer

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: now
        self.received = number


@contextmanager
def stop_requests(processes: Processes) -> Iterator[StopRequest]:
    """Note SIGTERM, SIGINT, SIGUSR1 and SIGHUP instead of dying of them.

    SIGUSR1 is what SLURM sends before the time limit (``--signal=USR1@120``), SIGHUP what a closed terminal sends. A
    SIGHUP that is ignored, by ``nohup``, stays so.
    """
    request = StopRequest(processes)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield request
        return
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, request._receive) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
