"""Checkpoints: whole or not at all, kept as asked, and the ones before intact when the disk is full."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdd.training import checkpoint
from ssdd.training.checkpoint import (
    DamagedCheckpoint,
    checkpoint_folder,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    restore_update,
    update_tensors,
    write_checkpoint,
)
from ssdd.training.config import OptimizerConfig, TrainConfig
from ssdd.training.loop import train
from ssdd.training.optimizers import Update
from tests.training.runs import newest

Small = Callable[..., TrainConfig]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(run: Path, seen: int, size: int = 10) -> Path:
    folder = checkpoint_folder(run, seen)
    write_checkpoint(folder, {"model": {"w": torch.full((size,), float(seen))}}, {"images_seen": seen})
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"model": {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "n": torch.tensor(3)}}
    write_checkpoint(checkpoint_folder(tmp_path, 7), tensors, {"images_seen": 7, "numbers": {"k": [1, 2.5]}})
    folder = newest_checkpoint(tmp_path)
    assert folder is not None
    found, state = read_checkpoint(folder)
    assert state == {"images_seen": 7, "numbers": {"k": [1, 2.5]}}
    assert found["model"]["a"].equal(tensors["model"]["a"])
    assert found["model"]["n"].equal(torch.tensor(3))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["adamw", "muon", "schedule-free-radam"])
def test_update_in_half_precision_is_restored(tmp_path: Path, name: str) -> None:
    """The scale of the loss, momentum or a counter begins anew: an fp16 run does not resume exactly."""

    def fresh() -> tuple[nn.Module, Update]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        return model, Update(model, OptimizerConfig(name), "fp16", torch.device("cpu"))  # type: ignore[arg-type]

    def go_on(model: nn.Module, update: Update, steps: range) -> None:
        for step in steps:
            loss = model(torch.full((2, 4), float(step))).square().mean()
            update.backward(loss * (float("inf") if step == 1 else 1.0), 1.0)  # the second one is skipped
            update.step(1e-2)

    model, update = fresh()
    go_on(model, update, range(7))
    assert update.scaler.get_scale() == 2.0**15
    tensors, numbers = update_tensors(update)
    write_checkpoint(
        checkpoint_folder(tmp_path, 7),
        {"model": model.state_dict(), "optimizer": tensors},
        {"images_seen": 7, "optimizer": numbers},
    )
    found, state = read_checkpoint(checkpoint_folder(tmp_path, 7))
    again, restored = fresh()
    again.load_state_dict(found["model"])
    restore_update(restored, found["optimizer"], state["optimizer"])
    for network, its_update in ((model, update), (again, restored)):
        go_on(network, its_update, range(7, 12))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert restored.scaler.state_dict() == update.scaler.state_dict()


def test_full_disk_is_one_line_and_the_checkpoint_before_is_intact(tmp_path: Path) -> None:
    """A full disk must not cost more than the checkpoint that no longer fits."""
    write(tmp_path, 10)
    with disk_of(100_000), pytest.raises(OSError, match=r"could not write the checkpoint .*000000000020.* make room"):
        write(tmp_path, 20, size=10**6)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000000000010"], "half a checkpoint is left"
    folder = newest_checkpoint(tmp_path)
    assert folder is not None
    assert float(read_checkpoint(folder)[0]["model"]["w"][0]) == 10


@pytest.mark.slow
def test_full_disk_in_a_run(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends with one line; with room again the same command goes on to the same result."""
    train(small(), tmp_path / "whole")
    real = checkpoint.write_checkpoint

    def on_a_full_disk(folder: Path, *rest: object) -> None:
        with disk_of(1_000_000 if int(folder.name) > 12 else -1):
            real(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "write_checkpoint", on_a_full_disk)
    with pytest.raises(OSError, match="make room, and the same command goes on from there") as caught:
        train(small(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(checkpoint, "write_checkpoint", real)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["000000000012"]
    train(small(), tmp_path / "run")
    assert newest(tmp_path / "run") == newest(tmp_path / "whole")


def test_last_ones_and_milestones_are_kept(tmp_path: Path) -> None:
    """The disk fills up, or the checkpoint of a milestone is gone."""
    for seen in range(60, 720, 60):
        write(tmp_path, seen)
        prune_checkpoints(tmp_path, keep=2, milestone_images=200)
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [240, 420, 600, 660]
    prune_checkpoints(tmp_path, keep=1, milestone_images=0)
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [660]


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "notes").mkdir(parents=True)
    write(tmp_path, 5)
    prune_checkpoints(tmp_path, keep=1, milestone_images=0)
    assert (tmp_path / "checkpoints" / "notes").is_dir()
    assert newest_checkpoint(tmp_path / "elsewhere") is None


def test_damaged_checkpoint_takes_nobodys_place(tmp_path: Path) -> None:
    """It has the highest clock: by that it would push out the good ones that come after it."""
    write(tmp_path, 10)
    (write(tmp_path, 50) / "model.safetensors").write_bytes(b"spoiled")
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 10)
    write(tmp_path, 20)
    prune_checkpoints(tmp_path, keep=1, milestone_images=0)
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 20)
    assert (tmp_path / "checkpoints" / "000000000050.damaged").is_dir(), "nobody can look at what was damaged"


@pytest.mark.parametrize("state", ["[]", "{", '{"checksums": 3}', '{"checksums": {"../../x": "0"}}', "null"])
def test_hostile_state(tmp_path: Path, state: str) -> None:
    """Whatever state.json holds is a damaged checkpoint, not a traceback."""
    folder = write(tmp_path, 5)
    (folder / "state.json").write_text(state)
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(folder)
