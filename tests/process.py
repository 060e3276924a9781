"""The command line in a process of its own, without the seconds that importing torch takes.

Commands are forks of a server that has imported everything and done nothing. Forks of the tests' own process would hang
where an earlier test has left threads in it.
"""

import functools
import logging
import multiprocessing
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch

from ssdd import AutoencoderSSDD  # noqa: F401  (imported here once, not in every child)
from ssdd.cli import convert, data, decode, encode, evaluate, generate, reconstruct, train  # noqa: F401
from ssdd.cli.main import main
from ssdd.training import loop, tokenizer  # `train` imports them when it runs

os.environ["TQDM_DISABLE"] = ""  # a command in a pipe would have no bar, and some tests wait for one ("0" disables)

TIMEOUT = 120.0
"""Seconds after which a command counts as one that hangs."""

Prepare = Callable[[], object]
"""Called in the command's process before the command: a function of a module, or a ``partial`` of one."""


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
    """A command that was started; ``wait`` for its end. out, err, peak: pipes; what came from the first two is kept."""

    process: ForkServerProcess
    out: Connection
    err: Connection
    peak: Connection
    streams: dict[int, bytearray]
    """What came from standard output and standard error, by the descriptor of the pipe."""

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float = TIMEOUT) -> Ended:
        """Fails, and ends it with its workers, if it takes longer."""
        try:
            self._read_until(time.monotonic() + timeout, lambda: False)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"hangs: {self._text()}") from None
        self.process.join()
        peak = os.read(self.peak.fileno(), 64)
        for pipe in (self.out, self.err, self.peak):
            pipe.close()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, *self._text(), int(peak or 0))

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


def start(
    *arguments: object,
    prepare: Prepare | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Running:
    """``ssdd ARGUMENTS`` in a process with one thread, with the environment of this one.

    environment: variables besides. folder: that it runs in; None for the folder of this process.
    """
    context = _server()
    typed = [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments]
    pipes = [context.Pipe(duplex=False) for _ in range(3)]  # not files: their size may be limited
    (out, _), (err, _), (peak, _) = pipes
    writing = [write for _, write in pipes]
    variables = {**os.environ, **(environment or {})}
    process = context.Process(
        target=_be_the_command, args=(writing, typed, prepare, folder or os.getcwd(), variables), daemon=False
    )
    process.start()
    for write in writing:
        write.close()
    return Running(process, out, err, peak, {out.fileno(): bytearray(), err.fileno(): bytearray()})


@functools.cache
def _server() -> ForkServerContext:
    """Started once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


def _be_the_command(
    pipes: list[Connection],
    arguments: list[str],
    prepare: Prepare | None,
    folder: Path | str,
    environment: dict[str, str],
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    out, err, peak = pipes
    for descriptor, stream in enumerate((out, err), start=1):
        os.dup2(stream.fileno(), descriptor)
        stream.close()
    os.set_inheritable(peak.fileno(), False)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for handler in logging.getLogger("diffusers").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    torch.set_num_threads(1)
    _be_quick()
    try:
        if prepare is not None:
            prepare()
        main(arguments)
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(peak.fileno(), str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).encode())
        os._exit(int(stop.code or 0))
    except BaseException:
        traceback.print_exc()
    os._exit(99)


def _be_quick() -> None:
    """A handful of crops for the latent statistics, and no measurement of the machine's peak."""
    tokenizer.STATISTICS_IMAGES = 16
    tokenizer.LATENT_CROPS = 32
    loop.peak_flops = lambda *_, **__: 1e12  # type: ignore[assignment]


def ranks(
    *arguments: object, count: int = 2, prepare: Callable[[int], Prepare] | None = None, folder: Path | None = None
) -> list[Ended]:
    """``ssdd ARGUMENTS`` in processes that know of one another, as torchrun starts them; their ends, by rank.

    prepare: for a rank. folder: that they run in.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(count):
        environment = {"CUDA_VISIBLE_DEVICES": ""}
        if count > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        before = None if prepare is None else prepare(rank)
        running.append(start(*arguments, prepare=before, environment=environment, folder=folder))
    return [process.wait(300) for process in running]


def ssdd(*arguments: object, prepare: Prepare | None = None) -> Ended:
    """``start`` and ``wait``."""
    return start(*arguments, prepare=prepare).wait()
