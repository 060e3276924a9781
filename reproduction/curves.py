"""The claim about reconstruction as learning curves: SSDD's decoder against a KL-VAE's, on one frozen encoder.

    python reproduction/curves.py --scale cpu --data photos-*.tar --eval bsds500-test.tar kodak.tar

All decoders learn on the latents of ``--encoder``, which no GAN has seen, from the same photographs, crops, batch and
weight of LPIPS, by the same optimiser at the same constant rate, that of the recipes. After several numbers of images
their averaged weights are evaluated on crops of the training size that none was trained on. The KL-VAE's decoder is as
wide as brings its operations nearest to ours, and has a PatchGAN or none: of both the better one counts. A student is
distilled from SSDD after half of the images, and sees the other half. Short trainings have three seeds. The verdict on
the claim is that of SSDD in one step; the others are reported beside it. What is finished is not done again: after
Ctrl-C, or the time of ``--minutes``, run the same again. It writes table.md and curves.png to OUT/SCALE/ENCODER. Exit
status: 0 all is done; 75 stopped, run it again.
"""

import argparse
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(root := Path(__file__).parents[1]), str(root / "src")]  # of this checkout, installed or not

from reproduction.claims import (  # noqa: E402
    DETAIL,
    FRECHET,
    FRECHET_MARGIN,
    LPIPS,
    Difference,
    Model,
    Test,
    conclude,
    frechet_difference,
    in_words,
    judge,
)
from reproduction.jobs import Job, begin, precision_options, read_log, run_jobs, run_until_stopped  # noqa: E402
from reproduction.table import EVALUATED, EXTRACTOR, Measured, Results, markdown_table, measure  # noqa: E402
from ssdd.data.sources import open_source  # noqa: E402
from ssdd.evaluation.features import load_extractor  # noqa: E402
from ssdd.evaluation.metrics import lpips_metric  # noqa: E402
from ssdd.evaluation.results import Evaluation, Row  # noqa: E402
from ssdd.recipes import stages  # noqa: E402

CLAIM = "SSDD's decoder reconstructs better than a KL-VAE's of the same operations, after as many images"
PAPER = "rFID 0.50 (SSDD-S, one step) against 0.87, with 0.28 times the operations (ImageNet 256 px, f8c4)"
STEPS = 8
"""Of multi-step decoding, and of the teacher of a distillation."""
SEEDS = 3

SSDD, STUDENT, KL_VAE, GAN = "ssdd", "student", "kl-vae", "kl-vae-gan"


class Series(NamedTuple):
    """A curve: a kind of run, and how it decodes."""

    run: str
    steps: int | None
    title: str


# The first is what the claim is judged by.
OURS = (
    Series(SSDD, 1, "SSDD, 1 step"),
    Series(SSDD, STEPS, f"SSDD, {STEPS} steps"),
    Series(STUDENT, 1, "SSDD distilled, 1 step"),
)
THEIRS = (Series(KL_VAE, None, "KL-VAE"), Series(GAN, None, "KL-VAE with a GAN"))
METRICS = {
    FRECHET: ("FD", 1),
    "kid": ("KID x 1000", 1),
    LPIPS: ("LPIPS", 4),
    "psnr": ("PSNR, dB", 2),
    DETAIL: ("detail", 3),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
}
"""Title and digits of each table."""


@dataclass(frozen=True)
class Scale:
    """How long everything is trained, by the recipes of a scale.

    Attributes:
        counts: numbers of images after which all are measured, each twice the one before.
        repeated: so many of the counts, the first ones, are measured with three seeds.
        distilled: least images of a distillation.
        rehearsal: too short for any verdict.
    """

    counts: tuple[int, ...]
    repeated: int
    distilled: int
    protocol: str
    rehearsal: bool = False


SCALES = {
    "gpu": Scale((8000, 16_000, 32_000, 64_000, 128_000, 256_000), 3, 25_000, "crops-128-v1"),
    "cpu": Scale((8000, 16_000, 32_000), 1, 16_000, "crops-64-v1"),
    "tiny": Scale((32, 64), 1, 32, "crops-64-v1", rehearsal=True),
}
"""``gpu``: hours of one GPU. ``cpu``: ten hours of two cores. ``tiny``: a rehearsal, whose figures say nothing."""


@dataclass(frozen=True)
class Plan:
    """Options of a comparison. out: folder of this scale and encoder."""

    scale_name: str
    out: Path
    encoder: str
    data: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def scale(self) -> Scale:
        """Return the scale itself."""
        return SCALES[self.scale_name]

    @property
    def log(self) -> Path:
        """Return the file with a line about each command."""
        return self.out / "jobs.jsonl"

    def seeds(self, count: int) -> range:
        """Return the seeds that are measured after so many images."""
        return range(SEEDS if count in self.scale.counts[: self.scale.repeated] else 1)

    def kinds(self, count: int) -> list[str]:
        """Return the kinds of runs that are measured after so many images."""
        half = count // 2
        return [SSDD, KL_VAE, GAN, *([STUDENT] if half in self.scale.counts and half >= self.scale.distilled else [])]

    def model(self, kind: str, seed: int, count: int) -> Path:
        """Return the folder of a model."""
        if kind == STUDENT:
            return self.out / "runs" / f"{kind}@{seed}@{count}"
        return self.out / "runs" / f"{kind}@{seed}" / "exports" / f"{count:012d}"

    def evaluations(self, seed: int, count: int) -> dict[int, Path]:
        """Return the folders of a seed's evaluations after so many images, by the number of decoding steps.

        That in one step has all models, that in many SSDD's alone.
        """
        name = f"{count}@{seed}"
        many = {STEPS: self.out / "evaluations" / f"{name}-{STEPS}"} if seed == 0 else {}
        return {1: self.out / "evaluations" / name, **many}

    def jobs(self) -> list[Job]:
        """Return every command once, after those that it needs: the whole curves of the first seed first."""
        jobs: list[Job] = []
        for seed in range(SEEDS):
            for count in self.scale.counts:
                if seed not in self.seeds(count):
                    continue
                for kind in self.kinds(count):
                    jobs += [self._distil(seed, count)] if kind == STUDENT else self._train(kind, seed, count)
                jobs += [self._evaluate(seed, count, steps) for steps in self.evaluations(seed, count)]
        return list(dict.fromkeys(jobs))

    def _train(self, kind: str, seed: int, count: int) -> list[Job]:
        """Return the training of a seed up to its last count, and the export after this one."""
        first = self.scale.counts[0]
        run = self.out / "runs" / f"{kind}@{seed}"
        total = [n for n in self.scale.counts if seed in self.seeds(n)][-1]
        arguments = ["train", "pretraining" if kind == SSDD else "kl-vae", *self._alike(seed, total, first)]
        arguments += ["--encoder", self.encoder, "--optimizer.warmup-images", str(first // 8)]
        arguments += ["--optimizer.decay-images", "0", "--log.milestone-images", str(first)]
        if kind != SSDD:
            width = equal_width(self.encoder, stages.SCALES[self.scale_name].decoder)
            arguments += ["--model.no-train-encoder", "--model.decoder-width", str(width)]
        if kind == KL_VAE:
            arguments += ["--loss.adversarial", "0"]
        if kind == GAN:
            arguments += ["--loss.adversarial-from-images", str(first // 2)]
            arguments += ["--discriminator.warmup-images", str(first // 8)]
        export = ("train", "export", str(run), "--images", str(count))
        return [self._training(run, arguments), Job(run.name, export, self.model(kind, seed, count) / "config.json")]

    def _distil(self, seed: int, count: int) -> Job:
        half, run = count // 2, self.model(STUDENT, seed, count)
        arguments = ["train", "distillation", *self._alike(1000 + seed, half, half // 4)]  # its teacher saw other crops
        arguments += ["--model.start-from", str(self.model(SSDD, seed, half)), "--teacher-steps", str(STEPS)]
        arguments += ["--optimizer.warmup-images", str(half // 20), "--optimizer.decay-images", "0"]
        return self._training(run, arguments)

    def _training(self, run: Path, arguments: Sequence[str]) -> Job:
        where = ("--out", str(run), "--data.paths", *self.data)
        return Job(run.name, (*arguments, *where), run / "model" / "config.json")

    def _alike(self, seed: int, total: int, checkpoint: int) -> list[str]:
        """Return the options that all trainings share."""
        side, augmentation = stages.SCALES[self.scale_name].crops
        options = ["--scale", self.scale_name, "--seed", str(seed), "--total-images", str(total), *precision_options()]
        options += ["--data.resolution", str(side), "--data.scale", str(augmentation), "--validation.images", "0"]
        options += ["--average.halflife-images", str(min(1500, self.scale.counts[0] // 8))]
        return [*options, "--log.checkpoint-images", str(checkpoint), "--log.sample-images", str(total)]

    def _evaluate(self, seed: int, count: int, steps: int) -> Job:
        out = self.evaluations(seed, count)[steps]
        kinds = self.kinds(count) if steps == 1 else [SSDD]
        arguments = ["evaluate", *(str(self.model(kind, seed, count)) for kind in kinds)]
        arguments += ["--protocol", self.scale.protocol, "--steps", str(steps), "--lpips", "squeeze"]
        arguments += ["--workers", "1"]
        return Job(out.name, (*arguments, "--out", str(out), "--data", *self.held_out), out / EVALUATED)


@cache
def equal_width(encoder: str, decoder: str) -> int:
    """Return the width, in fours, at which a KL-VAE's decoder on this encoder is nearest to our operations."""
    from ssdd import AutoencoderSSDD
    from ssdd.nn.encoder import Encoder
    from ssdd.nn.kl_baseline import kl_decoder
    from ssdd.training.encoders import choose_encoder

    network = choose_encoder(encoder).module
    if not isinstance(network, Encoder):
        raise ValueError(f"{encoder}: expected an encoder of the KL-VAE's architecture, found another")
    channels, c, factor = network.size.channels, network.latent_channels, network.spatial_factor
    z = torch.zeros(1, c, 64 // factor, 64 // factor)
    ours = AutoencoderSSDD.from_preset(f"f{factor}c{c}", decoder, has_encoder=False)
    operations, found = _operations(lambda: ours.decode(z, num_inference_steps=1)), {0: 0}
    while found[width := max(found)] < operations:
        other = kl_decoder(tuple(n * (width + 4) // channels[0] for n in channels), c, groups=4)
        found[width + 4] = _operations(partial(other, z))
    return min(found, key=lambda width: abs(found[width] - operations))


@torch.inference_mode()
def _operations(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# ---- the result ------------------------------------------------------------------------------------------------------


def read_results(plan: Plan) -> Results:
    """Return what is evaluated by now."""
    results: Results = {}
    for count in plan.scale.counts:
        for seed in plan.seeds(count):
            for folder in plan.evaluations(seed, count).values():
                if not (folder / EVALUATED).is_file():
                    continue
                evaluation = Evaluation.load(folder)
                for row in evaluation.rows:
                    kind = re.findall(r"runs/([\w-]+)@", row.model["source"])[-1]
                    model = _model(plan, kind, row.steps, seed, count)
                    results[model] = Measured(row, evaluation.crops, evaluation)
    return results


def _model(plan: Plan, kind: str, steps: int | None, seed: int, count: int) -> Model:
    return Model(plan.model(kind, seed, count).relative_to(plan.out).as_posix(), plan.scale.protocol, steps)


def curve(plan: Plan, results: Results, series: Series, metric: str) -> dict[int, list[float]]:
    """Return a metric by images seen, a value for each seed."""
    points: dict[int, list[float]] = {}
    for count in plan.scale.counts:
        models = [_model(plan, series.run, series.steps, seed, count) for seed in plan.seeds(count)]
        rows = [results[model].row for model in models if model in results]
        if values := [_value(row, metric) for row in rows]:
            points[count] = values
    return points


def _value(row: Row, metric: str) -> float:
    if metric in row.image_metrics:
        return row.image_metrics[metric].mean
    value = row.distances.get(EXTRACTOR, {}).get(metric, math.nan)
    return 1000 * value if metric == "kid" else value


def verdict(plan: Plan, results: Results, series: Series) -> tuple[str, list[str]]:
    """Return the verdict on one of our curves at its last point, and in words its tests and where FD crosses.

    It is compared with the better KL-VAE by each metric; seed 0. An FD's assumed margin is half of what the seeds
    differ by, where that is more. Until the last count nothing is concluded, and nothing of many steps.
    """
    points = curve(plan, results, series, FRECHET)
    rivals = [other for other in THEIRS if set(points) <= set(curve(plan, results, other, FRECHET))]
    if plan.scale.counts[-1] not in points or not rivals:
        return conclude([], complete=False), []
    nearest = {n: min(statistics.mean(curve(plan, results, other, FRECHET)[n]) for other in rivals) for n in points}
    told = trend({n: statistics.mean(values) / nearest[n] - 1 for n, values in points.items()})
    if series.steps != 1:
        return f"no verdict, {STEPS} times the operations", [told]
    last, outcomes, words = max(points), [], []
    for metric in (FRECHET, LPIPS):
        best = min(rivals, key=lambda other: statistics.mean(curve(plan, results, other, metric)[last]))
        a, b = (_model(plan, s.run, s.steps, 0, last) for s in (series, best))
        test = Test("better", metric, a, b)
        difference = measure(results, test)
        if metric == FRECHET and isinstance(difference, Difference):
            margin = max(FRECHET_MARGIN, *(seed_margin(plan, results, s) for s in (series, best)))
            difference = frechet_difference(difference.mean + difference.reference, difference.reference, margin)
        outcomes.append(judge(test, difference))
        text = f"{METRICS[metric][0]} better than that of {best.title} after {last:,} images"
        words.append(in_words(text, outcomes[-1], difference))
    return conclude(outcomes, True, plan.scale.rehearsal), [*words, told]


def seed_margin(plan: Plan, results: Results, series: Series) -> float:
    """Return half of the largest difference of FD between seeds, as a share of their mean; 0 without seeds."""
    points = curve(plan, results, series, FRECHET).values()
    return max(((max(values) - min(values)) / statistics.mean(values) / 2 for values in points), default=0.0)


def trend(gaps: dict[int, float]) -> str:
    """Return in words where the gap, a share of the rival's FD by images seen, changes its sign; else how it grows."""
    told = ", ".join(f"{gap:+.0%} after {n:,}" for n, gap in gaps.items())
    for (n, gap), (m, after) in pairwise(gaps.items()):
        if gap * after < 0:
            crossing = n * (m / n) ** (gap / (gap - after))  # a straight line over the logarithm
            return f"FD crosses after about {crossing:,.0f} images: {told}"
    if len(gaps) < 2:
        return f"FD: {told}"
    (n, first), (m, last) = next(iter(gaps.items())), list(gaps.items())[-1]
    return f"FD does not cross: {told}; {(last - first) / math.log2(m / n):+.1%} a doubling"


def write(plan: Plan) -> Path:
    """Write table.md and the curves of what is measured by now. Return the path of the table."""
    results, scale = read_results(plan), plan.scale
    lines = [f"# Reconstruction, scale `{plan.scale_name}`, encoder `{plan.encoder}`", ""]
    lines += [f"{CLAIM}. Paper: {PAPER}.", ""]
    if scale.rehearsal:
        lines += ["A rehearsal: its figures say nothing about the method.", ""]
    lines += [
        f"{scale.protocol}, features of {EXTRACTOR}; an FD has no interval: ±5 % is assumed, or half of what seeds "
        f"differ by, if that is more. The claim is judged by the first, {OURS[0].title}.",
        "",
    ]
    for series in OURS:
        conclusion, words = verdict(plan, results, series)
        lines += [f"- {series.title}: **{conclusion}**", *(f"    - {line}" for line in words)]
    for metric, (title, digits) in METRICS.items():
        rows = [["images seen", *(f"{count:,}" for count in scale.counts)]]
        for series in (*OURS, *THEIRS):
            points = curve(plan, results, series, metric)
            rows.append([series.title, *(_cell(points.get(count, ()), digits) for count in scale.counts)])
        lines += ["", f"## {title}", "", *markdown_table(rows)]
    lines += ["", "## Commands", "", *dict.fromkeys(f"    {line['command']}" for line in read_log(plan.log))]
    (plan.out / "table.md").write_text("\n".join(lines) + "\n")
    if results:
        draw(plan, results, plan.out / "curves.png")
    return plan.out / "table.md"


def _cell(values: Sequence[float], digits: int) -> str:
    """Return the mean, and where there are several the least and the largest."""
    if not values:
        return "not run"
    mean, low, high = (f"{f(values):.{digits}f}" for f in (statistics.mean, min, max))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def draw(plan: Plan, results: Results, path: Path) -> None:
    """Draw four metrics against images seen; bars are the least and the largest of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes, metric in zip(panels, (FRECHET, "kid", LPIPS, "psnr"), strict=True):
        for color, series in enumerate((*OURS, *THEIRS)):
            if not (points := curve(plan, results, series, metric)):
                continue
            means = [statistics.mean(values) for values in points.values()]
            bars = [[mean - min(v) for mean, v in zip(means, points.values(), strict=True)]]
            bars += [[max(v) - mean for mean, v in zip(means, points.values(), strict=True)]]
            style = {"color": f"C{color}", "marker": "o", "linestyle": "--" if series in THEIRS else "-"}
            axes.errorbar(list(points), means, yerr=bars, capsize=3, label=series.title, **style)
        axes.set(xscale="log", xlabel="images seen", title=METRICS[metric][0])
        axes.set_xticks(plan.scale.counts, [f"{count:,}" for count in plan.scale.counts], minor=False)
        axes.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> int:
    """Run the commands as far as time allows, write the table. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="tiny", help="default: tiny, a rehearsal")
    parser.add_argument("--data", nargs="+", required=True, help="photographs to train on: folders, tar files")
    parser.add_argument("--eval", nargs="+", required=True, dest="held_out", help="held-out photographs")
    parser.add_argument("--encoder", default="ssdd-f8c4-demo", help="whose encoder is shared: a run, a model's folder")
    parser.add_argument("--out", type=Path, default=Path("outputs/curves"), help="default: outputs/curves")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop cleanly; run again to go on")
    options = parser.parse_args(arguments)
    out = options.out / options.scale / Path(options.encoder).name
    plan = Plan(options.scale, out, options.encoder, tuple(options.data), tuple(options.held_out))
    deadline = time.monotonic() + options.minutes * 60

    def work() -> None:
        facts = {"data": plan.data, "eval": plan.held_out, "encoder": plan.encoder, "scale": asdict(plan.scale)}
        begin(plan.out, facts)
        open_source(plan.held_out)  # what is missing is said now, not after hours
        load_extractor(EXTRACTOR)
        lpips_metric("squeeze")
        run_jobs(plan.jobs(), plan.log, deadline)

    return run_until_stopped("curves", work, lambda: write(plan))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
