"""Commands of ``ssdd`` that run one after another, each at most once: what is finished is not done again."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssdd.runtime.dtypes import fastest_dtype

ROOT = Path(__file__).parents[1]
STOPPED = 75
"""Exit status that asks to be run again (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Job:
    """One command. run: what it trains or evaluates; result: the file that it leaves when it has succeeded."""

    run: str
    arguments: tuple[str, ...]
    result: Path

    @property
    def command(self) -> str:
        """Return the command as it is printed."""
        return shlex.join(("ssdd", *self.arguments))


def precision_options() -> list[str]:
    """Return ``--precision fp32`` where the processor has no instructions for bf16, else nothing."""
    slow = not torch.cuda.is_available() and fastest_dtype(torch.device("cpu")) == torch.float32
    return ["--precision", "fp32"] if slow else []


class Stopped(Exception):
    """Raised when the time is over, or a signal came."""


def execute(job: Job, deadline: float) -> None:
    """Run a command, with its progress shown.

    Raises Stopped, once the command has ended, if the time is over or a signal came; ChildProcessError if it failed.
    """
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "ssdd", *job.arguments]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        status = process.wait(None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
        process.terminate()  # a training saves and ends
        process.wait()
        raise Stopped from stop
    if not job.result.is_file():
        raise ChildProcessError(f"this command failed with status {status}: {job.command}")


def run_jobs(jobs: Sequence[Job], log: Path, deadline: float) -> None:
    """Run the commands that are not done, and append a line about each to the log.

    Raises as ``execute``, and ValueError for a result that another command has made.
    """
    made = {line.get("result"): line["command"] for line in read_log(log)}
    for number, job in enumerate(jobs, 1):
        finished = job.result.is_file()
        print(f"[{number}/{len(jobs)}]{' done:' if finished else ''} {job.command}", flush=True)
        if finished:
            if (before := made.get(str(job.result), job.command)) != job.command:
                raise ValueError(f"{job.result}: expected the result of this command, found that of another: {before}")
            continue
        begin = time.monotonic()
        if begin >= deadline:
            raise Stopped
        try:
            execute(job, deadline)
        finally:
            line = {"run": job.run, "command": job.command, "result": str(job.result)}
            line |= {"seconds": time.monotonic() - begin}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")


def begin(out: Path, facts: Mapping[str, Any]) -> None:
    """Make a folder, or raise ValueError if it was begun with other facts, such as photographs."""
    path, text = out / "begun-with.json", json.dumps(facts, indent=1) + "\n"
    if path.is_file() and path.read_text() != text:
        raise ValueError(f"{path}: expected what this folder was begun with: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_log(log: Path) -> "list[dict[str, str | float]]":
    """Return the lines of ``run_jobs``; none before the first."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def run_until_stopped(name: str, work: Callable[[], None], write: Callable[[], Path]) -> int:
    """Work, then write the table of what there is. Return the exit status: 0, 1 after an error, or ``STOPPED``.

    Args:
        name: of the script, for errors.
        work: may raise Stopped; SIGTERM stops it as Ctrl-C does.
        write: writes the table and returns its path.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    stopped = False
    try:
        work()
    except (Stopped, KeyboardInterrupt):
        stopped = True
    except (ValueError, OSError, RuntimeError, ImportError) as error:  # of a command, of weights or packages
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    path = write()
    print(f"stopped before the end; table so far in {path}: run again to go on" if stopped else f"table in {path}")
    return STOPPED if stopped else 0
