"""Watching a run: updates that were not finite, and signals that ask it to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..processes import Processes


class TrainingStopped(Exception):
    """A signal stopped the run after it had saved a checkpoint."""

    def __init__(self, signal_number: int, images_seen: int) -> None:
        self.signal_number, self.images_seen = signal_number, images_seen
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} at {images_seen} images; saved: the same command goes on from there")


class FiniteCount:
    """Counts skipped updates on the device; the host reads them at log steps only.

    ``skipped`` in all, ``row`` in a row until now, ``longest`` row since the last reading, and the images ``seen`` at
    the start of the last skipped update (-1: none).
    """

    def __init__(self, device: torch.device, skipped: int = 0) -> None:
        """skipped: by the run until now."""
        self.numbers = torch.tensor([skipped, 0, 0, -1], device=device)

    def add(self, finite: Tensor, seen: int) -> None:
        """After an update that began at ``seen`` images."""
        skipped, row, longest, last = self.numbers.unbind()
        row = torch.where(finite, 0, row + 1)
        last = torch.where(finite, last, seen)
        self.numbers = torch.stack([skipped + ~finite, row, torch.maximum(longest, row), last])

    def read(self) -> dict[str, int]:
        """The numbers; waits for the device."""
        skipped, row, longest, last = (int(n) for n in self.numbers.tolist())
        self.numbers[2] = self.numbers[1]
        return {"skipped": skipped, "row": row, "longest": longest, "seen": last}


class StopRequest:
    """SIGTERM or SIGINT to any process, agreed upon by all at the same update."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.received = 0
        self._pending: tuple[Any, Tensor] | None = None

    def agreed(self) -> int:
        """The signal, or 0. Called once per update by every process.

        Each call posts what this process knows and answers with what all knew one call ago, so that nobody waits.
        """
        if self.processes.count == 1:
            return self.received
        answer = 0
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            answer = int(flag)
        flag = torch.tensor([self.received])  # on the CPU, whatever the device of the model
        self._pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag)
        return answer

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: now
        self.received = number


@contextmanager
def stop_requests(processes: Processes) -> Iterator[StopRequest]:
    """Notes SIGTERM and SIGINT instead of dying of them."""
    request = StopRequest(processes)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield request
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, request._receive) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
