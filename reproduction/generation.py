"""The claim about generation at a small scale: a DiT on the coarser latents of SSDD against one on a KL-VAE's.

    python reproduction/generation.py --scale cpu --data photos-*.tar --sets 'caltech101/*' 'hires/*'

Trains the tokenizers alike, tokenizes the photographs of each set, and trains a DiT on each, alike and at a constant
rate, by ``ssdd`` alone. Then it draws samples of the averaged weights after several numbers of latents, of classes as
the photographs have them, and compares them with the photographs.
What is finished is not done again: after Ctrl-C, or the time of ``--minutes``, run the same again. ``--tokenizers`` is
for a part, and two commands may do two parts at once. It writes curves.png and table.md to OUT/SCALE. Exit status: 0
all is done; 75 stopped, run it again.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(root := Path(__file__).parents[1]), str(root / "src")]  # of this checkout, installed or not

from reproduction.claims import FRECHET, Model, Test, conclude, frechet_difference, in_words, judge  # noqa: E402
from reproduction.jobs import Job, Stopped, begin, precision_options, read_log, run_jobs, run_until_stopped  # noqa: E402
from ssdd.evaluation.features import load_extractor  # noqa: E402
from ssdd.runtime.files import write_json  # noqa: E402

EXTRACTOR = "mobilenet_v2-imagenet"
CLAIM = "A DiT on SSDD's f16c4 latents, a quarter of the tokens, generates as well as one on a KL-VAE's f8c4"
PAPER = "generation quality preserved with 3.8 times faster sampling (DiT-XL/2, ImageNet 256 px)"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_BATCH = 32


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that is compared. recipe: of ``ssdd train``."""

    title: str
    recipe: str
    latent: str


TOKENIZERS = {
    "ssdd-f16c4": Tokenizer("SSDD f16c4", "encoder", "f16c4"),
    "kl-vae-f8c4": Tokenizer("KL-VAE f8c4", "kl-vae", "f8c4"),
    "ssdd-f8c4": Tokenizer("SSDD f8c4", "encoder", "f8c4"),
}
CANDIDATE, BASELINE = "ssdd-f16c4", "kl-vae-f8c4"


@dataclass(frozen=True)
class Scale:
    """How large the models are and how long they are trained, all alike.

    Attributes:
        recipes: scale of the tokenizers' recipes.
        crops: that each tokenizer sees.
        side: of the images that are tokenized, in pixels.
        generator: options of ``ssdd generate train``.
        latents: counts of latents seen at which a DiT is measured; the last is its length.
        samples: that are drawn for each.
        decoding_steps: of SSDD.
        gan: whether the KL-VAE is trained with one, which makes it worse where training is short.
        rehearsal: too short for any verdict.
    """

    recipes: str
    crops: int
    side: int
    generator: tuple[str, ...]
    latents: tuple[int, ...]
    samples: int
    guidance: float = 3.0
    steps: int = 20
    decoding_steps: int = 2
    gan: bool = True
    rehearsal: bool = False


SCALES = {
    "gpu": Scale(
        recipes="gpu",
        crops=256_000,
        side=256,
        generator=("--recipe", "gpu", "--size", "S/2"),
        latents=(512_000, 1_024_000, 2_048_000),
        samples=10_000,
        steps=50,
    ),
    "cpu": Scale(
        recipes="cpu",
        crops=19_200,
        side=64,
        generator=("--recipe", "tiny", "--size", "tiny/1", "--compile"),
        latents=(25_600, 51_200, 102_400),
        samples=1000,
        gan=False,
    ),
    "tiny": Scale(
        recipes="tiny",
        crops=32,
        side=32,
        generator=("--recipe", "tiny", "--size", "tiny/1"),
        latents=(64, 128),
        samples=16,
        steps=2,
        rehearsal=True,
    ),
}
"""``gpu``: hours of one GPU. ``cpu``: eight hours of one core. ``tiny``: a rehearsal, whose figures say nothing."""


@dataclass(frozen=True)
class Plan:
    """Options of a comparison.

    Attributes:
        out: folder of this scale.
        sets: patterns of the names of the photographs of each.
        tokenizers: that are trained and measured now.
    """

    scale_name: str
    out: Path
    data: tuple[str, ...]
    sets: tuple[str, ...]
    tokenizers: tuple[str, ...] = tuple(TOKENIZERS)

    @property
    def scale(self) -> Scale:
        """Return the scale itself."""
        return SCALES[self.scale_name]

    @property
    def log(self) -> Path:
        """Return the file with a line about each command."""
        return self.out / "jobs.jsonl"

    def tokenizer(self, name: str) -> Path:
        """Return the folder of a tokenizer's run."""
        return self.out / "runs" / name

    def latents(self, name: str, pattern: str) -> Path:
        """Return the folder of a set's latents by a tokenizer."""
        return self.out / "latents" / f"{name}@{_slug(pattern)}"

    def generator(self, name: str, pattern: str) -> Path:
        """Return the folder of a DiT's run."""
        return self.out / "runs" / f"dit@{name}@{_slug(pattern)}"

    def earlier(self, name: str, pattern: str, seen: int) -> Path:
        """Return the folder of a DiT after so many latents."""
        return self.generator(name, pattern) / "exports" / f"{seen:012d}"

    def jobs(self) -> list[Job]:
        """Return every command, after those that it needs."""
        jobs = [self._train_tokenizer(name) for name in self.tokenizers]
        for pattern in self.sets:
            for name in self.tokenizers:
                latents, run = self.latents(name, pattern), self.generator(name, pattern)
                jobs += [self._tokenize(name, pattern, latents), self._train_generator(latents, run)]
                jobs += [self._export(run, seen) for seen in self.scale.latents]
        return jobs

    def _train_tokenizer(self, name: str) -> Job:
        scale, tokenizer, run = self.scale, TOKENIZERS[name], self.tokenizer(name)
        arguments = ["train", tokenizer.recipe, "--scale", scale.recipes, "--latent", tokenizer.latent]
        arguments += ["--total-images", str(scale.crops), "--validation.images", "0"]
        arguments += ["--optimizer.warmup-images", str(scale.crops // 20)]
        arguments += ["--optimizer.decay-images", str(scale.crops // 2)]
        arguments += ["--average.halflife-images", str(min(5000, scale.crops // 12))]
        arguments += precision_options()
        if tokenizer.recipe == "kl-vae" and not scale.gan:
            arguments += ["--loss.adversarial", "0"]
        elif tokenizer.recipe == "kl-vae":
            arguments += ["--loss.adversarial-from-images", str(scale.crops // 2)]
            arguments += ["--discriminator.warmup-images", str(scale.crops // 20)]
        arguments += ["--out", str(run), "--data.paths", *self.data]
        return Job(name, tuple(arguments), run / "model" / "config.json")

    def _tokenize(self, name: str, pattern: str, latents: Path) -> Job:
        arguments = ["tokenize", *self.data, "--only", pattern, "--size", str(self.scale.side), "--flips"]
        arguments += ["--model", str(self.tokenizer(name)), "--out", str(latents)]
        return Job(latents.name, tuple(arguments), latents / "manifest.json")

    def _train_generator(self, latents: Path, run: Path) -> Job:
        scale = self.scale
        interval, total = str(scale.latents[0]), scale.latents[-1]
        arguments = ["generate", "train", str(latents), *scale.generator, "--total-images", str(total)]
        arguments += ["--batch-size", str(_BATCH), "--optimizer.decay-images", "0"]
        arguments += ["--average.halflife-images", str(scale.latents[0] // 10)]
        arguments += ["--log.checkpoint-images", interval, "--log.milestone-images", interval, "--out", str(run)]
        return Job(run.name, tuple(arguments), run / "model" / "config.json")

    def _export(self, run: Path, seen: int) -> Job:
        folder = run / "exports" / f"{seen:012d}"
        return Job(run.name, ("train", "export", str(run), "--images", str(seen)), folder / "config.json")


def _slug(pattern: str) -> str:
    """Return a name for files, another one for each pattern."""
    words = re.sub(r"\W+", "-", pattern).strip("-")
    return f"{words}-{sha256(pattern.encode()).hexdigest()[:6]}"


# ---- the measurements ------------------------------------------------------------------------------------------------


def measure(plan: Plan, deadline: float) -> None:
    """Measure what is not measured yet, set by set, a file for each. Raise Stopped if the time is over.

    A row has set, tokenizer, latents seen, the distances of samples from the photographs, and the operations of a DiT
    for one latent; 0 latents seen stands for latents of photographs, decoded, which show what the decoder costs.
    """
    from ssdd.data.sources import open_source
    from ssdd.evaluation.protocols import EvaluationSet
    from ssdd.generation.evaluation import measure_reference, reference_protocol

    for pattern in plan.sets:
        known = {(row["tokenizer"], row["latents seen"]) for row in read_results(plan) if row["set"] == pattern}
        points = [(name, seen) for name in plan.tokenizers for seen in (0, *plan.scale.latents)]
        if missing := [point for point in points if point not in known]:
            photographs = EvaluationSet(open_source(plan.data).matching(pattern), reference_protocol(plan.scale.side))
            reference = measure_reference(photographs, [load_extractor(EXTRACTOR, DEVICE)], workers=0)
            for name, seen in missing:
                if time.monotonic() >= deadline:
                    raise Stopped
                found = _measured(plan, name, pattern, seen, photographs.source, reference)
                print(f"{pattern} {name} {seen:,} latents: FD {found[FRECHET]:.1f}", flush=True)
                row = {"set": pattern, "tokenizer": name, "latents seen": seen, **found}
                path = plan.out / "measured" / f"{_slug(pattern)}@{name}@{seen}.json"
                path.parent.mkdir(exist_ok=True)
                write_json(path, row)


def _measured(plan: Plan, name: str, pattern: str, seen: int, source: Any, reference: Any) -> dict[str, float]:
    """Return the distances of samples after so many latents from the photographs, and the DiT's GFLOP for a latent."""
    from ssdd.evaluation.decoders import load_decoder_of
    from ssdd.generation.evaluation import measure_images, photograph_classes, proportional_labels
    from ssdd.generation.result import load_generator
    from ssdd.generation.sampling import Sampling, generate, generate_images
    from ssdd.tokenization import LatentDataset

    latents, count = LatentDataset(plan.latents(name, pattern)), plan.scale.samples
    decoder = load_decoder_of(latents.model, str(plan.tokenizer(name)), torch.device(DEVICE))
    if TOKENIZERS[name].recipe != "kl-vae":
        decoder.set_steps(plan.scale.decoding_steps)
    if not seen:
        return (measure_images(_decoded(latents, decoder, count), range(count), reference) or {})[EXTRACTOR]
    generator = load_generator(plan.earlier(name, pattern, seen), torch.device(DEVICE))
    labels: list[int | None] = [None] * count
    if latents.classes:
        labels = proportional_labels(photograph_classes(source, latents.classes), count, seed=0)
    sampling = Sampling(plan.scale.steps, plan.scale.guidance if latents.classes else 1.0)
    images = generate_images(generator, decoder, labels, sampling)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others are not counted on a CPU
        generate(generator, labels[:1], Sampling(steps=1, guidance=1.0))
    gflop = {"DiT GFLOP": counter.get_total_flops() / 1e9}
    return (measure_images(images, range(count), reference) or {})[EXTRACTOR] | gflop


def _decoded(latents: Any, decoder: Any, count: int) -> Iterator[Any]:
    """Yield images, uint8 (B, H, W, 3), of evenly spaced latents."""
    from ssdd.data.pixels import tensor_to_image

    numbers = [i * len(latents) // count for i in range(count)]
    for first in range(0, count, _BATCH):
        z = torch.stack([torch.as_tensor(latents[i]["mean"]) for i in numbers[first : first + _BATCH]])
        yield tensor_to_image(decoder.decode(z.float().to(DEVICE)).sample.cpu())


def read_results(plan: Plan) -> list[dict[str, Any]]:
    """Return the rows that are measured."""
    return [json.loads(path.read_text()) for path in sorted((plan.out / "measured").glob("*.json"))]


# ---- the result ------------------------------------------------------------------------------------------------------


def training_seconds(plan: Plan, run: str) -> float:
    """Return how long a run was trained, over all of its starts."""
    lines = [line for line in read_log(plan.log) if line["run"] == run]
    return sum(float(line["seconds"]) for line in lines if str(line["command"]).startswith("ssdd generate train"))


def curve(plan: Plan, results: Iterable[dict[str, Any]], pattern: str, name: str) -> dict[int, float]:
    """Return the Fréchet distance after each number of latents, in order."""
    rows = [row for row in results if (row["set"], row["tokenizer"]) == (pattern, name)]
    return dict(sorted((row["latents seen"], row[FRECHET]) for row in rows))


def verdict(plan: Plan, pattern: str) -> tuple[str, list[str]]:
    """Return the verdict on a set, and its tests in words: after the same latents, and the same operations.

    It is undecided where samples are about as far from the photographs as decoded latents of photographs: then it is
    the decoders that are compared.
    """
    results, last = read_results(plan), plan.scale.latents[-1]
    ours, theirs = (curve(plan, results, pattern, name) for name in (CANDIDATE, BASELINE))
    if last not in ours or last not in theirs:
        return conclude([], False), []
    a, b = Model(CANDIDATE, "", None), Model(BASELINE, "", None)
    same_latents = frechet_difference(ours[last], theirs[last])
    tests = [(Test("keeps", FRECHET, a, b), same_latents, f"FD no more than 5 % worse after {last:,} latents")]
    rows = {row["tokenizer"]: row for row in results if (row["set"], row["latents seen"]) == (pattern, last)}
    cost = rows[CANDIDATE]["DiT GFLOP"] / rows[BASELINE]["DiT GFLOP"]
    same_work = frechet_difference(ours[last], _value_at(theirs, last * cost))
    text = f"FD better after the same operations, {cost:.2f} times as many a latent"
    tests.append((Test("better", FRECHET, a, b), same_work, text))
    outcomes = [judge(test, difference) for test, difference, _ in tests]
    words = [in_words(text, outcome, d) for (_, d, text), outcome in zip(tests, outcomes, strict=True)]
    for name, points in ((CANDIDATE, ours), (BASELINE, theirs)):
        floor = Test("better", FRECHET, Model(f"decoded {name}", "", None), Model(name, "", None))
        if judge(floor, frechet_difference(points[0], points[last])) != "yes":
            outcomes.append("undecided")
            words.append(f"{name}: samples are as near as decoded latents, {points[last]:.1f} and {points[0]:.1f}")
    return conclude(outcomes, True, plan.scale.rehearsal), words


def _value_at(points: dict[int, float], seen: float) -> float:
    """Return the distance after so many latents, on straight lines between the points; that of the first before it."""
    import numpy as np

    measured = {count: value for count, value in points.items() if count}
    return float(np.interp(seen, list(measured), list(measured.values())))


def write(plan: Plan) -> Path:
    """Write table.md and the curves of what is measured by now. Return the path of the table."""
    results, scale = read_results(plan), plan.scale
    lines = [f"# Generation, scale `{plan.scale_name}`", "", f"{CLAIM}. Paper: {PAPER}.", ""]
    if scale.rehearsal:
        lines += ["A rehearsal: its figures say nothing about the method.", ""]
    lines += [
        f"FD and KID x 1000 on {EXTRACTOR}'s features, {scale.samples} samples, {scale.steps} Euler steps, guidance "
        f"{scale.guidance:g}; SSDD decodes in {scale.decoding_steps} steps; tokenizers trained on {scale.crops:,} "
        "crops each; one seed. An FD has no interval: ±5 % is assumed.",
    ]
    for pattern in plan.sets:
        conclusion, tests = verdict(plan, pattern)
        heads = ["tokenizer", "minutes", "decoded latents", *(f"{seen:,}" for seen in scale.latents)]
        lines += ["", f"## {pattern}: {conclusion}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for name, tokenizer in TOKENIZERS.items():
            rows = {r["latents seen"]: r for r in results if (r["set"], r["tokenizer"]) == (pattern, name)}
            cells = [
                f"{rows[n][FRECHET]:.1f} / {1000 * rows[n]['kid']:.0f}" if n in rows else "not run"
                for n in (0, *scale.latents)
            ]
            minutes = training_seconds(plan, plan.generator(name, pattern).name) / 60
            lines.append(f"| {' | '.join([tokenizer.title, f'{minutes:.1f}', *cells])} |")
        lines += ["", *(f"- {test}" for test in tests)]
    if results:
        draw(plan, results, plan.out / "curves.png")
    lines += ["", "## Commands", "", *dict.fromkeys(f"    {line['command']}" for line in read_log(plan.log))]
    (plan.out / "table.md").write_text("\n".join(lines) + "\n")
    return plan.out / "table.md"


def draw(plan: Plan, results: list[dict[str, Any]], path: Path) -> None:
    """Draw the distance against latents seen, and against minutes of training, a row of panels for each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3 * len(plan.sets)), layout="constrained")
    panels = figure.subplots(len(plan.sets), 2, squeeze=False, sharey="row")
    for (by_latents, by_minutes), pattern in zip(panels, plan.sets, strict=True):
        for color, (name, tokenizer) in enumerate(TOKENIZERS.items()):
            points = curve(plan, results, pattern, name)
            floor, seen = points.pop(0, None), list(points)
            minutes = training_seconds(plan, plan.generator(name, pattern).name) / 60
            style = {"color": f"C{color}", "marker": "o"}
            by_latents.plot(seen, points.values(), label=tokenizer.title, **style)
            by_minutes.plot([n / plan.scale.latents[-1] * minutes for n in seen], points.values(), **style)
            for axes in (by_latents, by_minutes):
                if floor is not None:
                    axes.axhline(floor, color=f"C{color}", linestyle=":", linewidth=1)
        by_latents.set(xlabel="latents seen", ylabel="Fréchet distance", title=f"{pattern} (dotted: decoded latents)")
        by_minutes.set(xlabel="minutes of training", xlim=(0, None), ylim=(0, None))
    panels[0][0].legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str]) -> int:
    """Run the commands, measure as far as time allows, write the table. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="tiny", help="default: tiny, a rehearsal")
    parser.add_argument("--data", nargs="+", required=True, help="photographs: folders, tar files")
    parser.add_argument("--sets", nargs="+", required=True, help="patterns of the names of each set's photographs")
    parser.add_argument("--out", type=Path, default=Path("outputs/generation"), help="default: outputs/generation")
    parser.add_argument("--tokenizers", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS), help="default: all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop cleanly; run again to go on")
    options = parser.parse_args(arguments)
    out, tokenizers = options.out / options.scale, tuple(options.tokenizers)
    plan = Plan(options.scale, out, tuple(options.data), tuple(options.sets), tokenizers)
    deadline = time.monotonic() + options.minutes * 60

    def work() -> None:
        begin(plan.out, {"data": plan.data, "scale": asdict(plan.scale)})
        load_extractor(EXTRACTOR, DEVICE)  # what is missing is said now, not after hours
        run_jobs(plan.jobs(), plan.log, deadline)
        measure(plan, deadline)

    return run_until_stopped("generation", work, lambda: write(plan))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
