"""On the machine without a network: the work folder, commands in it with a deadline."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from . import runs, wheels
from .plan import Line, command, endless, measured_rate, set_end
from .store import Store, below, bundles_to_come

SOURCE = Path(__file__).parents[2] / "src"

_POLL = 0.1
_PROGRESS = re.compile(rb"\| *(\d+)/\d+ \[")


@dataclass(frozen=True)
class Arrival:
    """problems: bundles that are damaged. to_come: names of bundles that have not arrived, or not undamaged."""

    problems: tuple[str, ...]
    to_come: tuple[str, ...]


def arrive(work: Path, packages: Sequence[Path]) -> Arrival:
    """Takes over packages; once all of a set are there, joins their files in ``work``.

    Runs that ``work`` has already are left as they are.
    """
    store = Store(work)
    absorbed = store.absorb(packages)
    to_come: list[str] = []
    for index in store.indexes():
        brought = {n: e for n, e in runs.by_run(index.entries).items() if not (work / "runs" / n).exists()}
        files = [(entry, below(work, entry.path)) for entry in index.entries if not entry.path.startswith("runs/")]
        lacking = [name for entry, target in files for name in store.lacking(entry, target)]
        lacking += [name for entries in brought.values() for e in entries for name in e.pieces if not store.has(name)]
        if lacking:
            to_come += bundles_to_come(index, lacking)
            continue
        for entry, target in files:
            store.join(entry, target)
        for name, entries in brought.items():
            runs.restore(store, name, entries, work / "runs")
        store.done(index)
    store.keep_only({piece for index in store.indexes() for entry in index.entries for piece in entry.pieces})
    return Arrival(absorbed.problems, tuple(to_come))


def environment(work: Path) -> dict[str, str]:
    """Variables of commands there: this checkout, the wheels, the weights.

    Installs the wheels if they are not yet. Raises RuntimeError if that fails.
    """
    site = wheels.install(sorted((work / "wheels").glob("*.whl")), work)
    path = [str(SOURCE), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "0.5",
    }
    if (work / "torch_home").is_dir():
        variables["TORCH_HOME"] = str(work / "torch_home")
    return {**os.environ, **variables}


@dataclass
class Clock:
    """When the call began, when commands are told to stop and when they are killed, by ``time.monotonic()``.

    At SIGTERM commands are told to stop at once, and killed as much earlier.
    """

    begin: float
    stop: float
    kill: float
    interrupted: bool = field(default=False, init=False)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """As a handler: time is over."""
        self.kill += min(0.0, time.monotonic() - self.stop)
        self.stop, self.interrupted = min(self.stop, time.monotonic()), True

    def left(self) -> float:
        return self.stop - time.monotonic()


@dataclass(frozen=True)
class Outcome:
    """status: finished, stopped or failed. images: of the newest checkpoint. first: second of the call at which
    its first update was done, or None without one. rate: images a second at the end."""

    run: str
    status: str
    images: int
    first: float | None
    rate: float | None
    note: str = ""

    def __str__(self) -> str:
        first = f", first update at {self.first:.0f} s" if self.first is not None else ""
        rate = f", {self.rate:.4g} images/s" if self.rate is not None else ""
        return f"{self.run}: {self.status} at {self.images:,} images{first}{rate}" + (
            f": {self.note}" if self.note else ""
        )


class Trainer:
    """Runs lines of a plan in a work folder.

    measure: seconds over which the rate is measured where the end of a run is to be found.
    """

    def __init__(self, work: Path, clock: Clock, measure: float) -> None:
        self.work, self.clock, self.measure = work, clock, measure
        self.variables = environment(work)

    def train(self, line: Line) -> Outcome:
        """One line, up to its end or to the deadline."""
        run, begin = self.work / "runs" / line.run, time.monotonic()
        first: float | None = None
        while True:
            started = _Started(self, line)
            status = started.wait()
            first = first if first is not None or started.first is None else started.first - self.clock.begin
            if status != "measured":
                break
            rate, spent = started.measured, _spent(self.work, line, time.monotonic() - begin)
            assert rate is not None
            assert line.total is not None
            # Once more: start, and compiled code that is there already.
            total = set_end(line, run, rate, line.total - spent - 0.5 * started.startup)
            say(f"{line.run}: {rate:.4g} images/s: it ends at {total:,} images")
            if self.clock.left() <= 0:
                status = "stopped"
                break
        if endless(line, run):
            _spent(self.work, line, time.monotonic() - begin, keep=True)
        lines = runs.read_stats(run)
        rate = lines[-1]["images_per_second"] if lines else None
        return Outcome(line.run, status, runs.images_seen(run), first, rate, started.note)


def _spent(work: Path, line: Line, seconds: float, keep: bool = False) -> float:
    """Seconds spent on a line whose end is not known yet, in this call and in those before."""
    path = work / "spent" / line.run
    total = seconds + (float(path.read_text()) if path.is_file() else 0.0)
    if keep:
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(total))
    return total


class _Started:
    """One process of ``ssdd train``, watched until it ends."""

    def __init__(self, trainer: Trainer, line: Line) -> None:
        self.trainer, self.line, self.run = trainer, line, trainer.work / "runs" / line.run
        self.seen, self.endless = runs.images_seen(self.run), endless(line, self.run)
        self.begin = time.monotonic()
        self.first: float | None = None
        self.measured: float | None = None
        self.startup = 0.0
        self.note = ""
        self.log = trainer.work / "logs" / f"{line.run}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.compiled = trainer.work / "compiled" / line.run  # kept for later calls
        with self.log.open("ab") as log:
            self.log_begin = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ssdd", *command(line, trainer.work)],
                cwd=trainer.work,
                env={
                    **trainer.variables,
                    "TORCHINDUCTOR_CACHE_DIR": str(self.compiled / "inductor"),
                    "TRITON_CACHE_DIR": str(self.compiled / "triton"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> str:
        """finished, stopped, measured (stopped, to be told its end) or failed."""
        clock, told, killed = self.trainer.clock, False, False
        while self.process.poll() is None:
            if self.first is None:
                self._look_for_update()
            if not told and (clock.left() <= 0 or (self.endless and self._measure())):
                self.process.terminate()  # it alone: workers end with it
                told = True
            if time.monotonic() > clock.kill and not killed:
                os.killpg(self.process.pid, signal.SIGKILL)
                killed = True
            time.sleep(_POLL)
        if self.first is None:
            self._look_for_update()
        if killed:  # a file of compiled code may be half written
            shutil.rmtree(self.compiled, ignore_errors=True)
            self.note = "killed, for it did not stop in time; what came after its last checkpoint is lost"
            return "stopped"
        if self.process.returncode == 0:
            return "finished"
        if told and self.process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM):
            return "measured" if self.measured else "stopped"
        self.note = f"exit status {self.process.returncode}: {self._last_line()}"
        return "failed"

    def _measure(self) -> bool:
        found = measured_rate(self.run, self.seen)
        if found is None or found.seconds < self.trainer.measure:
            return False
        self.measured = found.images_per_second
        self.startup = max(0.0, time.monotonic() - self.begin - found.seconds)
        return True

    def _look_for_update(self) -> None:
        """By the progress bar in the log."""
        with self.log.open("rb") as log:
            log.seek(self.log_begin)
            counts = [int(count) for count in _PROGRESS.findall(log.read())]
        if any(count > self.seen for count in counts):
            self.first = time.monotonic()

    def _last_line(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self.log_begin)
            lines = log.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
        return lines[-1] if lines else "no output"


def train(lines: Sequence[Line], work: Path, clock: Clock, measure: float, shortest: float) -> list[Outcome]:
    """One line after another until the deadline, or until one fails. Finished ones are passed over.

    shortest: seconds below which none is begun.
    """
    outcomes: list[Outcome] = []
    trainer: Trainer | None = None
    for line in lines:
        command(line, work)  # what is wrong with one is told before any begins
    for line in lines:
        run = work / "runs" / line.run
        if runs.finished(run):
            outcomes.append(Outcome(line.run, "finished", runs.images_seen(run), None, None, "before this call"))
        elif clock.left() < shortest:
            outcomes.append(Outcome(line.run, "waiting", runs.images_seen(run), None, None))
        else:
            trainer = trainer or Trainer(work, clock, measure)
            say(f"{line.run}: starts at {runs.images_seen(run):,} images, {clock.left():.0f} s left")
            outcomes.append(trainer.train(line))
        say(str(outcomes[-1]))
        if outcomes[-1].status == "failed":
            break
    return outcomes


def say(line: str) -> None:
    print(line, flush=True)
