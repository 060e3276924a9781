"""A run that is killed, told to stop, or finds its checkpoint damaged ends in the same weights, bit for bit."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssdd.files import only_one
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from tests.training.runs import exported, newest, stats

Small = Callable[..., TrainConfig]
Command = Callable[..., Any]

TWENTY = ("--total-images", "80", "--log.stats-images", "4", "--log.checkpoint-images", "40")
"""Twenty updates of four images, a checkpoint after ten."""


@pytest.fixture(scope="module")
def whole() -> dict[int, Path]:
    """Uninterrupted runs of twenty updates, by number of processes; made when first asked for."""
    return {}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_updates_are_ten_and_a_kill_and_ten(
    small: Small, command: Command, whole: dict[int, Path], tmp_path: Path, processes: int, workers: int
) -> None:
    """Resuming loses or repeats something: data, noise, optimiser or average, or the workers change the data."""

    def finish(run: Path, *options: str) -> None:
        if processes == 1:
            train(small(*options), run)
        else:
            done = command(run, *options, processes=processes)
            assert done.statuses == [0] * processes, done.output

    if processes not in whole:
        whole[processes] = tmp_path / "whole"
        finish(whole[processes], *TWENTY)
    run = tmp_path / "cut"
    options = (*TWENTY, "--data.workers", str(workers))
    killed = command(run, *options, processes=processes, kill_at=13)
    assert killed.statuses == [-9] * processes, killed.output
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["000000000040"], "no checkpoint to go on from"
    finish(run, *options)

    expected, found = newest(whole[processes]), newest(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == [], "another model, average or optimiser"
    assert stats(run) == stats(whole[processes]), "stats.jsonl tells another story"
    a, b = exported(whole[processes]), exported(run)
    assert all(a[name].equal(b[name]) for name in a), "another exported model"


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on(command: Command, tmp_path: Path, processes: int) -> None:
    """A preempted job must lose nothing, whichever process gets the signal; its status says it is unfinished."""
    stopped = command(tmp_path / "run", *TWENTY, processes=processes, terminate_at=7)
    assert stopped.statuses == [143] * processes, stopped.output
    assert "stopped by SIGTERM" in stopped.output
    assert "Traceback" not in stopped.output, stopped.output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name) in (28, 32, 36), "it did not stop at once"
    resumed = command(tmp_path / "run", *TWENTY, processes=processes)
    assert f"resumed at {int(saved.name)} images" in resumed.output, resumed.output
    assert resumed.statuses == [0] * processes


def test_schedule_free_run_resumes_exactly(small: Small, command: Command, tmp_path: Path) -> None:
    """Its step counter and weights live in the parameter groups, which are easily forgotten."""
    options = (*TWENTY, "--optimizer.name", "schedule-free-radam", "--optimizer.betas", "0.9", "0.999")
    train(small(*options), tmp_path / "whole")
    assert command(tmp_path / "cut", *options, kill_at=13).statuses == [-9]
    train(small(*options), tmp_path / "cut")
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")


def test_adversary_resumes_exactly(small: Small, command: Command, tmp_path: Path) -> None:
    """The discriminator, its power iteration or its optimiser begins anew; or an average that has not begun yet."""
    options = (*TWENTY, "--data.resolution", "32", "--loss.adversarial", "0.5", "--average.from-images", "60")
    late = (*options, "--loss.adversarial-from-images", "20")
    train(small(*late, recipe="tiny-kl-vae"), tmp_path / "whole")
    # two optimiser steps an update once the discriminator is there: the 21st is in update 13
    assert command(tmp_path / "cut", *late, recipe="tiny-kl-vae", kill_at=21).statuses == [-9]
    train(small(*late, recipe="tiny-kl-vae"), tmp_path / "cut")
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")
    assert stats(tmp_path / "whole") == stats(tmp_path / "cut")


def test_other_photographs_are_refused(small: Small, photographs: Path, tmp_path: Path) -> None:
    """One photograph more and every crop after the resumption is another."""
    train(small("--total-images", "12"), tmp_path / "run")
    shutil.copytree(photographs, tmp_path / "more")
    shutil.copy(photographs / "00.png", tmp_path / "more" / "extra.png")
    config = small("--total-images", "12")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, paths=(str(tmp_path / "more"),)))
    with pytest.raises(ValueError, match="expected the 12 photographs that this run began with, found 13"):
        train(moved, tmp_path / "run")


def test_two_commands_on_one_folder(small: Small, tmp_path: Path) -> None:
    """A requeued job that starts while the old one still saves destroys both."""
    (tmp_path / "run").mkdir()
    with only_one(tmp_path / "run"), pytest.raises(ValueError, match="is being trained by another process"):
        train(small(), tmp_path / "run")
    train(small("--total-images", "4"), tmp_path / "run")


def test_skipped_updates_are_still_counted_after_resuming(small: Small, tmp_path: Path) -> None:
    train(small("--total-images", "12"), tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "skipped_updates": 5}))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "total_images": 24}))
    train(small(), tmp_path / "run")
    assert stats(tmp_path / "run")[-1]["skipped_updates"] == 5


def test_run_may_go_on_with_another_number_of_processes(small: Small, command: Command, tmp_path: Path) -> None:
    """A checkpoint must not be tied to the machine that wrote it; the result differs by rounding only."""
    assert command(tmp_path / "run", *TWENTY, processes=2, terminate_at=7).statuses == [143, 143]
    train(small(*TWENTY), tmp_path / "run")
    train(small(*TWENTY), tmp_path / "one")
    for a, b in zip(stats(tmp_path / "run"), stats(tmp_path / "one"), strict=True):
        assert a["total"] == pytest.approx(b["total"], rel=1e-4), "the loss curve breaks at the resumption"


@pytest.mark.parametrize("damage", ["cut", "flipped", "no state", "empty state"])
def test_damaged_checkpoint_is_passed_over(
    small: Small, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that a crash or a bad disk spoiled stops a run, or worse, is trained on."""
    options = ("--total-images", "36", "--log.checkpoint-images", "12", "--log.keep-checkpoints", "3")
    train(small(*options), tmp_path / "run")
    before = newest(tmp_path / "run")
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    if damage == "cut":
        os.truncate(last / "optimizer.safetensors", 1000)
    elif damage == "flipped":
        content = bytearray((last / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (last / "model.safetensors").write_bytes(content)
    elif damage == "no state":
        (last / "state.json").unlink()
    else:
        (last / "state.json").write_text("")
    with caplog.at_level("INFO"):
        train(small(*options), tmp_path / "run")
    assert "damaged checkpoint passed over" in caplog.text, "nobody is told"
    assert last.name in caplog.text, "it does not say which"
    assert "resumed at 24 images" in caplog.text, "the one before it is not used"
    assert newest(tmp_path / "run") == before, "the repeated updates are others"


def test_all_checkpoints_damaged(small: Small, tmp_path: Path) -> None:
    """Starting over in silence would throw the run away."""
    train(small(), tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "average.safetensors").unlink()
    with pytest.raises(ValueError, match="all 2 checkpoints are damaged; to begin anew, choose another --out"):
        train(small(), tmp_path / "run")


def test_half_written_checkpoint_is_no_checkpoint(small: Small, tmp_path: Path) -> None:
    """A run killed while it wrote leaves a folder that must be neither used nor in the way."""
    train(small("--total-images", "12"), tmp_path / "run")
    partial = tmp_path / "run" / "checkpoints" / "000000000024.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "total_images": 24}))
    train(small(), tmp_path / "run")
    assert not partial.exists()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["000000000012", "000000000024"]


def test_finished_run_is_left_alone(small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same command after the end must not train, nor touch the result."""
    model = train(small(), tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in model.iterdir()}
    with caplog.at_level("INFO"):
        assert train(small(), tmp_path / "run") == model
    assert "finished" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in model.iterdir()}
