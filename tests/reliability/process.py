"""The command line in a process of its own, without the seconds that importing torch takes: a fork of the test's."""

import logging
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssdd import AutoencoderSSDD  # noqa: F401  (imported here once, not in every child)
from ssdd.cli.main import main

TIMEOUT = 120.0
"""Seconds after which a command counts as one that hangs."""

Prepare = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """What a process left. status: as the shell has it, or minus the number of the signal that killed it."""

    status: int
    out: str
    err: str
    peak_bytes: int

    def lines(self) -> list[str]:
        """Standard error, as it stands on a terminal, without progress bars and what was left out."""
        lines = [line.rpartition("\r")[2].strip() for line in self.err.splitlines()]
        return [line for line in lines if line and "%|" not in line and not line.startswith(("left out:", "0img"))]

    def one_line(self, status: int = 1) -> str:
        """The only line on standard error. Fails for another status, another number of lines, a traceback."""
        assert "Traceback" not in self.err, self.err
        assert self.status == status, f"expected exit status {status}, found {self.status}: {self.err}"
        assert len(self.lines()) == 1, f"expected one clear line, found: {self.err}"
        return self.lines()[0]


@dataclass(frozen=True)
class Running:
    """A command that was started; ``wait`` for its end."""

    pid: int
    streams: dict[int, bytearray]
    """What came from standard output and standard error, by the descriptor of the pipe."""

    def wait(self, timeout: float = TIMEOUT) -> Ended:
        """Fails, and ends it with its workers, if it takes longer."""
        try:
            self._read_until(time.monotonic() + timeout, lambda: False)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            os.wait4(self.pid, 0)
            raise AssertionError(f"hangs: {self._text()}") from None
        finally:
            for descriptor in self.streams:
                os.close(descriptor)
        _, status, usage = os.wait4(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), *self._text(), usage.ru_maxrss * 1024)

    def until(self, happened: Callable[[], bool], timeout: float = TIMEOUT) -> None:
        """Waits until something has happened. Raises TimeoutError, also if the command ends before."""
        self._read_until(time.monotonic() + timeout, happened)
        if not happened():
            raise TimeoutError(f"the command ended before that: {self._text()}")

    def send(self, number: int) -> None:
        """A signal to the process alone, as a scheduler sends it."""
        os.kill(self.pid, number)

    def _read_until(self, deadline: float, happened: Callable[[], bool]) -> None:
        still = list(self.streams)
        while still and not happened():
            if time.monotonic() > deadline:
                raise TimeoutError
            for descriptor in select.select(still, [], [], 0.02)[0]:
                if not (content := os.read(descriptor, 1 << 16)):
                    still.remove(descriptor)
                self.streams[descriptor] += content

    def _text(self) -> tuple[str, ...]:
        return tuple(content.decode(errors="replace") for content in self.streams.values())


def start(*arguments: object, prepare: Prepare | None = None) -> Running:
    """``ssdd ARGUMENTS`` in a fork with one thread; ``prepare`` is called first."""
    typed = [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments]
    pipes = [os.pipe(), os.pipe()]  # not files: their size may be limited
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _be_the_command([write for _, write in pipes], typed, prepare)
        finally:
            os._exit(99)  # whatever happens, there is one pytest
    for _, write in pipes:
        os.close(write)
    return Running(pid, {read: bytearray() for read, _ in pipes})


def _be_the_command(streams: list[int], arguments: list[str], prepare: Prepare | None) -> None:
    os.setsid()
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(stream, descriptor)
    os.closerange(3, 256)  # of others' pipes as well, or their readers would wait for us
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (pytest's are its own)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    logging.root.handlers.clear()  # pytest's
    for handler in logging.getLogger("diffusers").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    torch.set_num_threads(1)
    try:
        if prepare is not None:
            prepare()
        main(arguments)
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stop.code or 0))
    except BaseException:
        traceback.print_exc()


def ssdd(*arguments: object, prepare: Prepare | None = None) -> Ended:
    """``start`` and ``wait``."""
    return start(*arguments, prepare=prepare).wait()


def small_disk(size: int) -> Prepare:
    """No file can grow beyond so many bytes, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def killed_at(count: int) -> Prepare:
    """``kill -9`` just before the command touches the file system for the ``count``-th time: flushes, links, renames,
    removes. What it wrote until then lies there."""

    def prepare() -> None:
        left = [count]

        def counted(act: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(*arguments, **options)

            return instead

        for name in ("fsync", "link", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))

    return prepare
