"""The paper's claims at a small scale, by ``ssdd train`` and ``ssdd evaluate`` alone: docs/reproduction.md.

    python scripts/reproduction.py --scale gpu --data photos/*.tar --eval held-out.tar --out outputs/reproduction
    python scripts/reproduction.py --scale tiny --data photos/ --eval held-out/

Every command is printed before it runs. What is finished is not done again, a run that was stopped goes on exactly
where it was: after Ctrl-C, or the time of ``--minutes``, run the same again. At the end, or with what is there so far,
it writes table.json, table.md and pictures to OUT/SCALE. Exit status: 0 all is there; 75 stopped, run it again.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]  # of this checkout, installed or not

from reproduction_table import EVALUATION, EXTRACTOR, Results, markdown, plot_steps, table  # noqa: E402

from ssdd.recipes.claims import Contender, claims  # noqa: E402
from ssdd.recipes.reproduction import SCALES, recipe_name, run, start_of  # noqa: E402
from ssdd.training.config import differences  # noqa: E402

AGAIN = 75
"""Exit status of what is to be run again (EX_TEMPFAIL)."""
_SHORTEST = 20.0  # seconds below which nothing is worth starting
_SHEET_CROPS = 6


@dataclass(frozen=True)
class Job:
    """One command. run: what it trains or evaluates; done: what is there when it has ended well."""

    run: str
    arguments: tuple[str, ...]
    done: Path

    @property
    def line(self) -> str:
        return shlex.join(("ssdd", *self.arguments))


@dataclass(frozen=True)
class Plan:
    """Options of a reproduction. out: folder of this scale; rows: of the table, in order."""

    scale: str
    out: Path
    data: tuple[str, ...]
    held_out: tuple[str, ...]
    rows: tuple[str, ...]

    def folder(self, name: str) -> Path:
        """Of a run."""
        return self.out / "runs" / name

    def jobs(self) -> list[Job]:
        """All commands of the rows, in order, finished ones too; each once."""
        evaluated = Results.read(self.out / "evaluations").rows
        jobs: dict[Job, None] = {}
        wanted: dict[tuple[str, str], list[int | None]] = {}
        chosen = [claims(SCALES[self.scale])[row] for row in self.rows]
        for contender in (c for claim in chosen for c in claim.contenders):
            steps = wanted.setdefault((contender.run, contender.protocol), [])
            if contender not in evaluated and contender.steps not in steps:
                steps.append(contender.steps)
        for claim in chosen:
            for contender in claim.contenders:
                jobs |= dict.fromkeys(self._trainings(contender.run))
            for contender in claim.contenders:
                if steps := wanted.pop((contender.run, contender.protocol), []):
                    jobs[self._evaluation(contender, steps)] = None
        return list(jobs)

    def _trainings(self, name: str) -> Iterator[Job]:
        """Of a run, after those that it starts from."""
        start = start_of(self.scale, name)
        arguments = ["train", recipe_name(self.scale, name), "--out", str(self.folder(name))]
        if start is not None:
            yield from self._trainings(start)
            whole = run(self.scale, name).model.start_from is not None
            arguments += ["--model.start-from" if whole else "--encoder", str(self.folder(start))]
        arguments += ["--data.paths", *self.data]
        yield Job(name, tuple(arguments), self.folder(name) / "model" / "config.json")

    def _evaluation(self, contender: Contender, steps: Sequence[int | None]) -> Job:
        """Of a run's model in these numbers of steps."""
        numbers = [str(n) for n in sorted(n for n in steps if n is not None)]
        name = f"{contender.run}@{contender.protocol}@{'-'.join(numbers) or 'own'}"
        out = self.out / "evaluations" / name
        workers = str(max(1, SCALES[self.scale].workers))
        arguments = ["evaluate", str(self.folder(contender.run)), "--protocol", contender.protocol]
        arguments += ["--steps", ",".join(numbers)] if numbers else []
        arguments += ["--lpips", "squeeze", "--extractors", EXTRACTOR, "--workers", workers]
        return Job(contender.run, (*arguments, "--out", str(out), "--data", *self.held_out), out / EVALUATION)

    def check(self) -> None:
        """Raises ValueError if the folder was begun with other photographs, or has runs with other settings."""
        photographs = json.dumps({"data": self.data, "eval": self.held_out}, indent=1) + "\n"
        path = self.out / "photographs.json"
        if path.is_file() and path.read_text() != photographs:
            raise ValueError(f"{path}: expected the photographs that this folder began with: choose another --out")
        path.write_text(photographs)
        for job in self.jobs():
            saved = self.folder(job.run) / "config.json"
            if job.arguments[0] != "train" or not saved.is_file():
                continue
            config, start = run(self.scale, job.run), start_of(self.scale, job.run)
            if start is not None:
                key = "start_from" if config.model.start_from else "encoder"
                config = replace(config, model=replace(config.model, **{key: str(self.folder(start))}))
            if other := differences(config, saved.read_text()):
                raise ValueError(f"{saved.parent} holds a run with other settings ({other[0]}): choose another --out")


class Stopped(Exception):
    """The time is over, or a signal came."""


def execute(job: Job, deadline: float) -> float:
    """Runs a command with its progress to be seen; returns its seconds.

    Raises Stopped, once it has ended, if it could not finish in time; ChildProcessError if it failed.
    """
    begin = time.monotonic()
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "ssdd", *job.arguments]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        status = process.wait(None if deadline == float("inf") else deadline - time.monotonic())
    except (subprocess.TimeoutExpired, KeyboardInterrupt, Stopped) as stop:
        process.terminate()  # a training saves and ends
        try:
            process.wait()
        except BaseException:  # a second signal: nobody waits any more
            process.kill()
            process.wait()
            raise
        raise Stopped from stop
    if not job.done.is_file():
        if status in (128 + signal.SIGTERM, 128 + signal.SIGINT):
            raise Stopped
        raise ChildProcessError(f"this command failed with status {status}: {job.line}")
    return time.monotonic() - begin


def work(plan: Plan, deadline: float) -> None:
    """All jobs that are not done, and a line in jobs.jsonl for each. Raises as ``execute``."""
    jobs = plan.jobs()
    for number, job in enumerate(jobs, 1):
        finished = job.done.is_file()
        print(f"[{number}/{len(jobs)}]{' done:' if finished else ''} {job.line}", flush=True)
        if finished:
            continue
        begin = time.monotonic()
        if deadline - begin < _SHORTEST:
            raise Stopped
        try:
            execute(job, deadline)
        finally:
            line = {"run": job.run, "command": job.line, "seconds": time.monotonic() - begin}
            with (plan.out / "jobs.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def write(plan: Plan) -> Path:
    """table.json, table.md and the pictures that can be made by now. Returns the path of table.md."""
    results = Results.read(plan.out / "evaluations")
    log = plan.out / "jobs.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    commands: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for line in lines:
        known = commands.setdefault(line["run"], [])
        known += [line["command"]] if line["command"] not in known else []
        if line["command"].startswith("ssdd train"):
            seconds[line["run"]] = seconds.get(line["run"], 0.0) + line["seconds"]
    machines = {name: machine(plan.folder(name)) for name in seconds}
    found = table(plan.scale, results, commands, seconds) | {"machines": machines}
    (plan.out / "table.json").write_text(json.dumps(found, indent=1) + "\n")
    (plan.out / "table.md").write_text(markdown(found, machines))
    try:
        plot_steps(plan.scale, results, plan.out / "steps.png")
    except ImportError:
        print("no steps.png: pip install 'ssdd[eval]'", file=sys.stderr)
    distillation = claims(SCALES[plan.scale])["distillation"].contenders
    shown = [claims(SCALES[plan.scale])["kl-vae"].contenders[1], distillation[1], distillation[0]]
    sheet = plan.out / "crops.png"
    if all(contender in results.rows for contender in shown) and not sheet.is_file():
        draw_crops(plan, shown, sheet)
    return plan.out / "table.md"


def machine(folder: Path) -> str:
    """What a run was last trained on, in words."""
    path = folder / "environment.jsonl"
    if not path.is_file():
        return "unknown"
    last = json.loads(path.read_text().splitlines()[-1])
    return f"{last['processor']}, {last['cpu_cores']} CPU cores, torch {last['packages']['torch']}"


def draw_crops(plan: Plan, contenders: Sequence[Contender], path: Path) -> None:
    """Some evaluated crops: originals, and what each contender makes of them, with the noise of the evaluation."""
    import numpy as np
    import torch

    from ssdd.data.images import save_image
    from ssdd.data.pixels import images_to_tensor
    from ssdd.data.sources import open_source
    from ssdd.evaluation.contestants import load_contestant
    from ssdd.evaluation.image_metrics import rounded
    from ssdd.evaluation.protocols import EvaluationItem, EvaluationSet, get_protocol
    from ssdd.evaluation.sheet import Panel, sheet

    protocol = get_protocol(contenders[0].protocol)
    crops = EvaluationSet(open_source(plan.held_out), protocol)
    items = [crops[i] for i in np.linspace(0, len(crops) - 1, min(_SHEET_CROPS, len(crops))).astype(int)]
    found = [item.crops[0] for item in items if isinstance(item, EvaluationItem)]
    pixels = np.stack([crop.pixels for crop in found])
    numbers = [protocol.number(crop.key) for crop in found]
    columns = [pixels]
    for contender in contenders:
        model = load_contestant(str(plan.folder(contender.run)))
        with torch.inference_mode():
            z = model.encode(images_to_tensor(torch.from_numpy(pixels)))
            columns.append(rounded(model.decode(z, contender.steps, protocol.seed, numbers)).images)
    rows = [[Panel(column[i], "") for column in columns] for i in range(len(found))]
    save_image(path, sheet(rows, ["original", *(c.label for c in contenders)], panel_width=256), overwrite=True)


def parse(arguments: Sequence[str]) -> tuple[Plan, float]:
    """The plan, and the time in seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="tiny", help="default: tiny, a rehearsal")
    parser.add_argument("--data", nargs="+", required=True, help="photographs to train on: folders, tar files")
    parser.add_argument("--eval", nargs="+", required=True, dest="held_out", help="held-out photographs")
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduction"), help="default: outputs/reproduction")
    parser.add_argument("--rows", nargs="+", choices=list(claims(SCALES["tiny"])), help="default: those of the scale")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop cleanly; run again to go on")
    options = parser.parse_args(arguments)
    rows = options.rows or SCALES[options.scale].rows
    plan = Plan(options.scale, options.out / options.scale, tuple(options.data), tuple(options.held_out), tuple(rows))
    return plan, options.minutes * 60


def main(arguments: Sequence[str]) -> int:
    plan, seconds = parse(arguments)
    deadline = time.monotonic() + seconds

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    plan.out.mkdir(parents=True, exist_ok=True)
    status = 0
    try:
        plan.check()
        work(plan, deadline)
    except (Stopped, KeyboardInterrupt):
        status = AGAIN
    except (ValueError, ChildProcessError) as error:
        print(f"reproduction: error: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    path = write(plan)
    print(f"stopped before the end; table so far in {path}: run again to go on" if status else f"table in {path}")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
