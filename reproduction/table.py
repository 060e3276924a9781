"""What ``run.py`` makes of finished evaluations: differences, verdicts, tables, the plot of steps."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from reproduction.claims import (
    COST_LIMIT,
    DETAIL,
    FRECHET,
    FRECHET_MARGIN,
    TOLERANCE,
    Claim,
    Difference,
    Model,
    Test,
    claims,
    conclude,
    frechet_difference,
    judge,
)
from reproduction.runs import SCALES, Scale, images_seen, lineage
from ssdd.evaluation.results import REPORT, RESULTS, Crops, Evaluation, Row, differences

EXTRACTOR = "mobilenet_v2-imagenet"
EVALUATED = REPORT
"""File that ``ssdd evaluate`` writes last: where it is, an evaluation is finished."""
RULE = (
    "A test says yes where the whole interval of the paired difference is on the side that the claim needs, no where "
    f'all of it is on the other side, and is undecided between. "Keeps" allows {TOLERANCE:.0%} worse; detail counts '
    f"up to that of the originals; an FD has no interval, and ±{FRECHET_MARGIN:.0%} of it is assumed; a cost of up to "
    f"{COST_LIMIT:g} times is equal, and more leaves a claim undecided. A claim holds if all tests say yes, does not "
    "hold if one says no."
)
_METRIC_DIGITS = {"psnr": 2, "ssim_gaussian_11": 3, "lpips_squeeze": 3, DETAIL: 3}
_DISTANCE_DIGITS = {"frechet": 1, "kid": 3, "density": 3, "coverage": 3}
_HEADINGS = (
    *("model", "images seen", "decode GFLOP", "decode/s"),
    *("PSNR", "SSIM", "LPIPS", "detail", "FD", "KID", "density", "coverage"),
)
_NOTES = (
    "± is half of a 95 % interval by the bootstrap over images. FD and KID are on the",
    f"features of {EXTRACTOR}; KID times 1000, ± its standard error over subsets.",
)


class Measured(NamedTuple):
    """A row of an evaluation, with what its crops are."""

    row: Row
    crops: Crops
    evaluation: Evaluation


Results = dict[Model, Measured]


def read_results(folder: Path) -> Results:
    """Return what the evaluations below a folder found; each has a folder RUN@PROTOCOL@STEPS.

    Raises ValueError if two evaluations by one protocol are of other photographs.
    """
    results: Results = {}
    fingerprints: dict[str, str] = {}
    for path in sorted(folder.glob(f"*/{RESULTS}")):
        run, protocol, steps = path.parent.name.split("@")
        evaluation = Evaluation.load(path.parent)
        fingerprint = evaluation.data["fingerprint"]
        if fingerprints.setdefault(protocol, fingerprint) != fingerprint:
            raise ValueError(f"{path}: expected the photographs of the other evaluations, found others")
        if evaluation.finished:
            results |= {
                Model(run, protocol, None if steps == "own" else row.steps): Measured(row, evaluation.crops, evaluation)
                for row in evaluation.rows
            }
    return results


def measure(results: Results, test: Test) -> Difference | float | None:
    """Return the paired difference (for costs the ratio) that a test asks for; None where a number is missing."""
    if test.a not in results or test.b not in results:
        return None
    (a, crops, evaluation), b = results[test.a], results[test.b].row
    if test.kind == "cost":
        own, reference = a.costs["decode_gflop"], b.costs["decode_gflop"]
        return own / reference if own and reference else None
    if test.metric == FRECHET:
        distances = [row.distances.get(EXTRACTOR, {}).get(FRECHET) for row in (a, b)]
        return None if None in distances else frechet_difference(*distances)  # type: ignore[arg-type]
    if test.metric not in a.image_metrics or test.metric not in b.image_metrics:
        return None
    found, mean = a.image_metrics[test.metric], b.image_metrics[test.metric].mean
    if test.kind == "detail" and mean > 1:  # the originals are what is to be kept
        return Difference(found.mean - 1, found.low - 1, found.high - 1, 1.0)
    paired = differences(a, b, crops, evaluation.metrics)[test.metric]
    return Difference(paired.mean, paired.low, paired.high, mean)


def build_table(
    scale_name: str, results: Results, jobs: list[dict[str, Any]], machines: dict[str, str]
) -> dict[str, Any]:
    """Return the whole table as plain values. jobs: lines of ``jobs.jsonl``; machines: by run."""
    scale = SCALES[scale_name]
    seconds = dict.fromkeys(machines, 0.0)
    for job in jobs:
        seconds[job["run"]] += job["seconds"] if job["command"].startswith("ssdd train") else 0.0
    return {
        "scale": scale_name,
        "settings": asdict(scale),
        "rule": RULE,
        "seconds": seconds,
        "rows": [_row(scale, claim, results, jobs) for claim in claims(scale).values()],
        "machines": machines,
    }


def _row(scale: Scale, claim: Claim, results: Results, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    tests = {test: measure(results, test) for test in claim.tests}
    outcomes = {test: judge(test, measured) for test, measured in tests.items()}
    complete = all(model in results for model in claim.models)
    runs = {name for model in claim.models for name in lineage(scale, model.run)}
    return {
        "row": claim.row,
        "claim": claim.text,
        "paper": claim.paper,
        "verdict": conclude(list(outcomes.values()), complete, scale.rehearsal),
        "tests": [
            {
                "question": question(test),
                "outcome": outcomes[test],
                "measured": asdict(measured) if isinstance(measured, Difference) else measured,
            }
            for test, measured in tests.items()
        ],
        "models": [_model(scale, model, results.get(model)) for model in claim.models],
        "commands": list(dict.fromkeys(job["command"] for job in jobs if job["run"] in runs)),
    }


def _model(scale: Scale, model: Model, measured: Measured | None) -> dict[str, Any]:
    return {
        "label": model.label,
        "protocol": model.protocol,
        "run": measured is not None,
        "images_seen": images_seen(scale, model.run),
        **(_facts(measured.row) if measured else {}),
    }


def _facts(row: Row) -> dict[str, Any]:
    """Return what the table keeps of a row, as plain values."""
    return {
        "image_metrics": {name: vars(found) for name, found in row.image_metrics.items()},
        "distances": row.distances,
        "latent_shape": row.latent_shape,
        "costs": dict(row.costs),
    }


def question(test: Test) -> str:
    """Return a test in words."""
    metric = {FRECHET: "FD", "lpips_squeeze": "LPIPS", DETAIL: "detail"}.get(test.metric, test.metric)
    words = {
        "better": f"{metric} better than",
        "keeps": f"{metric} no more than {TOLERANCE:.0%} worse than",
        "detail": f"{metric} no more than {TOLERANCE:.0%} below",
        "cost": f"operations at most {COST_LIMIT:g} times those of",
    }[test.kind]
    return f"{test.a.label}: {words} {test.b.label}"


def markdown(table: dict[str, Any]) -> str:
    """Return the table as ``table.md`` has it."""
    lines = [f"# Reproduction, scale `{table['scale']}`", ""]
    if table["settings"]["rehearsal"]:
        lines += ["A rehearsal: its figures say nothing about the method.", ""]
    summary = [[row["claim"], row["paper"], _ours(row), row["verdict"]] for row in table["rows"]]
    lines += [*markdown_table([["claim", "paper", "ours", "verdict"], *summary]), "", table["rule"], "", *_NOTES]
    for row in table["rows"]:
        lines += ["", f"## {row['row']}: {row['claim']}", "", f"Paper: {row['paper']}. Here: **{row['verdict']}**."]
        if not any(model["run"] for model in row["models"]):
            continue
        lines += ["", *markdown_table([list(_HEADINGS), *map(_cells, row["models"])])]
        if row["tests"]:
            lines += ["", *(f"- {t['question']}: **{t['outcome']}**{_measured(t['measured'])}" for t in row["tests"])]
    if table["machines"]:
        rows = [[run, f"{table['seconds'][run] / 60:.1f}", machine] for run, machine in table["machines"].items()]
        commands = dict.fromkeys(line for row in table["rows"] for line in row["commands"])
        lines += ["", "## Runs", "", *markdown_table([["run", "minutes", "machine"], *rows])]
        lines += ["", "## Commands", "", *(f"    {line}" for line in commands)]
    return "\n".join(lines) + "\n"


def _ours(row: dict[str, Any]) -> str:
    """Return FD and LPIPS of the models of a row in a line."""
    cells = [dict(zip(_HEADINGS, _cells(model), strict=True)) for model in row["models"] if model["run"]]
    return "; ".join(f"{c['model']}: FD {c['FD']}, LPIPS {c['LPIPS']}" for c in cells) or "not run"


def _measured(value: dict[str, float] | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f" ({value:.2f} times)"
    return f" ({value['mean']:+.4g} [{value['low']:+.4g}, {value['high']:+.4g}])"


def _cells(model: dict[str, Any]) -> list[str]:
    cells = [model["label"], f"{model['images_seen']:,}"]
    if not model["run"]:
        return [*cells, "not run", *[""] * (len(_HEADINGS) - 3)]
    cells += [f"{model['costs']['decode_gflop']:,.1f}", f"{model['costs']['decode_rate']:.1f}"]
    for name, digits in _METRIC_DIGITS.items():
        mean, half = estimate(model, name)
        cells.append("-" if math.isnan(mean) else f"{mean:.{digits}f} ±{half:.{digits}f}")
    distances = model["distances"].get(EXTRACTOR, {})
    for name, digits in _DISTANCE_DIGITS.items():
        value = distances.get(name)
        if value is None:
            cells.append("-")
        elif name == "kid":
            error = 1000 * distances["kid_standard_error"]  # rounding alone where the set is one subset
            cells.append(f"{1000 * value:.1f}" + (f" ±{error:.1f}" if error > 1e-6 else ""))
        else:
            cells.append(f"{value:.{digits}f}")
    return cells


def estimate(row: dict[str, Any], metric: str) -> tuple[float, float]:
    """Return a metric's mean and half of its interval; NaN where it was not measured, 0 where it has no interval."""
    if metric == FRECHET:
        return row["distances"].get(EXTRACTOR, {}).get(FRECHET, math.nan), 0.0
    found = row["image_metrics"].get(metric)
    if not found:
        return math.nan, math.nan
    return found["mean"], (found["high"] - found["low"]) / 2


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table, the first row as its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *body]


def plot_steps(scale_name: str, results: Results, path: Path) -> None:
    """Plot metrics of the teacher against its number of steps, and of the student in one, once there are two."""
    rows = claims(SCALES[scale_name])
    sweep = [model for model in rows["steps"].models if model in results]
    if len(sweep) < 2:
        return
    from matplotlib.figure import Figure

    student = results.get(rows["distillation"].models[0])
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    panels = {"psnr": "PSNR, dB", "lpips_squeeze": "LPIPS", DETAIL: "detail", FRECHET: "FD"}
    for axes, (name, heading) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        steps = [model.steps for model in sweep]
        means, halves = zip(*(estimate(_facts(results[model].row), name) for model in sweep), strict=True)
        axes.errorbar(steps, means, yerr=halves, marker="o", capsize=3, label="not distilled")
        if student is not None:
            mean, half = estimate(_facts(student.row), name)
            axes.errorbar([1], [mean], yerr=[half], marker="s", capsize=3, linestyle="", label="student")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.set_xlabel("steps")
        axes.set_title(heading)
    axes.legend()
    figure.savefig(path, dpi=120)
