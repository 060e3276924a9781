"""The comparison of generators: its commands, what is alike, and the verdict."""

import json
from pathlib import Path

import pytest

from reproduction.generation import BASELINE, CANDIDATE, SCALES, TOKENIZERS, Plan, verdict, write
from ssdd.cli.generate import Train
from ssdd.cli.parse import parse

SETS = ("caltech101/*", "hires/*")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan("cpu", tmp_path, ("photos.tar",), SETS)


@pytest.mark.parametrize("scale", SCALES)
def test_commands_are_understood_and_trainings_alike(scale: str, tmp_path: Path) -> None:
    """A command is refused after hours, or a tokenizer sees more than its rivals."""
    jobs = Plan(scale, tmp_path, ("photos.tar",), SETS).jobs()
    commands = [parse(job.arguments) for job in jobs]
    assert len({job.result for job in jobs}) == len(jobs)
    tokenizers = [c.recipe for c, job in zip(commands, jobs, strict=True) if job.run in TOKENIZERS]
    assert len(tokenizers) == len(TOKENIZERS)
    first = tokenizers[0]
    for config in tokenizers:
        config.check()
        for part in ("total_images", "batch_size", "data", "average", "optimizer"):
            assert getattr(config, part) == getattr(first, part), f"another {part}"
        assert config.loss.lpips == first.loss.lpips
    generators = [c.recipe for c in commands if isinstance(c, Train)]
    assert len(generators) == len(SETS) * len(TOKENIZERS)
    for config in generators:
        assert config.total_images == SCALES[scale].latents[-1]
        assert all(seen % config.log.checkpoint_images == 0 for seen in SCALES[scale].latents), "no checkpoint there"
        assert all(seen % config.batch_size == 0 for seen in SCALES[scale].latents)
        assert config.optimizer.decay_images == 0, "an earlier point would have another rate than the last"


def measured(plan: Plan, name: str, distances: dict[int, float], gflop: float) -> None:
    folder = plan.out / "measured"
    folder.mkdir(exist_ok=True)
    for seen, distance in distances.items():
        row = {"set": SETS[0], "tokenizer": name, "latents seen": seen, "frechet": distance, "kid": 0.1}
        (folder / f"{name}{seen}.json").write_text(json.dumps(row | {"DiT GFLOP": gflop}))
    line = {"run": plan.generator(name, SETS[0]).name, "command": "ssdd generate train x", "seconds": 120}
    with plan.log.open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    ("distance", "conclusion"),
    [(100.0, "holds"), (104.0, "undecided"), (130.0, "does not hold")],
)
def test_verdict(plan: Plan, distance: float, conclusion: str) -> None:
    """The claim holds although the coarser latents are worse, or not although they are as good by a quarter of the
    work."""
    assert verdict(plan, SETS[0]) == ("not run", [])
    measured(plan, CANDIDATE, {0: 50.0, 25_600: 200.0, 51_200: 150.0, 102_400: distance}, gflop=0.5)
    assert verdict(plan, SETS[0])[0] == "not run"
    measured(plan, BASELINE, {0: 60.0, 25_600: 180.0, 51_200: 130.0, 102_400: 104.0}, gflop=2.0)
    found, tests = verdict(plan, SETS[0])
    assert found == conclusion, tests
    assert "of 180)" in tests[1], "the baseline had seen a quarter of the latents by that work"
    page = write(plan).read_text()
    assert f"## {SETS[0]}: {conclusion}" in page
    assert "| SSDD f16c4 | 2.0 | 50.0 / 100 | 200.0 / 100 |" in page
    assert (plan.out / "curves.png").stat().st_size > 1000


def test_no_verdict_on_generators_where_it_is_the_decoders(plan: Plan) -> None:
    """Samples cannot be told from latents of photographs, and the claim holds all the same."""
    measured(plan, CANDIDATE, {0: 98.0, 25_600: 101.0, 51_200: 101.0, 102_400: 100.0}, gflop=0.5)
    measured(plan, BASELINE, {0: 60.0, 25_600: 180.0, 51_200: 130.0, 102_400: 120.0}, gflop=2.0)
    found, tests = verdict(plan, SETS[0])
    assert found == "undecided"
    assert tests[2] == f"{CANDIDATE}: samples are as near as decoded latents, 100.0 and 98.0"


def test_sets_have_folders_of_their_own(plan: Plan) -> None:
    """A pattern finds the latents of another one, and measures those."""
    assert plan.latents(CANDIDATE, "n0*") != plan.latents(CANDIDATE, "*n0*")
    assert plan.generator(CANDIDATE, "a/*") != plan.generator(CANDIDATE, "a-*")
