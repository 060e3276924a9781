"""A process that makes shards for another: asks it for the next one, tells it what is done, and ends with it."""

import multiprocessing
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Literal

from ..data.loader import end_with_parent
from ..memory import keep_freed_memory
from ..text import one_safe_line
from .local import make_shards
from .plan import OpenJob, ShardTask, TokenizeJob

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""A process is started with these blocked, so that none of them meets it while it imports."""
READER_DIED = 3
"""The exit status of a process that lost one of its readers: as if it had died itself."""

_READER_DIED = re.compile(r"DataLoader worker \(pid")
"""Begins what torch says of a reader that died. An error of a reader's own begins with ``Caught``."""


@dataclass(frozen=True)
class Ask:
    """For the next shard. The answer is a ShardTask, or None: there is none."""


@dataclass(frozen=True)
class Encoded:
    """So many images more of the shard that was asked for first and is not finished."""

    images: int


@dataclass(frozen=True)
class Finished:
    """A shard is there."""

    task: ShardTask


@dataclass(frozen=True)
class Failed:
    """An error that another process would meet as well; one line."""

    kind: Literal["ValueError", "OSError", "RuntimeError"]
    line: str


Message = Ask | Encoded | Finished | Failed


@dataclass(frozen=True)
class Order:
    """What a process is for. digest: of the plan as its parent has it."""

    job: TokenizeJob
    digest: str
    device: str
    workers: int
    out: Path


def serve(order: Order, connection: Connection) -> None:
    """The whole life of the process."""
    # It was spawned; its readers need not be: forked, they share its memory and are there at once.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; its parent decides
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=end_with_parent, daemon=True).start()
    keep_freed_memory()
    try:
        opened = open_like(order.job, order.device, order.digest)
        parent = _Parent(connection)
        for task in make_shards(opened, parent.tasks(), order.out, order.workers, parent.report):
            parent.send(Finished(task))
    except _ParentGone:
        return
    except Exception as error:
        if isinstance(error, RuntimeError) and _READER_DIED.match(str(error)):
            sys.exit(READER_DIED)
        with suppress(OSError):  # nobody is left to be told
            connection.send(failure(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to clean up


def open_like(job: TokenizeJob, device: str, digest: str) -> OpenJob:
    """Raises as ``OpenJob``, and ValueError if data or model are others than those of the plan of this digest."""
    opened = OpenJob(job, device)
    if opened.digest != digest:
        raise ValueError(
            "expected the data and the model that the command began with, found others in one of its processes: they "
            "changed, or are others on that machine"
        )
    return opened


def failure(error: Exception) -> Failed:
    """As it is sent: an exception itself may not survive that."""
    line = one_safe_line(str(error))
    if isinstance(error, OSError):
        return Failed("OSError", line)
    if isinstance(error, ValueError):
        return Failed("ValueError", line)
    return Failed("RuntimeError", line if isinstance(error, RuntimeError) else f"{type(error).__name__}: {line}")


def reraise(failed: Failed) -> None:
    """In the process that was told of it."""
    raise {"OSError": OSError, "ValueError": ValueError, "RuntimeError": RuntimeError}[failed.kind](failed.line)


class _ParentGone(Exception):
    """There is nobody to work for. No OSError: those are of the work."""


class _Parent:
    """The process that this one works for. All methods raise _ParentGone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Message) -> None:
        try:
            self._connection.send(message)
        except ConnectionError as error:
            raise _ParentGone from error

    def report(self, images: int) -> None:
        if images:
            self.send(Encoded(images))

    def tasks(self) -> Iterator[ShardTask]:
        while True:
            self.send(Ask())
            try:
                task = self._connection.recv()
            except (EOFError, ConnectionError) as error:
                raise _ParentGone from error
            if task is None:
                return
            yield task


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that the file begun is removed
