"""SIGTERM and Ctrl-C end a tokenization in good order: nothing half-written stays, and the status says which it was."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class TokenizeStopped(KeyboardInterrupt):
    """A signal ended the work; finished shards are there. Like KeyboardInterrupt no Exception, which libraries catch.

    Attributes:
        signal_number: Which one.
    """

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], None]]:
    """Have SIGTERM and SIGINT raise TokenizeStopped in the main thread, wherever it is.

    A second SIGTERM, which would end the tidying up, does nothing; a second Ctrl-C ends it.

    Yields:
        What raises TokenizeStopped again: where the first met a finalizer or a callback it was lost.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if not received or number == signal.SIGINT:
            received.append(number)
            raise TokenizeStopped(number)

    def check() -> None:
        if received:
            raise TokenizeStopped(received[-1])

    is_main = threading.current_thread() is threading.main_thread()  # only the main thread may have handlers
    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
