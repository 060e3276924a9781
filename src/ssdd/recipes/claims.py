"""The paper's claims (arXiv 2510.04961) as tests on evaluations, and the rule that makes verdicts of them.

A test compares two contenders on the same crops of the same photographs. Its outcome is *yes*, *no* or *undecided*:

    better   a is better than b           yes: the whole interval of a - b is on the better side
    keeps    a is worse by at most 5 %    yes: the whole interval is within
    detail   of fine detail a keeps 95 % of what b has (or the originals, where b has more than they)
    cost     a decodes with at most 1.15 times the operations of b; more is not a no, but leaves the claim undecided

and *no* where the whole interval is on the other side. A claim holds if all of its tests say yes, does not hold if one
says no, and is undecided otherwise. Rows without tests are studies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .reproduction import Scale

Outcome = Literal["yes", "no", "undecided", "not measured"]
Verdict = Literal["holds", "does not hold", "undecided", "not run", "study: no verdict", "rehearsal: no verdict"]

TOLERANCE = 0.05
"""Of b's value: by how much a may be worse where it is to keep what b has."""
FRECHET_MARGIN = 0.05
"""Of b's value: half of the interval of a difference of Fréchet distances. Assumed, for a distance of sets has no
interval of its own."""
COST_LIMIT = 1.15
"""Operations of a over those of b that count as equal cost."""

LPIPS, FRECHET, DETAIL = "lpips_squeeze", "frechet", "high_frequency_ratio"
HIGHER_IS_BETTER = ("psnr", "ssim_gaussian_11", DETAIL)


@dataclass(frozen=True)
class Contender:
    """What a row compares: a run's model, with a number of decoding steps where it has a choice, by a protocol."""

    run: str
    protocol: str
    steps: int | None = None

    @property
    def label(self) -> str:
        steps = "" if self.steps is None else f", {self.steps} step{'' if self.steps == 1 else 's'}"
        return f"{self.run}{steps}"


@dataclass(frozen=True)
class Test:
    """A question about two contenders. metric: LPIPS, FRECHET, DETAIL or ``flops``."""

    __test__ = False  # pytest would take it for one of its own

    kind: Literal["better", "keeps", "detail", "cost"]
    metric: str
    a: Contender
    b: Contender


@dataclass(frozen=True)
class Claim:
    """A row of the table. paper: what it says, with its figures where they are known."""

    row: str
    text: str
    paper: str
    contenders: tuple[Contender, ...]
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Of a metric, a - b: its interval, and b's own value."""

    mean: float
    low: float
    high: float
    reference: float


@dataclass(frozen=True)
class Answer:
    """A test's outcome, and the difference (or the ratio of costs) that it comes from."""

    test: Test
    outcome: Outcome
    found: Difference | float | None = None


def frechet_difference(a: float, b: float) -> Difference:
    """Of two Fréchet distances to the same originals, with the assumed margin."""
    margin = FRECHET_MARGIN * b
    return Difference(a - b, a - b - margin, a - b + margin, b)


def judge(test: Test, found: Difference | float | None) -> Outcome:
    """The outcome of a test from its measured difference, or ratio of costs; None: a number is missing."""
    if found is None:
        return "not measured"
    if isinstance(found, float):
        return "yes" if found <= COST_LIMIT else "undecided"
    sign = 1 if test.metric in HIGHER_IS_BETTER else -1  # so that more is better
    low, high = sorted((sign * found.low, sign * found.high))
    limit = 0.0 if test.kind == "better" else -TOLERANCE * abs(found.reference)
    if low > limit:
        return "yes"
    return "no" if high < limit else "undecided"


def conclude(claim: Claim, answers: Mapping[Test, Answer], complete: bool, rehearsal: bool = False) -> Verdict:
    """The rule. complete: whether all contenders of the claim were evaluated; rehearsal: by models that make noise."""
    if not complete:
        return "not run"
    if rehearsal:
        return "rehearsal: no verdict"
    if not claim.tests:
        return "study: no verdict"
    outcomes = {answers[test].outcome for test in claim.tests}
    if "no" in outcomes:
        return "does not hold"
    return "holds" if outcomes == {"yes"} else "undecided"


def claims(scale: Scale) -> dict[str, Claim]:
    """All rows of the table, by name."""
    protocol, many = scale.protocol, scale.steps
    student, teacher, kl_vae = of(scale, "distillation", 1), of(scale, "joint", many), of(scale, "kl-vae")
    single = of(scale, "joint", 1)
    shared = tuple(of(scale, f"decoder-{size}", many) for size in scale.decoders)
    own = of(scale, f"decoder-{scale.decoder}", many)
    sides = ((scale.resolution, protocol), (scale.large_resolution, scale.large_protocol))
    tuned = tuple(Contender(f"finetuned-{side}", p, many) for side, p in sides)
    untuned = tuple(Contender(f"decoder-{scale.decoder}", p, many) for _, p in sides)
    gan, plain = of(scale, "gan", many), of(scale, "no-lpips", many)
    found = (
        Claim(
            "kl-vae",
            "SSDD reconstructs better than a KL-VAE at equal or lower cost",
            "rFID 0.50 (SSDD-S, one step) against 0.87 (KL-VAE), at 0.28 times the operations; ImageNet 256 px, f8c4",
            (student, kl_vae),
            (*_both("better", student, kl_vae), Test("cost", "flops", student, kl_vae)),
        ),
        Claim(
            "distillation",
            "The one-step student keeps the behaviour of the multi-step teacher",
            "no figure published to us",
            (student, teacher, single),
            (
                *_both("keeps", student, teacher),
                Test("detail", DETAIL, student, teacher),
                *_both("better", student, single),
            ),
        ),
        Claim(
            "shared-encoder",
            "One frozen encoder serves decoders of several sizes, larger ones better",
            "rFID 0.50 (S), 0.47 (B), 0.42 (M), 0.42 (L), 0.38 (H), one step, on one encoder",
            (teacher, *shared),
            (
                *_both("keeps", own, teacher),
                *(t for a, b in zip(shared[1:], shared[:-1], strict=True) for t in _both("better", a, b)),
            ),
        ),
        Claim(
            "resolutions",
            "One pre-training serves several resolutions",
            "no figure published to us",
            (*tuned, *untuned),
            tuple(t for a, b in zip(tuned, untuned, strict=True) for t in _both("better", a, b)),
        ),
        Claim(
            "compression",
            "More downsampling at constant compression",
            "a study; no figure published to us",
            (teacher, *(of(scale, latent, many) for latent in scale.latents[1:])),
        ),
        Claim(
            "no-gan",
            "No adversarial loss is needed",
            "no figure published to us",
            (teacher, gan),
            _both("keeps", teacher, gan),
        ),
        Claim(
            "objectives",
            "LPIPS and flow matching each matter",
            "no figure published to us",
            (teacher, plain, student, kl_vae),
            (*_both("better", teacher, plain), *_both("better", student, kl_vae)),
        ),
        Claim(
            "steps",
            "Metrics against the number of decoding steps",
            "a study; no figure published to us",
            tuple(of(scale, "joint", steps) for steps in scale.sweep),
        ),
    )
    return {claim.row: claim for claim in found}


def of(scale: Scale, run: str, steps: int | None = None) -> Contender:
    """A run's model on the crops of the resolution that most are trained at."""
    return Contender(run, scale.protocol, steps)


def _both(kind: Literal["better", "keeps"], a: Contender, b: Contender) -> tuple[Test, ...]:
    """By the distance of features, as the paper's rFID, and by LPIPS, which has intervals."""
    return Test(kind, FRECHET, a, b), Test(kind, LPIPS, a, b)
