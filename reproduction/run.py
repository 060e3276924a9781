"""The paper's claims at a small scale, by ``ssdd train`` and ``ssdd evaluate`` alone: docs/reproduction.md.

    python reproduction/run.py --scale gpu --data photos/*.tar --eval held-out.tar --out outputs/reproduction
    python reproduction/run.py --scale tiny --data photos/ --eval held-out/

Every command is printed before it runs. What is finished is not done again, and a training that was stopped resumes
exactly: after Ctrl-C, or the time of ``--minutes``, run the same again. At the end, or with what there is so far, it
writes table.json, table.md and pictures to OUT/SCALE. Exit status: 0 all is done; 75 stopped, run it again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(root := Path(__file__).parents[1]), str(root / "src")]  # of this checkout, installed or not

from reproduction.claims import Model, claims  # noqa: E402
from reproduction.jobs import Job, begin, precision_options, read_log, run_jobs, run_until_stopped  # noqa: E402
from reproduction.runs import SCALES, runs  # noqa: E402
from reproduction.table import EVALUATED, EXTRACTOR, build_table, markdown, plot_steps, read_results  # noqa: E402
from ssdd.training.config import differences, to_json  # noqa: E402

_SHEET_CROPS = 6


@dataclass(frozen=True)
class Plan:
    """Options of a reproduction. out: folder of this scale; rows: of the table, in order."""

    scale_name: str
    out: Path
    data: tuple[str, ...]
    held_out: tuple[str, ...]
    rows: tuple[str, ...]

    @property
    def log(self) -> Path:
        """Return the file with a line about each command."""
        return self.out / "jobs.jsonl"

    def folder(self, run: str) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / run

    def jobs(self) -> list[Job]:
        """Return every command once, after those that it needs; finished evaluations are left out."""
        chosen = [claims(SCALES[self.scale_name])[row] for row in self.rows]
        results = read_results(self.out / "evaluations")
        missing: dict[tuple[str, str], set[int | None]] = {}
        for model in (model for claim in chosen for model in claim.models if model not in results):
            missing.setdefault((model.run, model.protocol), set()).add(model.steps)
        jobs: dict[Job, None] = {}
        for claim in chosen:
            for model in claim.models:
                jobs |= dict.fromkeys(self._trainings(model.run))
            for model in claim.models:
                if steps := missing.pop((model.run, model.protocol), None):
                    jobs[self._evaluation(model, steps)] = None
        return list(jobs)

    def _trainings(self, name: str) -> Iterator[Job]:
        """Yield the command of a run, after those of the runs that it starts from."""
        run, folder = runs(SCALES[self.scale_name])[name], self.folder(name)
        arguments = ["train", "--config", str(self.out / "configs" / f"{name}.json"), "--out", str(folder)]
        if run.predecessor:
            yield from self._trainings(run.predecessor)
            arguments += ["--encoder" if run.encoder else "--model.start-from", str(self.folder(run.predecessor))]
        arguments += precision_options()
        yield Job(name, (*arguments, "--data.paths", *self.data), folder / "model" / "config.json")

    def _evaluation(self, model: Model, steps: set[int | None]) -> Job:
        """Return the command that evaluates a run's model in these numbers of steps."""
        numbers = [str(n) for n in sorted(n for n in steps if n is not None)]
        out = self.out / "evaluations" / f"{model.run}@{model.protocol}@{'-'.join(numbers) or 'own'}"
        arguments = ["evaluate", str(self.folder(model.run)), "--protocol", model.protocol]
        arguments += ["--steps", *numbers] if numbers else []
        arguments += ["--lpips", "squeeze", "--extractors", EXTRACTOR]
        arguments += ["--workers", str(max(1, SCALES[self.scale_name].workers))]
        return Job(model.run, (*arguments, "--out", str(out), "--data", *self.held_out), out / EVALUATED)

    def write_configs(self) -> None:
        """Write the settings of all runs. Raise ValueError if the folder began with other settings or photographs.

        ``ssdd train`` checks that too, but is not called for a run that is finished.
        """
        begin(self.out, {"data": self.data, "eval": self.held_out})
        (self.out / "configs").mkdir(exist_ok=True)
        for name, run in runs(SCALES[self.scale_name]).items():
            path = self.out / "configs" / f"{name}.json"
            if path.is_file() and (changed := differences(run.config, path.read_text())):
                raise ValueError(f"{path} holds other settings ({changed[0]}): choose another --out")
            path.write_text(to_json(run.config))


def write(plan: Plan) -> Path:
    """Write table.json, table.md and the pictures that can be made by now. Return the path of table.md."""
    results, lines = read_results(plan.out / "evaluations"), read_log(plan.log)
    table = build_table(
        plan.scale_name, results, lines, {line["run"]: machine(plan.folder(line["run"])) for line in lines}
    )
    (plan.out / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    (plan.out / "table.md").write_text(markdown(table))
    try:
        plot_steps(plan.scale_name, results, plan.out / "steps.png")
    except ImportError:
        print("no steps.png: pip install 'ssdd[eval]'", file=sys.stderr)
    rows = claims(SCALES[plan.scale_name])
    student, teacher, _ = rows["distillation"].models
    models = [*rows["kl-vae"].models[1:], teacher, student]
    if all(model in results for model in models) and not (plan.out / "crops.png").is_file():
        draw_crops(plan, models, plan.out / "crops.png")
    return plan.out / "table.md"


def machine(folder: Path) -> str:
    """Return in words what a run was last trained on."""
    path = folder / "environment.jsonl"
    if not path.is_file():
        return "unknown"
    last = json.loads(path.read_text().splitlines()[-1])
    return f"{last['processor']}, {last['cpu_cores']} CPU cores, torch {last['packages']['torch']}"


def draw_crops(plan: Plan, models: Sequence[Model], path: Path) -> None:
    """Draw some evaluated crops, and what each model makes of them with the noise of the evaluation."""
    import numpy as np
    import torch

    from ssdd.data.images import save_image
    from ssdd.data.pixels import images_to_tensor
    from ssdd.data.sources import open_source
    from ssdd.evaluation.autoencoders import load_autoencoder
    from ssdd.evaluation.image_metrics import rounded
    from ssdd.evaluation.protocols import EvaluationItem, EvaluationSet, get_protocol
    from ssdd.evaluation.sheet import Panel, sheet

    protocol = get_protocol(models[0].protocol)
    evaluated = EvaluationSet(open_source(plan.held_out), protocol)
    indices = np.linspace(0, len(evaluated) - 1, min(_SHEET_CROPS, len(evaluated))).astype(int)
    crops = [item.crops[0] for i in indices if isinstance(item := evaluated[i], EvaluationItem)]
    pixels = np.stack([crop.pixels for crop in crops])
    numbers = [protocol.number(crop.key) for crop in crops]
    columns = [pixels]
    for model in models:
        autoencoder = load_autoencoder(str(plan.folder(model.run)))
        with torch.inference_mode():
            z = autoencoder.encode(images_to_tensor(torch.from_numpy(pixels)))
            noise = autoencoder.noise(z, protocol.seed, numbers)
            columns.append(rounded(autoencoder.decode(z, model.steps, noise)).images)
    panels = [[Panel(column[i], "") for column in columns] for i in range(len(crops))]
    save_image(path, sheet(panels, ["original", *(m.label for m in models)], panel_width=256), overwrite=True)


def main(arguments: Sequence[str]) -> int:
    """Run the commands as far as time allows and write the table. Return the exit status."""
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
    deadline = time.monotonic() + options.minutes * 60

    def work() -> None:
        plan.write_configs()
        run_jobs(plan.jobs(), plan.log, deadline)

    return run_until_stopped("reproduction", work, lambda: write(plan))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
