"""The reproduction's recipes, its rule for verdicts, and the script that runs them."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.objectives.perceptual import backbone_path
from ssdd.recipes import RECIPES, claims, overview
from ssdd.recipes import reproduction as recipes
from ssdd.recipes.claims import DETAIL, FRECHET, LPIPS, Answer, Contender, Difference, Test, conclude, judge
from ssdd.training.config import TrainConfig, check

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduction.py"
ALL = [(scale, name) for scale, settings in recipes.SCALES.items() for name in recipes.runs(settings)]
A, B = Contender("a", "crops-128-v1", 1), Contender("b", "crops-128-v1", 8)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """scripts/reproduction.py as a module."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPT.parent))
    import reproduction

    yield reproduction
    sys.path[:] = before


# ---- recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "name"), ALL)
def test_recipes_can_be_trained(scale: str, name: str) -> None:
    config = RECIPES[recipes.recipe_name(scale, name)]()
    check(replace(config, data=replace(config.data, paths=("photos",))))
    assert config.total_images % config.batch_size == 0, "the last update would see more images than are counted"
    assert config.one_step_share == 0.0, "not of the paper"


def test_overview_is_one_line() -> None:
    assert sum("reproduction-" in line for line in overview().splitlines()) == 1


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_compared_runs_see_the_same(scale: str) -> None:
    """A contender has an advantage that the claim does not speak of."""
    settings = recipes.SCALES[scale]
    joint, baseline = recipes.run(scale, "joint"), recipes.run(scale, "kl-vae")
    seen = recipes.images_seen
    assert seen(scale, "distillation") == seen(scale, "kl-vae"), "the student's distillation does not count"
    for name in (*settings.latents[1:], "gan", "no-lpips"):
        assert seen(scale, name) == seen(scale, "joint"), f"{name} is trained for another time"
    decoders = [recipes.run(scale, f"decoder-{size}") for size in settings.decoders]
    assert {c.total_images for c in decoders} == {joint.total_images}
    assert {seen(scale, f"decoder-{size}") for size in settings.decoders} == {2 * joint.total_images}

    def common(config: TrainConfig) -> tuple[Any, ...]:
        m = config.model
        encoder = (m.encoder_width, m.encoder_groups)
        return config.data, config.optimizer, config.average, config.batch_size, config.precision, config.seed, encoder

    assert common(baseline) == common(joint)
    assert baseline.model.encoder == joint.model.encoder
    for name in (*settings.latents[1:], "gan", "no-lpips"):
        assert common(recipes.run(scale, name)) == common(joint), name
    assert recipes.run(scale, "distillation").data == joint.data, "the student sees other crops than its baseline"


def test_only_the_ablated_differs() -> None:
    joint = recipes.run("gpu", "joint")
    assert replace(recipes.run("gpu", "no-lpips"), loss=joint.loss) == joint
    assert recipes.run("gpu", "no-lpips").loss == replace(joint.loss, lpips=0.0)
    gan = recipes.run("gpu", "gan")
    assert replace(gan, loss=joint.loss) == joint
    assert gan.loss.adversarial == recipes.run("gpu", "kl-vae").loss.adversarial > 0 == joint.loss.adversarial


def test_latents_are_of_one_compression() -> None:
    from ssdd.nn.presets import encoder_size

    for settings in recipes.SCALES.values():
        sizes = [encoder_size(latent) for latent in settings.latents]
        assert len({size.latent_channels / size.factor**2 for size in sizes}) == 1
        assert all(settings.resolution % size.factor == 0 for size in sizes), "crops are not whole cells"


def test_unknown_run() -> None:
    with pytest.raises(ValueError, match="expected a run, one of joint, "):
        recipes.run("tiny", "joined")


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_claims_are_about_runs_that_exist(scale: str) -> None:
    settings = recipes.SCALES[scale]
    found = claims.claims(settings)
    assert tuple(found) == recipes.ROWS
    assert set(settings.rows) <= set(recipes.ROWS)
    used = {c.run for claim in found.values() for c in claim.contenders}
    assert used == set(recipes.runs(settings)), "a run that no claim needs, or a claim without its run"
    for claim in found.values():
        for test in claim.tests:
            assert {test.a, test.b} <= set(claim.contenders), f"{claim.row}: a test of what is not evaluated"
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
    found = Difference((low + high) / 2, low, high, reference=1.0)
    assert judge(Test(kind, metric, A, B), found) == outcome


def test_rule_of_costs_and_gaps() -> None:
    cost = Test("cost", "flops", A, B)
    assert [judge(cost, ratio) for ratio in (0.5, 1.15, 1.2)] == ["yes", "yes", "undecided"]
    assert judge(cost, None) == "not measured"


def test_frechet_margin() -> None:
    better = Test("better", FRECHET, A, B)
    found = [judge(better, claims.frechet_difference(a, 100.0)) for a in (90.0, 96.0, 104.0, 110.0)]
    assert found == ["yes", "undecided", "undecided", "no"]


def test_rule_of_a_claim() -> None:
    one, two = Test("better", LPIPS, A, B), Test("better", FRECHET, A, B)
    claim = claims.Claim("row", "text", "paper", (A, B), (one, two))

    def verdict(first: Any, second: Any, complete: bool = True) -> str:
        return conclude(claim, {one: Answer(one, first), two: Answer(two, second)}, complete)

    assert verdict("yes", "yes") == "holds"
    assert verdict("yes", "no") == "does not hold"
    assert verdict("undecided", "no") == "does not hold"
    assert verdict("yes", "undecided") == "undecided"
    assert verdict("yes", "not measured") == "undecided"
    assert verdict("yes", "yes", complete=False) == "not run"
    answers = {test: Answer(test, "yes") for test in (one, two)}
    assert conclude(claim, answers, True, rehearsal=True) == "rehearsal: no verdict", "noise proves a claim"
    assert conclude(replace(claim, tests=()), {}, True) == "study: no verdict"


# ---- the script ------------------------------------------------------------------------------------------------


def _evaluation(folder: Path, name: str, lpips: list[float], detail: float = 1.0, fingerprint: str = "f") -> None:
    """An evaluation of two crops of each of some images."""
    from ssdd.evaluation.protocols import CropKey
    from ssdd.evaluation.tables import ImageMetricTable

    table, steps = ImageMetricTable(), name.rpartition("@")[2]
    ones = np.ones(len(lpips))
    keys = [CropKey(i // 2, i % 2, f"{i // 2}.png") for i in range(len(lpips))]
    amounts = {"mse": ones, "pixels": ones, DETAIL: detail * ones, "high_frequency_energy": ones}
    table.add(keys, {"psnr": ones, LPIPS: np.array(lpips), **amounts})
    crops: dict[str, Any] = {n: table.column(n).tolist() for n in table.names}
    row = {
        "steps": None if steps == "own" else int(steps),
        "image_metrics": {n: vars(e) for n, e in table.summary().items()},
        "distances": {},
        "decode_flops": 10,
        "crops": {"key": [str(key) for key in keys], **crops},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "evaluation.json").write_text(
        json.dumps({"data": {"fingerprint": fingerprint}, "rows": [row]}).replace("Infinity", "null")
    )


def test_differences_are_paired(script: Any, tmp_path: Path) -> None:
    """Crops that are unlike one another hide a small difference, though it is the same in each."""
    from reproduction_table import Results

    random = np.random.default_rng(0).uniform(0.1, 0.9, 20)
    _evaluation(tmp_path, "a@crops-128-v1@1", list(random - 0.01), detail=0.5)
    _evaluation(tmp_path, "b@crops-128-v1@8", list(random), detail=3.0)
    results = Results.read(tmp_path)
    found = results.difference(Test("better", LPIPS, A, B))
    assert found.mean == pytest.approx(-0.01)
    assert found.high - found.low < 1e-9
    assert found.reference == pytest.approx(random.mean())
    assert results.difference(Test("cost", "flops", A, B)) == 1.0
    assert results.difference(Test("better", FRECHET, A, B)) is None, "no distance was measured"
    detail = results.difference(Test("detail", DETAIL, A, B))
    assert (detail.mean, detail.reference) == (-0.5, 1.0), "more than the originals have is not to be kept"


def test_other_photographs_are_not_compared(script: Any, tmp_path: Path) -> None:
    from reproduction_table import Results

    _evaluation(tmp_path, "a@crops-128-v1@1", [0.1, 0.2])
    _evaluation(tmp_path, "b@crops-128-v1@8", [0.1, 0.2], fingerprint="g")
    with pytest.raises(ValueError, match="expected the photographs of the other evaluations"):
        Results.read(tmp_path)


def test_plan(script: Any, tmp_path: Path) -> None:
    """Every command once, after those that it needs; what is evaluated is not evaluated again."""
    plan = script.Plan("gpu", tmp_path, ("a.tar", "b.tar"), ("held-out.tar",), recipes.ROWS)
    jobs = plan.jobs()
    trained = [job.run for job in jobs if job.arguments[0] == "train"]
    assert sorted(trained) == sorted(recipes.runs(recipes.SCALES["gpu"]))
    for job in jobs:
        if job.arguments[0] == "train" and (start := recipes.start_of("gpu", job.run)):
            assert trained.index(start) < trained.index(job.run)
            assert str(plan.folder(start)) in job.arguments
    measured = [job for job in jobs if job.arguments[0] == "evaluate"]
    teacher = next(job for job in measured if job.run == "joint")
    assert teacher.arguments[teacher.arguments.index("--steps") + 1] == "1,2,4,8,16"
    assert sum(job.run == "decoder-S" for job in measured) == 2, "once for each resolution"

    _evaluation(tmp_path / "evaluations", "joint@crops-128-v1@8", [0.1, 0.2])
    teacher = next(job for job in plan.jobs() if job.run == "joint" and job.arguments[0] == "evaluate")
    assert teacher.arguments[teacher.arguments.index("--steps") + 1] == "1,2,4,16"
    rows = replace(plan, rows=("kl-vae",)).jobs()
    assert [job.run for job in rows] == ["joint", "distillation", "kl-vae", "distillation", "kl-vae"]


def test_other_settings_are_refused(script: Any, tmp_path: Path) -> None:
    from ssdd.training.config import to_json

    plan = script.Plan("tiny", tmp_path, ("a.tar",), ("held-out.tar",), ("kl-vae",))
    plan.folder("joint").mkdir(parents=True)
    config = plan.folder("joint") / "config.json"
    config.write_text(to_json(recipes.run("tiny", "joint")))
    plan.check()
    config.write_text(to_json(replace(recipes.run("tiny", "joint"), seed=1)))
    with pytest.raises(ValueError, match="other settings"):
        plan.check()
    with pytest.raises(ValueError, match="expected the photographs that this folder began with"):
        replace(plan, data=("b.tar",)).check()


def test_failed_command(script: Any, tmp_path: Path) -> None:
    job = script.Job("joint", ("train", "no-such-recipe"), tmp_path / "never")
    with pytest.raises(ChildProcessError, match="status 2: ssdd train no-such-recipe"):
        script.execute(job, math.inf)


def test_time_is_over(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is under way is ended, and has ended when the script goes on."""
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    job = script.Job("joint", ("train", "reproduction-cpu-joint", "--data.paths", str(tmp_path)), tmp_path / "never")
    with pytest.raises(script.Stopped):
        script.execute(job, time.monotonic() + 0.3)
    assert started[0].poll() is not None, "it runs on by itself"


def test_a_tiny_run_in_pieces(
    script: Any, tmp_path: Path, picture: Callable[..., np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped before it could begin, then done, then nothing left to do."""
    if not backbone_path("squeeze").is_file():
        pytest.skip(f"the recipes need the weights of LPIPS-squeeze in {backbone_path('squeeze')}")
    for i in range(8):
        Image.fromarray(picture(136, 144, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "held-out").mkdir()
    for i in range(2):
        Image.fromarray(picture(140, 130, 20 + i)).save(tmp_path / "held-out" / f"{i}.png")
    options = ["--rows", "kl-vae", "--data", str(tmp_path), "--eval", str(tmp_path / "held-out")]
    options += ["--out", str(tmp_path / "out")]
    out = tmp_path / "out" / "tiny"

    assert script.main([*options, "--minutes", "0"]) == 75
    assert "run again to go on" in capfd.readouterr().out
    assert {r["verdict"] for r in json.loads((out / "table.json").read_text())["rows"]} == {"not run"}

    status, shown = script.main(options), capfd.readouterr()
    assert status == 0, shown.err
    found = {row["row"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert found["kl-vae"]["verdict"] == "rehearsal: no verdict"
    assert {t["outcome"] for t in found["kl-vae"]["tests"]} <= {"yes", "no", "undecided", "not measured"}
    assert {c["images_seen"] for c in found["kl-vae"]["contenders"]} == {80}
    assert all(math.isfinite(c["image_metrics"]["psnr"]["mean"]) for c in found["kl-vae"]["contenders"])
    assert len(found["kl-vae"]["commands"]) == 5, "three trainings, two evaluations"
    assert found["shared-encoder"]["verdict"] == "not run"
    page = (out / "table.md").read_text()
    assert all(command in page and command in shown.out for command in found["kl-vae"]["commands"])

    status, shown = script.main(options), capfd.readouterr()
    assert status == 0, shown.err
    lines = [line for line in shown.out.splitlines() if line.startswith("[")]
    assert len(lines) == 3
    assert all(" done: ssdd train" in line for line in lines), "something was done again"
