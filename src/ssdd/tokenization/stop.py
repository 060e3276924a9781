"""SIGTERM and Ctrl-C end a tokenization in good order: nothing half-written stays, and the status says which it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TokenizeStopped(KeyboardInterrupt):
    """A signal ended the work; finished shards are there. Like KeyboardInterrupt no Exception, which libraries catch.

    signal_number: which one.
    """

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self._received: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """As a handler: raises TokenizeStopped, but for a second SIGTERM, which would end the tidying up."""
        if self._received is None or number == signal.SIGINT:  # a second Ctrl-C: without cleaning up
            self._received = number
            raise TokenizeStopped(number)

    def check(self) -> None:
        """Raises TokenizeStopped again: where the first met a finalizer or a callback it was lost."""
        if self._received is not None:
            raise TokenizeStopped(self._received)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT raise TokenizeStopped in the main thread, wherever it is; a second SIGTERM does nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
