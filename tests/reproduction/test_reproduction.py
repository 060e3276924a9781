"""The reproduction's runs, its rule for verdicts, its table, and the script that runs the commands."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reproduction.claims import (
    DETAIL,
    FRECHET,
    LPIPS,
    Difference,
    Model,
    Test,
    claims,
    conclude,
    frechet_difference,
    judge,
)
from reproduction.jobs import Job, Stopped, execute, read_log, run_jobs
from reproduction.run import Plan, main
from reproduction.runs import ROWS, SCALES, Run, images_seen, runs
from reproduction.table import measure, read_results
from ssdd.objectives.perceptual import backbone_path
from ssdd.training.config import FlowConfig, to_json

A, B = Model("a", "crops-128-v1", 1), Model("b", "crops-128-v1", 8)


# ---- runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "name"), [(scale, name) for scale in SCALES for name in runs(SCALES[scale])])
def test_runs_can_be_trained(scale: str, name: str) -> None:
    """The command of this run is refused."""
    run = runs(SCALES[scale])[name]
    config: Any = replace(run.config, data=replace(run.config.data, paths=("photos",)))
    if run.start_from:
        config = replace(config, model=replace(config.model, start_from=run.start_from))
    if run.encoder:
        config = replace(config, model=replace(config.model, encoder=run.encoder))
    config.check()
    assert config.total_images % config.batch_size == 0, "the last update would see more images than are counted"
    assert not isinstance(config, FlowConfig) or config.one_step_share == 0.0, "not of the paper"
    assert config.loss.lpips == (0.0 if name == "no-lpips" else 0.5), "another weight of LPIPS than its rivals"


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_compared_runs_see_the_same(scale: Any) -> None:
    """A model has an advantage that the claim does not speak of."""
    all_runs = runs(scale)
    joint, baseline = all_runs["joint"].config, all_runs["kl-vae"].config
    rivals = (*scale.latents[1:], "gan", "no-lpips")
    for name in ("kl-vae", "kl-vae-gan"):
        assert images_seen(scale, "distillation") == images_seen(scale, name), "the distillation does not count"
    for name in rivals:
        assert images_seen(scale, name) == images_seen(scale, "joint"), f"{name} is trained for another time"
    decoders = [f"decoder-{size}" for size in scale.decoders]
    assert {images_seen(scale, name) for name in decoders} == {2 * joint.total_images}

    def common(run: Run) -> tuple[Any, ...]:
        c: Any = run.config
        encoder = (c.model.encoder_width, c.model.encoder_groups)
        return c.data, c.average, c.batch_size, c.precision, c.seed, encoder

    for name in ("kl-vae", "kl-vae-gan", *rivals):
        assert common(all_runs[name]) == common(all_runs["joint"]), name
    for name in ("kl-vae", "kl-vae-gan", *rivals, *decoders):
        assert all_runs[name].config.optimizer == joint.optimizer, f"{name} has another optimiser"
    assert baseline.model.encoder == joint.model.encoder
    assert all_runs["distillation"].config.data == joint.data, "the student sees other crops than its baseline"


def test_only_the_ablated_differs() -> None:
    """A row that speaks of one loss compares runs that differ in more."""
    all_runs: dict[str, Any] = {name: run.config for name, run in runs(SCALES["gpu"]).items()}
    joint, gan = all_runs["joint"], all_runs["gan"]
    assert replace(all_runs["no-lpips"], loss=joint.loss) == joint
    assert replace(gan, loss=joint.loss, discriminator=joint.discriminator) == joint
    kl_vae, kl_vae_gan = all_runs["kl-vae"], all_runs["kl-vae-gan"]
    assert replace(kl_vae_gan, loss=kl_vae.loss, discriminator=kl_vae.discriminator) == kl_vae
    assert gan.loss.adversarial == kl_vae_gan.loss.adversarial > 0 == joint.loss.adversarial == kl_vae.loss.adversarial
    assert gan.discriminator == kl_vae_gan.discriminator


def test_latents_are_of_one_compression() -> None:
    """The study of compression compares latents of different sizes."""
    from ssdd.nn.presets import encoder_size

    for scale in SCALES.values():
        sizes = [encoder_size(latent) for latent in scale.latents]
        assert len({size.latent_channels / size.factor**2 for size in sizes}) == 1
        assert all(scale.resolution % size.factor == 0 for size in sizes), "crops are not whole cells"


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_claims_are_about_runs_that_exist(scale: Any) -> None:
    """A claim names a run that nobody trains, or compares what was not evaluated on the same crops."""
    rows = claims(scale)
    assert tuple(rows) == ROWS
    assert set(scale.rows) <= set(ROWS)
    used = {model.run for claim in rows.values() for model in claim.models}
    assert used == set(runs(scale)), "a run that no claim needs, or a claim without its run"
    for claim in rows.values():
        for test in claim.tests:
            assert {test.a, test.b} <= set(claim.models), f"{claim.row}: a test of what is not evaluated"
            assert test.a.protocol == test.b.protocol, f"{claim.row}: other crops"


# ---- the rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "metric", "low", "high", "outcome"),
    [
        ("better", LPIPS, -0.03, -0.01, "yes"),
        ("better", LPIPS, 0.01, 0.03, "no"),
        ("better", LPIPS, -0.01, 0.03, "undecided"),
        ("better", "psnr", 0.1, 0.3, "yes"),
        ("better", "psnr", -0.3, -0.1, "no"),
        ("keeps", LPIPS, 0.01, 0.04, "yes"),  # worse, but by less than 5 % of 1
        ("keeps", LPIPS, 0.04, 0.06, "undecided"),
        ("keeps", LPIPS, 0.06, 0.08, "no"),
        ("keeps", FRECHET, -0.5, 0.04, "yes"),
        ("detail", DETAIL, -0.04, 0.5, "yes"),
        ("detail", DETAIL, -0.3, -0.06, "no"),
        ("detail", DETAIL, -0.3, 0.1, "undecided"),
    ],
)
def test_rule_of_a_test(kind: Any, metric: str, low: float, high: float, outcome: str) -> None:
    """A test says yes on the wrong side, or of an interval that reaches over the limit."""
    difference = Difference((low + high) / 2, low, high, reference=1.0)
    assert judge(Test(kind, metric, A, B), difference) == outcome


def test_rule_of_costs_and_gaps() -> None:
    """A higher cost refutes a claim, or a missing number counts as an outcome."""
    cost = Test("cost", "flops", A, B)
    assert [judge(cost, ratio) for ratio in (0.5, 1.15, 1.2)] == ["yes", "yes", "undecided"]
    assert judge(cost, None) == "not measured"


def test_frechet_margin() -> None:
    """A small difference of FDs, which have no interval, decides a test."""
    better = Test("better", FRECHET, A, B)
    outcomes = [judge(better, frechet_difference(a, 100.0)) for a in (90.0, 96.0, 104.0, 110.0)]
    assert outcomes == ["yes", "undecided", "undecided", "no"]


def test_rule_of_a_claim() -> None:
    """A verdict does not follow from its outcomes."""
    assert conclude(["yes", "yes"], True) == "holds"
    assert conclude(["yes", "no"], True) == "does not hold"
    assert conclude(["undecided", "no"], True) == "does not hold"
    assert conclude(["yes", "undecided"], True) == "undecided"
    assert conclude(["yes", "not measured"], True) == "undecided"
    assert conclude(["yes", "yes"], complete=False) == "not run"
    assert conclude(["yes"], True, rehearsal=True) == "rehearsal: no verdict", "noise proves a claim"
    assert conclude([], True) == "study: no verdict"


# ---- the table -------------------------------------------------------------------------------------------------


def _evaluation(folder: Path, name: str, lpips: list[float], detail: float = 1.0, fingerprint: str = "f") -> None:
    """Write an evaluation of two crops of each of some images."""
    from ssdd.evaluation.metrics import DETAIL_WEIGHT, IMAGE_METRICS, Metric
    from ssdd.evaluation.results import Crops, Evaluation, Row

    steps, count = name.rpartition("@")[2], len(lpips)
    ones, number = np.ones(count), np.arange(count)
    crops = Crops(number // 2, number % 2, [f"{i // 2}.png" for i in number], {"pixels": ones, DETAIL_WEIGHT: ones})
    metrics = {**IMAGE_METRICS, LPIPS: Metric(LPIPS, "LPIPS", 3, "lower", "")}
    evaluation = Evaluation({}, {"fingerprint": fingerprint}, metrics, [], (8, 8), crops, [], [], finished=True)
    values = {"psnr": ones, LPIPS: np.array(lpips), "mse": ones, DETAIL: detail * ones}
    own = None if steps == "own" else int(steps)
    costs = {"decode_gflop": 10.0, "decode_rate": 1.0}
    evaluation.add(Row(name, name, 0, own, None, {}, None, costs, values, ones.astype(bool), []))
    (folder / name).mkdir(parents=True)
    evaluation.save(folder / name)


def test_differences_are_paired(tmp_path: Path) -> None:
    """Crops that are unlike one another hide a small difference, though it is the same in each."""
    random = np.random.default_rng(0).uniform(0.1, 0.9, 20)
    _evaluation(tmp_path, "a@crops-128-v1@1", list(random - 0.01), detail=0.5)
    _evaluation(tmp_path, "b@crops-128-v1@8", list(random), detail=3.0)
    results = read_results(tmp_path)
    lpips: Any = measure(results, Test("better", LPIPS, A, B))
    assert lpips.mean == pytest.approx(-0.01)
    assert lpips.high - lpips.low < 1e-9
    assert lpips.reference == pytest.approx(random.mean())
    assert measure(results, Test("cost", "flops", A, B)) == 1.0
    assert measure(results, Test("better", FRECHET, A, B)) is None, "no distance was measured"
    detail: Any = measure(results, Test("detail", DETAIL, A, B))
    assert (detail.mean, detail.reference) == (-0.5, 1.0), "more than the originals have is not to be kept"


def test_other_photographs_are_not_compared(tmp_path: Path) -> None:
    """Models are compared on other crops."""
    _evaluation(tmp_path, "a@crops-128-v1@1", [0.1, 0.2])
    _evaluation(tmp_path, "b@crops-128-v1@8", [0.1, 0.2], fingerprint="g")
    with pytest.raises(ValueError, match="expected the photographs of the other evaluations"):
        read_results(tmp_path)


# ---- the script ------------------------------------------------------------------------------------------------


def test_plan(tmp_path: Path) -> None:
    """A command is missing, runs twice or before what it needs, or evaluates what is evaluated."""
    plan = Plan("gpu", tmp_path, ("a.tar", "b.tar"), ("held-out.tar",), ROWS)
    trainings = [job for job in plan.jobs() if job.arguments[0] == "train"]
    trained = [job.run for job in trainings]
    assert sorted(trained) == sorted(runs(SCALES["gpu"]))
    for job in trainings:
        if start := runs(SCALES["gpu"])[job.run].predecessor:
            assert trained.index(start) < trained.index(job.run)
            assert str(plan.folder(start)) in job.arguments

    def evaluations(plan: Plan, run: str) -> list[Job]:
        return [job for job in plan.jobs() if job.arguments[0] == "evaluate" and job.run == run]

    assert "--steps 1 2 4 8 16 " in evaluations(plan, "joint")[0].command
    assert len(evaluations(plan, "decoder-S")) == 2, "once for each resolution"
    _evaluation(tmp_path / "evaluations", "joint@crops-128-v1@8", [0.1, 0.2])
    assert "--steps 1 2 4 16 " in evaluations(plan, "joint")[0].command
    jobs = replace(plan, rows=("kl-vae",)).jobs()
    needed = ["distillation", "kl-vae", "kl-vae-gan"]
    assert [job.run for job in jobs] == ["joint", *needed, *needed]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """A table is filled with runs of other settings, or trained on other photographs."""
    plan = Plan("tiny", tmp_path, ("a.tar",), ("held-out.tar",), ("kl-vae",))
    plan.write_configs()
    plan.write_configs()
    with pytest.raises(ValueError, match="expected what this folder was begun with"):
        replace(plan, data=("b.tar",)).write_configs()
    joint = runs(SCALES["tiny"])["joint"].config
    (tmp_path / "configs" / "joint.json").write_text(to_json(replace(joint, seed=1)))
    with pytest.raises(ValueError, match=r"joint\.json holds other settings \(seed: 1 -> 0\)"):
        plan.write_configs()


def test_failed_command(tmp_path: Path) -> None:
    """The script goes on after a command that failed."""
    job = Job("joint", ("train", "no-such-recipe"), tmp_path / "never")
    with pytest.raises(ChildProcessError, match="status 2: ssdd train no-such-recipe"):
        execute(job, math.inf)


def test_a_result_of_another_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of other settings that is there already is taken for this one's, and compared with others."""
    monkeypatch.setattr("reproduction.jobs.execute", lambda job, deadline: job.result.touch())
    job = Job("joint", ("train", "--seed", "1"), tmp_path / "result")
    for _ in range(2):
        run_jobs([job], tmp_path / "log", math.inf)
    assert [line["command"] for line in read_log(tmp_path / "log")] == ["ssdd train --seed 1"]
    with pytest.raises(ValueError, match="found that of another: ssdd train --seed 1"):
        run_jobs([replace(job, arguments=("train", "--seed", "2"))], tmp_path / "log", math.inf)


def test_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command runs on by itself when the time of the script is over."""
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(Stopped):
        execute(Job("joint", ("train", "--help"), tmp_path / "never"), time.monotonic() + 0.05)
    assert started[0].poll() is not None


@pytest.mark.slow
def test_a_checkout_is_enough() -> None:
    """The script does not find the package of its own checkout."""
    script = Path(__file__).parents[2] / "reproduction" / "run.py"
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); import ssdd; print(ssdd.__file__)"
    ended = subprocess.run([sys.executable, "-c", code, str(script)], capture_output=True, text=True, cwd="/")
    assert Path(ended.stdout.strip()) == script.parents[1] / "src" / "ssdd" / "__init__.py", ended.stderr


@pytest.mark.slow
def test_a_tiny_run_in_pieces(
    tmp_path: Path, picture: Callable[..., np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    """A stopped script, run again, leaves something undone or does something again."""
    if not backbone_path("squeeze").is_file():
        pytest.skip(f"the runs need the weights of LPIPS-squeeze in {backbone_path('squeeze')}")
    for i in range(8):
        Image.fromarray(picture(136, 144, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "held-out").mkdir()
    for i in range(2):
        Image.fromarray(picture(140, 130, 20 + i)).save(tmp_path / "held-out" / f"{i}.png")
    options = ["--rows", "kl-vae", "--data", str(tmp_path), "--eval", str(tmp_path / "held-out")]
    options += ["--out", str(tmp_path / "out")]
    out = tmp_path / "out" / "tiny"

    assert main([*options, "--minutes", "0"]) == 75
    assert "run again to go on" in capfd.readouterr().out
    assert {r["verdict"] for r in json.loads((out / "table.json").read_text())["rows"]} == {"not run"}

    status, shown = main(options), capfd.readouterr()
    assert status == 0, shown.err
    rows = {row["row"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert rows["kl-vae"]["verdict"] == "rehearsal: no verdict"
    assert {t["outcome"] for t in rows["kl-vae"]["tests"]} <= {"yes", "no", "undecided", "not measured"}
    assert {m["images_seen"] for m in rows["kl-vae"]["models"]} == {80}
    assert all(math.isfinite(m["image_metrics"]["psnr"]["mean"]) for m in rows["kl-vae"]["models"])
    assert len(rows["kl-vae"]["commands"]) == 7, "four trainings, three evaluations"
    assert rows["shared-encoder"]["verdict"] == "not run"
    page = (out / "table.md").read_text()
    assert all(command in page and command in shown.out for command in rows["kl-vae"]["commands"])

    status, shown = main(options), capfd.readouterr()
    assert status == 0, shown.err
    lines = [line for line in shown.out.splitlines() if line.startswith("[")]
    assert len(lines) == 4
    assert all(" done: ssdd train" in line for line in lines), "something was done again"
