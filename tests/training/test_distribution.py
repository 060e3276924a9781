"""Several processes, and several microbatches, are one batch: the same losses but for rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from tests.training.runs import compare, exported, stats

Small = Callable[..., TrainConfig]
Command = Callable[..., Any]

TEN = (
    "--total-images",
    "40",
    "--log.stats-images",
    "4",
    "--log.checkpoint-images",
    "40",
    "--optimizer.learning-rate",
    "2e-4",
)
"""Ten updates of four images, each with its line in stats.jsonl, at the rate of real runs: Adam's first steps divide
each gradient by itself, and where it is nearly zero, rounding decides its sign."""

TOLERANCES = {"adamw": 1e-5, "muon": 1e-3, "schedule-free-radam": 1e-5}
"""Muon makes a matrix orthogonal in bfloat16 where the processor has that."""

ADVERSARIAL = ("--data.resolution", "32", "--loss.adversarial", "0.5", "--loss.adversarial-from-images", "4")


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.fixture
def one(folder_of_one: Path, start: tuple[str, ...], small: Small) -> Callable[..., Path]:
    """``one("muon")``: run of ten updates by one process in one batch, made when first asked for."""

    def run(optimizer: str = "adamw") -> Path:
        if not (folder_of_one / optimizer).exists():
            train(small(*start, *TEN, "--optimizer.name", optimizer), folder_of_one / optimizer)
        return folder_of_one / optimizer

    return run


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "schedule-free-radam"))]
)
def test_two_processes_are_one(
    start: tuple[str, ...], one: Callable[..., Path], command: Command, tmp_path: Path, optimizer: str
) -> None:
    """Gradients are not averaged over processes, or a process sees other crops, noise or times."""
    two = command(tmp_path / "two", *start, *TEN, "--optimizer.name", optimizer, processes=2)
    assert two.statuses == [0, 0], two.output
    compare(one(optimizer), tmp_path / "two", TOLERANCES[optimizer])


def test_two_processes_are_one_with_a_discriminator(small: Small, command: Command, tmp_path: Path) -> None:
    """The adaptive weight or the discriminator's gradient is one process' own."""
    # Two networks at play magnify rounding, most on processors whose kernels depend on the batch: in the second update,
    # the first of both networks, it is 3e-4 of the adaptive weight, in the third 2e-3 of a loss.
    options = (*TEN, *ADVERSARIAL, "--total-images", "8")
    train(small(*options, recipe="tiny-kl-vae"), tmp_path / "one")
    two = command(tmp_path / "two", *options, recipe="tiny-kl-vae", processes=2)
    assert two.statuses == [0, 0], two.output
    assert "adaptive" in stats(tmp_path / "two")[1]
    compare(tmp_path / "one", tmp_path / "two", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "schedule-free-radam"])
def test_sharded_model_is_the_same_model(
    start: tuple[str, ...], small: Small, command: Command, tmp_path: Path, optimizer: str
) -> None:
    """FSDP2 trains something else, or its checkpoint is not whole: it resumes as an ordinary run."""
    six = (*start, *TEN, "--total-images", "24", "--optimizer.name", optimizer)
    train(small(*six), tmp_path / "one")
    options = (*six, "--parallel", "fsdp", "--microbatch", "1")
    stopped = command(tmp_path / "two", *options, processes=2, terminate_at=3)
    assert stopped.statuses == [143, 143], stopped.output
    resumed = command(tmp_path / "two", *options, "--recompute", processes=2)
    assert resumed.statuses == [0, 0], resumed.output
    compare(tmp_path / "one", tmp_path / "two", TOLERANCES[optimizer])


def test_microbatches_are_one_batch(
    start: tuple[str, ...], one: Callable[..., Path], small: Small, tmp_path: Path
) -> None:
    """Accumulated gradients are summed instead of averaged, or their noise is not that of the batch."""
    train(small(*start, *TEN, "--microbatch", "1"), tmp_path / "four")
    compare(one(), tmp_path / "four", 1e-5)


def test_microbatches_with_several_processes(
    start: tuple[str, ...], one: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    """Gradients meet at the wrong pass, or a microbatch takes another process' part of the noise."""
    two = command(tmp_path / "two", *start, *TEN, "--microbatch", "1", processes=2)
    assert two.statuses == [0, 0], two.output
    compare(one(), tmp_path / "two", 1e-5)


def test_batch_that_cannot_be_cut(small: Small, command: Command, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a microbatch that divides the 4 images of a process, 3 not"):
        train(small("--microbatch", "3"), tmp_path / "run")
    odd = command(tmp_path / "run", "--batch-size", "5", processes=2)
    assert odd.statuses == [1, 1], odd.output
    assert "expected a batch size divisible by 2 processes, found 5" in odd.output


@pytest.mark.slow
def test_error_in_one_process_ends_all(start: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    """A full disk, which only the main process meets, leaves the others waiting for it for ever."""
    ended = command(tmp_path / "run", *start, *TEN, processes=2, full_disk=True)
    assert 1 in ended.statuses, ended.output
    assert 0 not in ended.statuses
    assert "make room, and the same command goes on from there" in ended.output


@pytest.mark.slow
def test_nonfinite_stop_of_two_processes(start: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    """Both stop, and the report is whole although one of them writes it."""
    options = ("--optimizer.learning-rate", "1e30", "--optimizer.clip", "1e30", "--optimizer.warmup-images", "0")
    ended = command(
        tmp_path / "run", *start, *TEN, *options, "--nonfinite-limit", "3", "--parallel", "fsdp", processes=2
    )
    assert ended.statuses == [1, 1], ended.output
    assert {p.name for p in (tmp_path / "run" / "nonfinite").iterdir()} == {
        "images.safetensors",
        "model.safetensors",
        "report.json",
    }


@pytest.mark.slow
def test_torchrun(photographs: Path, tmp_path: Path) -> None:
    """The documented command: two processes by torchrun, the package's own entry point."""
    import os
    import subprocess
    import sys

    from tests.training.runs import SMALL

    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "ssdd", "train", "tiny-encoder", "--out", str(tmp_path / "run")),
            *("--data.paths", str(photographs), *SMALL, "--total-images", "8"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert [line["images"] for line in stats(tmp_path / "run")] == [8]
    assert torch.isfinite(next(iter(exported(tmp_path / "run").values()))).all()
    assert done.stdout.count("trained model in") == 1, "every process prints"
