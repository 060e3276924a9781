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


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise TokenizeStopped in the main thread, wherever it is; a second SIGTERM does nothing."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield
        return
    received = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received or number == signal.SIGINT:  # a second Ctrl-C: without cleaning up
            received = True
            raise TokenizeStopped(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
