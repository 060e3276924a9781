"""Training a DiT in several processes: the same losses but for rounding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.cli.main import run
from tests.training.runs import compare, in_processes

pytestmark = pytest.mark.slow

OPTIONS = [
    *("--total-images", "40", "--batch-size", "4", "--workers", "0", "--precision", "fp32"),
    *("--log.stats-images", "4", "--log.checkpoint-images", "20", "--log.sample-images", "0"),
    *("--optimizer.learning-rate", "2e-4", "--average.halflife-images", "16"),
]
"""Ten updates of four latents."""


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes, tokenized at 32 px."""
    folder = tmp_path_factory.mktemp("tokenized")
    random = np.random.default_rng(0)
    for i in range(12):
        path = folder / "photos" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(path)
    assert run(["tokenize", str(folder / "photos"), "--out", str(folder / "latents"), "--size", "32"]) == 0
    return folder / "latents"


@pytest.fixture(scope="module")
def by_one(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one process makes."""
    run = tmp_path_factory.mktemp("one") / "run"
    ended = in_processes(["generate", "train", str(latents), "--out", str(run), *OPTIONS], 1)
    assert ended.statuses == [0], ended.output
    return run


@pytest.fixture(scope="module")
def by_two(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that two processes make, each with all of the network."""
    run = tmp_path_factory.mktemp("two") / "run"
    ended = in_processes(["generate", "train", str(latents), "--out", str(run), *OPTIONS], 2)
    assert ended.statuses == [0, 0], ended.output
    return run


def test_two_processes_are_one(by_one: Path, by_two: Path) -> None:
    """They see other latents, noise or hidden labels, or do not average their gradients."""
    compare(by_one, by_two, 1e-5)


def test_sharded_model_is_the_same_model(latents: Path, by_one: Path, tmp_path: Path) -> None:
    arguments = ["generate", "train", str(latents), "--out", str(tmp_path / "run"), *OPTIONS, "--parallel", "fsdp"]
    ended = in_processes(arguments, 2)
    assert ended.statuses == [0, 0], ended.output
    compare(by_one, tmp_path / "run", 1e-5)


def test_killed_processes_go_on(latents: Path, by_two: Path, tmp_path: Path) -> None:
    """Both killed in the eighth update: the command, run again, ends with the model of a run without that."""
    for kill_at in (8, 0):
        ended = in_processes(["generate", "train", str(latents), "--out", str(tmp_path), *OPTIONS], 2, kill_at=kill_at)
        assert ended.statuses == ([-9, -9] if kill_at else [0, 0]), ended.output
    for name in ("diffusion_pytorch_model.safetensors", "generation.json"):
        assert (tmp_path / "model" / name).read_bytes() == (by_two / "model" / name).read_bytes(), name
