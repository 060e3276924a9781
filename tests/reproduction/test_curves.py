"""The learning curves: their commands, what is alike, the verdict, and a rehearsal."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reproduction.claims import LPIPS
from reproduction.curves import (
    GAN,
    KL_VAE,
    OURS,
    SCALES,
    SSDD,
    STUDENT,
    Plan,
    equal_width,
    main,
    read_results,
    trend,
    verdict,
    write,
)
from reproduction.table import EVALUATED, EXTRACTOR
from ssdd.cli.parse import parse
from ssdd.evaluation.metrics import DETAIL_WEIGHT, IMAGE_METRICS, Metric
from ssdd.evaluation.results import Crops, Evaluation, Row
from ssdd.objectives.perceptual import backbone_path

ENCODER = "ssdd-f8c4-demo"


def plan_of(scale: str, out: Path) -> Plan:
    return Plan(scale, out, ENCODER, ("photos.tar",), ("held-out.tar",))


@pytest.mark.parametrize("scale", SCALES)
def test_commands_are_understood_and_trainings_alike(scale: str, tmp_path: Path) -> None:
    """A command is refused after hours, or a decoder sees more than its rivals."""
    plan = plan_of(scale, tmp_path)
    counts, seen = plan.scale.counts, {}
    for job in plan.jobs():
        command = parse(job.arguments)
        if job.arguments[0] == "train" and job.arguments[1] != "export":
            seen[job.run] = config = command.recipe
            config.check()
    assert {name.split("@")[0] for name in seen} == {SSDD, KL_VAE, GAN, STUDENT}
    first = seen[f"{SSDD}@0"]
    for name, config in seen.items():
        kind, seed, *count = name.split("@")
        same = (config.data, config.average, config.batch_size, config.precision, config.loss.lpips)
        assert same == (first.data, first.average, first.batch_size, first.precision, first.loss.lpips), name
        assert config.seed == int(seed) + (1000 if kind == STUDENT else 0), "the student sees what its teacher has seen"
        if kind in (KL_VAE, GAN):
            assert config.optimizer == first.optimizer
        if kind == STUDENT:
            assert config.total_images * 2 == int(count[0]), "the teacher's images do not count"
            continue
        assert config.total_images == (counts[-1] if seed == "0" else counts[plan.scale.repeated - 1])
        assert not config.model.train_encoder
        assert config.model.encoder == ENCODER
        assert config.optimizer.decay_images == 0, "an earlier point would have another rate than the last"
        assert all(n % config.batch_size == n % config.log.milestone_images == 0 for n in counts), "no checkpoint there"


def test_the_rival_is_as_wide_as_it_takes() -> None:
    """32, the encoder's own width, has three quarters of our operations."""
    assert equal_width(ENCODER, "XXS") == 36


def evaluated(plan: Plan, distances: dict[tuple[str, int | None], float], seed: int, count: int) -> None:
    """Write the evaluations with these distances; LPIPS is a hundredth of them."""
    for steps, folder in plan.evaluations(seed, count).items():
        write_evaluation(plan, {key: d for key, d in distances.items() if (key[1] or 1) == steps}, seed, count, folder)


def write_evaluation(
    plan: Plan, distances: dict[tuple[str, int | None], float], seed: int, count: int, folder: Path
) -> None:
    number = np.arange(8)
    ones = np.ones(8)
    crops = Crops(number // 2, number % 2, [f"{i // 2}.png" for i in number], {"pixels": ones, DETAIL_WEIGHT: ones})
    metrics = {**IMAGE_METRICS, LPIPS: Metric(LPIPS, "LPIPS", 3, "lower", "")}
    evaluation = Evaluation({}, {"fingerprint": "f"}, metrics, [], (8, 8), crops, [], [], finished=True)
    for (kind, steps), distance in distances.items():
        values = {"psnr": ones, LPIPS: distance / 100 * ones, "mse": ones}
        described, valid = {"source": str(plan.model(kind, seed, count))}, ones.astype(bool)
        row = Row(f"{kind}{steps}", kind, 0, steps, None, described, None, {}, values, valid, [])
        row.distances = {EXTRACTOR: {"frechet": distance, "kid": distance / 1000}}
        evaluation.add(row)
    folder.mkdir(parents=True)
    evaluation.save(folder)
    (folder / EVALUATED).touch()


def test_verdict(tmp_path: Path) -> None:
    """The worse of the KL-VAEs is what counts, or a seed that has no part in the verdict decides it."""
    plan = plan_of("cpu", tmp_path)
    one, many, student = OURS
    assert verdict(plan, read_results(plan), one) == ("not run", [])
    for seed, better in ((0, 0.0), (1, 10.0), (2, 20.0)):
        evaluated(plan, {(SSDD, 1): 220 - better, (SSDD, 8): 150, (KL_VAE, None): 200, (GAN, None): 190}, seed, 8000)
    evaluated(plan, {(SSDD, 1): 180, (SSDD, 8): 140, (KL_VAE, None): 181, (GAN, None): 182}, 0, 16_000)
    later = {(SSDD, 1): 100, (SSDD, 8): 139, (STUDENT, 1): 300, (KL_VAE, None): 180, (GAN, None): 140}
    evaluated(plan, later, 0, 32_000)
    results = read_results(plan)
    conclusion, words = verdict(plan, results, one)
    assert conclusion == "holds", words
    assert "better than that of KL-VAE with a GAN after 32,000 images: **yes** (-40" in words[0]
    assert words[2].startswith("FD crosses after about 15,456 images"), "the mean of the seeds is 210, 11 % above"
    assert verdict(plan, results, many)[0] == "no verdict, 8 times the operations"
    assert verdict(plan, results, student)[0] == "does not hold"
    page = write(plan).read_text()
    assert "| SSDD, 1 step | 210.0 (200.0 to 220.0) | 180.0 | 100.0 |" in page
    assert "| SSDD distilled, 1 step | not run | not run | 300.0 |" in page
    assert "- SSDD, 1 step: **holds**" in page
    assert (plan.out / "curves.png").stat().st_size > 1000


def test_seeds_that_differ(tmp_path: Path) -> None:
    """A difference that another seed would turn round decided the verdict."""
    plan = plan_of("cpu", tmp_path)
    for seed, (ours, theirs) in enumerate([(200, 200), (200, 240), (200, 160)]):
        evaluated(plan, {(SSDD, 1): ours, (KL_VAE, None): theirs, (GAN, None): 400}, seed, 8000)
    for count in (16_000, 32_000):
        evaluated(plan, {(SSDD, 1): 170, (KL_VAE, None): 200, (GAN, None): 400}, 0, count)
    conclusion, words = verdict(plan, read_results(plan), OURS[0])
    assert conclusion == "undecided"
    assert "**undecided** (-30 [-70, +10], of 200)" in words[0]


def test_a_folder_that_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evaluations name models by other paths, or by paths relative to another folder."""
    monkeypatch.chdir(tmp_path)
    evaluated(plan_of("cpu", Path("a")), {(SSDD, 1): 200, (KL_VAE, None): 210, (GAN, None): 190}, 0, 8000)
    (tmp_path / "a").rename("b")
    assert len(read_results(plan_of("cpu", tmp_path / "b"))) == 3


def test_trend() -> None:
    assert trend({8: 0.3}) == "FD: +30% after 8"
    assert trend({8: 0.3, 16: 0.2, 32: 0.1}).endswith("; -10.0% a doubling")
    assert trend({1024: 0.1, 4096: -0.1}).startswith("FD crosses after about 2,048 images")


@pytest.mark.slow
def test_a_rehearsal(
    tmp_path: Path,
    picture: Callable[..., np.ndarray],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command works, and what is finished is not done again."""
    if not backbone_path("squeeze").is_file():
        pytest.skip(f"the runs need the weights of LPIPS-squeeze in {backbone_path('squeeze')}")
    monkeypatch.setattr("reproduction.curves.SEEDS", 1)
    for folder, i in product(("photographs", "held-out"), range(4)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(picture(72, 80, i)).save(tmp_path / folder / f"{i}.png")
    options = ["--data", str(tmp_path / "photographs"), "--eval", str(tmp_path / "held-out"), "--out", str(tmp_path)]
    status = main(options)
    assert status == 0, capfd.readouterr().err
    plan = plan_of("tiny", tmp_path / "tiny" / ENCODER)
    results = read_results(plan)
    assert len(results) == 4 + 5, "SSDD in one step and in eight, two of its rivals, the student"
    verdicts = [verdict(plan, results, series)[0] for series in OURS]
    assert verdicts == ["rehearsal: no verdict", "no verdict, 8 times the operations", "rehearsal: no verdict"]
    capfd.readouterr()
    assert main(options) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[")]
    assert lines
    assert all(" done: ssdd " in line for line in lines), "something was done again"
