"""The paper's claims (arXiv 2510.04961) as tests on evaluations, and the rule that turns outcomes into verdicts.

A test compares two models on the same crops of the same photographs. Its outcome is *yes*, *no* or *undecided*:

    better   a is better than b           yes: the whole interval of a - b is on the better side
    keeps    a is worse by at most 5 %    yes: the whole interval is within
    detail   of fine detail a keeps 95 % of what b has (or the originals, where b has more than they)
    cost     a decodes with at most 1.15 times the operations of b; more is not a no, but leaves the claim undecided

and *no* where the whole interval is on the other side. A claim holds if all of its tests say yes, does not hold if one
says no, and is undecided otherwise. Rows without tests are studies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reproduction.runs import Scale

Outcome = Literal["yes", "no", "undecided", "not measured"]
Verdict = Literal["holds", "does not hold", "undecided", "not run", "study: no verdict", "rehearsal: no verdict"]

TOLERANCE = 0.05
"""Share of b's value by which a may be worse where it is to keep what b has."""
FRECHET_MARGIN = 0.05
"""Half of the interval of a difference of Fréchet distances, as a share of b's value. It is assumed: a distance of sets
has no interval of its own."""
COST_LIMIT = 1.15
"""Ratio of the operations of a and b up to which their costs are equal."""

LPIPS, FRECHET, DETAIL = "lpips_squeeze", "frechet", "high_frequency_ratio"
HIGHER_IS_BETTER = ("psnr", "ssim_gaussian_11", DETAIL)


@dataclass(frozen=True)
class Model:
    """A trained model as it is evaluated: by which protocol, and in how many decoding steps if it has a choice."""

    run: str
    protocol: str
    steps: int | None = None

    @property
    def label(self) -> str:
        """Return its name in tables."""
        steps = "" if self.steps is None else f", {self.steps} step{'' if self.steps == 1 else 's'}"
        small = self.protocol.startswith(("crops-128", "paper-128"))
        return self.run + steps + ("" if small else f" ({self.protocol})")


@dataclass(frozen=True)
class Test:
    """A question about two models. metric: LPIPS, FRECHET, DETAIL or ``flops``."""

    __test__ = False  # pytest would collect it

    kind: Literal["better", "keeps", "detail", "cost"]
    metric: str
    a: Model
    b: Model


@dataclass(frozen=True)
class Claim:
    """A row of the table. paper: what the paper says, with its figures where they are known."""

    row: str
    text: str
    paper: str
    models: tuple[Model, ...]
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True)
class Difference:
    """The difference a - b of a metric with its 95 % interval, and b's value as the reference."""

    mean: float
    low: float
    high: float
    reference: float


def frechet_difference(a: float, b: float, share: float = FRECHET_MARGIN) -> Difference:
    """Return the difference of two Fréchet distances to the same originals, with an assumed margin, a share of b."""
    margin = share * b
    return Difference(a - b, a - b - margin, a - b + margin, b)


def judge(test: Test, measured: Difference | float | None) -> Outcome:
    """Return the outcome of a test from the difference, the ratio of costs, or None where a number is missing."""
    if measured is None:
        return "not measured"
    if isinstance(measured, float):
        return "yes" if measured <= COST_LIMIT else "undecided"
    sign = 1 if test.metric in HIGHER_IS_BETTER else -1  # so that more is better
    low, high = sorted((sign * measured.low, sign * measured.high))
    limit = 0.0 if test.kind == "better" else -TOLERANCE * abs(measured.reference)
    if low > limit:
        return "yes"
    return "no" if high < limit else "undecided"


def in_words(text: str, outcome: Outcome, measured: Difference | float | None) -> str:
    """Return a test in a line: the question's text, its outcome, and the difference that it follows from."""
    d = measured
    if not isinstance(d, Difference):
        return f"{text}: **{outcome}**"
    return f"{text}: **{outcome}** ({d.mean:+.4g} [{d.low:+.4g}, {d.high:+.4g}], of {d.reference:.4g})"


def conclude(outcomes: Sequence[Outcome], complete: bool, rehearsal: bool = False) -> Verdict:
    """Return the verdict on a claim.

    Args:
        outcomes: of its tests; empty for a study.
        complete: whether all of its models were evaluated.
        rehearsal: whether the models were trained too shortly for any verdict.
    """
    if not complete:
        return "not run"
    if rehearsal:
        return "rehearsal: no verdict"
    if not outcomes:
        return "study: no verdict"
    if "no" in outcomes:
        return "does not hold"
    return "holds" if set(outcomes) == {"yes"} else "undecided"


def claims(scale: Scale) -> dict[str, Claim]:
    """Return all rows of the table, by name."""

    def model(run: str, steps: int | None = scale.steps) -> Model:
        return Model(run, scale.protocol, steps)

    student, teacher = model("distillation", 1), model("joint")
    kl_vae, kl_vae_gan = model("kl-vae", None), model("kl-vae-gan", None)
    single = model("joint", 1)
    shared = tuple(model(f"decoder-{size}") for size in scale.decoders)
    sides = ((scale.resolution, scale.protocol), (scale.large_resolution, scale.large_protocol))
    tuned = tuple(Model(f"finetuned-{side}", protocol, scale.steps) for side, protocol in sides)
    untuned = tuple(Model(f"decoder-{scale.decoder}", protocol, scale.steps) for _, protocol in sides)
    gan, no_lpips = model("gan"), model("no-lpips")
    rows = (
        Claim(
            "kl-vae",
            "SSDD reconstructs better than a KL-VAE at equal or lower cost",
            "rFID 0.50 (SSDD-S, one step) against 0.87 (KL-VAE), at 0.28 times the operations; ImageNet 256 px, f8c4",
            (student, kl_vae, kl_vae_gan),
            (
                *_both("better", student, kl_vae),
                *_both("better", student, kl_vae_gan),
                Test("cost", "flops", student, kl_vae),
            ),
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
                *_both("keeps", model(f"decoder-{scale.decoder}"), teacher),
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
            (teacher, *map(model, scale.latents[1:])),
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
            (teacher, no_lpips, student, kl_vae),
            (*_both("better", teacher, no_lpips), *_both("better", student, kl_vae)),
        ),
        Claim(
            "steps",
            "Metrics against the number of decoding steps",
            "a study; no figure published to us",
            tuple(model("joint", steps) for steps in scale.sweep),
        ),
    )
    return {claim.row: claim for claim in rows}


def _both(kind: Literal["better", "keeps"], a: Model, b: Model) -> tuple[Test, ...]:
    """Return a test by the distance of features, as the paper's rFID, and one by LPIPS, which has intervals."""
    return Test(kind, FRECHET, a, b), Test(kind, LPIPS, a, b)
