"""What ``reproduction.py`` makes of finished evaluations: differences, verdicts, tables, the plot of steps."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssdd.evaluation.protocols import CropKey
from ssdd.evaluation.tables import ImageMetricTable
from ssdd.recipes.claims import (
    COST_LIMIT,
    DETAIL,
    FRECHET,
    FRECHET_MARGIN,
    TOLERANCE,
    Answer,
    Claim,
    Contender,
    Difference,
    Test,
    claims,
    conclude,
    frechet_difference,
    judge,
)
from ssdd.recipes.reproduction import SCALES, images_seen, start_of

EXTRACTOR = "mobilenet_v2-imagenet"
EVALUATION = "evaluation.json"
RULE = (
    "A test says yes where the whole interval of the paired difference is on the side that the claim needs, no where "
    f'all of it is on the other side, and is undecided between. "Keeps" allows {TOLERANCE:.0%} worse; detail counts '
    f"up to that of the originals; an FD has no interval, and ±{FRECHET_MARGIN:.0%} of it is assumed; a cost of up to "
    f"{COST_LIMIT:g} times is equal, and more leaves a claim undecided. A claim holds if all tests say yes, does not "
    "hold if one says no."
)
_IMAGE_METRICS = {"psnr": 2, "ssim_gaussian_11": 3, "lpips_squeeze": 3, DETAIL: 3}
_DISTANCES = {"frechet": 1, "kid": 3, "density": 3, "coverage": 3}
_HEADINGS = (
    *("contender", "images seen", "decode GFLOP", "decode/s"),
    *("PSNR", "SSIM", "LPIPS", "detail", "FD", "KID", "density", "coverage"),
)


@dataclass
class Results:
    """All finished evaluations below a folder.

    rows: of ``evaluation.json``, by contender. fingerprints: of the crops, by protocol.
    """

    rows: dict[Contender, dict[str, Any]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Folders RUN@PROTOCOL@STEPS. Raises ValueError if two of one protocol are of other photographs."""
        results = cls()
        for path in sorted(folder.glob(f"*/{EVALUATION}")):
            run, protocol, _ = path.parent.name.split("@")
            found = json.loads(path.read_text())
            fingerprint = found["data"]["fingerprint"]
            if results.fingerprints.setdefault(protocol, fingerprint) != fingerprint:
                raise ValueError(f"{path}: expected the photographs of the other evaluations, found others")
            for row in found["rows"]:
                results.rows[Contender(run, protocol, row["steps"])] = row
        return results

    def difference(self, test: Test) -> Difference | float | None:
        """What ``judge`` asks for; None where a number is missing."""
        a, b = self.rows.get(test.a), self.rows.get(test.b)
        if a is None or b is None:
            return None
        if test.kind == "cost":
            return a["decode_flops"] / b["decode_flops"]
        if test.metric == FRECHET:
            values = [row["distances"].get(EXTRACTOR, {}).get(FRECHET) for row in (a, b)]
            return None if None in values else frechet_difference(*values)
        if test.metric not in a["image_metrics"] or test.metric not in b["image_metrics"]:
            return None
        own, reference = a["image_metrics"][test.metric], b["image_metrics"][test.metric]["mean"]
        if test.kind == "detail" and reference > 1:  # the originals are what is to be kept
            return Difference(own["mean"] - 1, own["low"] - 1, own["high"] - 1, 1.0)
        paired = self._paired(a, b)[test.metric]
        return Difference(paired.mean, paired.low, paired.high, reference)

    def _paired(self, a: dict[str, Any], b: dict[str, Any]) -> Any:
        names = sorted({key.rpartition("#")[0] for row in (a, b) for key in row["crops"]["key"]})
        numbers = {name: i for i, name in enumerate(names)}
        return _table(a, numbers).minus(_table(b, numbers))

    def answer(self, test: Test) -> Answer:
        found = self.difference(test)
        return Answer(test, judge(test, found), found)


def _table(row: dict[str, Any], numbers: dict[str, int]) -> ImageMetricTable:
    """The crops of a row of ``evaluation.json``, as they were when it was written."""
    table, crops = ImageMetricTable(), row["crops"]
    columns = {name: values for name, values in crops.items() if name != "key"}
    for i, key in enumerate(crops["key"]):
        name, _, crop = key.rpartition("#")
        values = {k: np.array([v[i]]) for k, v in columns.items() if v[i] is not None}
        table.add([CropKey(numbers[name], int(crop), name)], values)
    return table


def table(
    scale_name: str, results: Results, commands: dict[str, list[str]], seconds: dict[str, float]
) -> dict[str, Any]:
    """The whole table, JSON types alone. commands, seconds: of each run, by its name."""
    found = [_row(scale_name, claim, results, commands) for claim in claims(SCALES[scale_name]).values()]
    return {
        "scale": scale_name,
        "settings": asdict(SCALES[scale_name]),
        "rule": RULE,
        "seconds": seconds,
        "rows": found,
    }


def _row(scale_name: str, claim: Claim, results: Results, commands: dict[str, list[str]]) -> dict[str, Any]:
    answers = {test: results.answer(test) for test in claim.tests}
    complete = all(c in results.rows for c in claim.contenders)
    runs = dict.fromkeys(name for c in claim.contenders for name in _line(scale_name, c.run))
    return {
        "row": claim.row,
        "claim": claim.text,
        "paper": claim.paper,
        "verdict": conclude(claim, answers, complete, SCALES[scale_name].rehearsal),
        "tests": [{"question": question(a.test), "outcome": a.outcome, "found": _found(a)} for a in answers.values()],
        "contenders": [_contender(scale_name, c, results.rows.get(c)) for c in claim.contenders],
        "commands": [line for run in runs for line in commands.get(run, [])],
    }


def _line(scale_name: str, run: str) -> list[str]:
    """A run, after those that it starts from."""
    start = start_of(scale_name, run)
    return [*(_line(scale_name, start) if start else []), run]


def _found(answer: Answer) -> dict[str, float] | float | None:
    return asdict(answer.found) if isinstance(answer.found, Difference) else answer.found


def _contender(scale_name: str, contender: Contender, row: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"label": contender.label, "protocol": contender.protocol, "run": row is not None}
    found["images_seen"] = images_seen(scale_name, contender.run)
    if row is not None:
        names = ("image_metrics", "distances", "latent_shape", "decoder_parameters", "decode_flops")
        found |= {name: row[name] for name in (*names, "decode_images_per_second")}
    return found


def question(test: Test) -> str:
    """A test in words."""
    metric = {FRECHET: "FD", "lpips_squeeze": "LPIPS", DETAIL: "detail"}.get(test.metric, test.metric)
    words = {
        "better": f"{metric} better than",
        "keeps": f"{metric} no more than {TOLERANCE:.0%} worse than",
        "detail": f"{metric} no more than {TOLERANCE:.0%} below",
        "cost": f"operations at most {COST_LIMIT:g} times those of",
    }[test.kind]
    where = "" if test.a.protocol.startswith(("crops-128", "paper-128")) else f" ({test.a.protocol})"
    return f"{test.a.label}: {words} {test.b.label}{where}"


def markdown(found: dict[str, Any], machines: dict[str, str]) -> str:
    """table.md. machines: by run."""
    lines = [f"# Reproduction, scale `{found['scale']}`", ""]
    if found["settings"]["rehearsal"]:
        lines += ["A rehearsal: its figures say nothing about the method.", ""]
    lines += ["| claim | paper | ours | verdict |", "|---|---|---|---|"]
    lines += [f"| {r['claim']} | {r['paper']} | {_ours(r)} | {r['verdict']} |" for r in found["rows"]]
    lines += ["", found["rule"], "", "± is half of a 95 % interval by the bootstrap over images. FD and KID are on the"]
    lines += [f"features of {EXTRACTOR}; KID times 1000, ± its standard error over subsets."]
    for row in found["rows"]:
        lines += ["", f"## {row['row']}: {row['claim']}", "", f"Paper: {row['paper']}. Here: **{row['verdict']}**."]
        if not any(c["run"] for c in row["contenders"]):
            continue
        lines += ["", *_markdown_table([list(_HEADINGS), *map(_cells, row["contenders"])])]
        if row["tests"]:
            lines += ["", *(f"- {t['question']}: **{t['outcome']}**{_shown(t['found'])}" for t in row["tests"])]
    if machines:
        lines += ["", "## Runs", ""]
        rows = [[run, f"{found['seconds'].get(run, 0) / 60:.1f}", name] for run, name in machines.items()]
        lines += _markdown_table([["run", "minutes", "machine"], *rows])
        commands = dict.fromkeys(line for row in found["rows"] for line in row["commands"])
        lines += ["", "## Commands", "", *(f"    {line}" for line in commands)]
    return "\n".join(lines) + "\n"


def _ours(row: dict[str, Any]) -> str:
    """The contenders' FD and LPIPS in a line."""
    parts = []
    for c in row["contenders"]:
        cells = dict(zip(_HEADINGS, _cells(c), strict=True))
        parts.append(f"{cells['contender']}: FD {cells['FD']}, LPIPS {cells['LPIPS']}" if c["run"] else "")
    return "; ".join(part for part in parts if part) or "not run"


def _shown(found: dict[str, float] | float | None) -> str:
    if found is None:
        return ""
    if isinstance(found, float):
        return f" ({found:.2f} times)"
    return f" ({found['mean']:+.4g} [{found['low']:+.4g}, {found['high']:+.4g}])"


def _cells(c: dict[str, Any]) -> list[str]:
    where = "" if c["protocol"].startswith(("crops-128", "paper-128")) else f" ({c['protocol']})"
    head = [f"{c['label']}{where}", f"{c['images_seen']:,}"]
    if not c["run"]:
        return [*head, "not run", *[""] * (len(_HEADINGS) - 3)]
    cells = [*head, f"{c['decode_flops'] / 1e9:,.1f}", f"{c['decode_images_per_second']:.1f}"]
    for name, digits in _IMAGE_METRICS.items():
        e = c["image_metrics"].get(name)
        shown = e and e["mean"] is not None
        cells.append(f"{e['mean']:.{digits}f} ±{(e['high'] - e['low']) / 2:.{digits}f}" if shown else "-")
    distances = c["distances"].get(EXTRACTOR, {})
    for name, digits in _DISTANCES.items():
        value = distances.get(name)
        if value is None:
            cells.append("-")
        elif name == "kid":
            error = 1000 * distances["kid_standard_error"]  # rounding alone where the set is one subset
            cells.append(f"{1000 * value:.1f}" + (f" ±{error:.1f}" if error > 1e-6 else ""))
        else:
            cells.append(f"{value:.{digits}f}")
    return cells


def _markdown_table(rows: list[list[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *body]


def plot_steps(scale_name: str, results: Results, path: Path) -> bool:
    """Metrics of the teacher against its number of steps, with intervals, and of the student in one; False if there
    are too few evaluations."""
    scale = SCALES[scale_name]
    sweep = [c for c in claims(scale)["steps"].contenders if c in results.rows]
    if len(sweep) < 2:
        return False
    from matplotlib.figure import Figure

    student = results.rows.get(claims(scale)["distillation"].contenders[0])
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    panels = {"psnr": "PSNR, dB", "lpips_squeeze": "LPIPS", DETAIL: "detail", FRECHET: "FD"}
    for axes, (name, heading) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        values = np.array([_value(results.rows[c], name) for c in sweep])
        steps = [c.steps or 0 for c in sweep]
        axes.errorbar(steps, values[:, 0], yerr=values[:, 1], marker="o", capsize=3, label="not distilled")
        if student is not None:
            mean, half = _value(student, name)
            axes.errorbar([1], [mean], yerr=[half], marker="s", capsize=3, linestyle="", label="student")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.set_xlabel("steps")
        axes.set_title(heading)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


def _value(row: dict[str, Any], name: str) -> tuple[float, float]:
    """Mean and half of the interval."""
    if name == FRECHET:
        return row["distances"].get(EXTRACTOR, {}).get(FRECHET, math.nan), 0.0
    e = row["image_metrics"].get(name)
    return (e["mean"], (e["high"] - e["low"]) / 2) if e else (math.nan, math.nan)
