"""A run that is killed, told to stop, or finds its checkpoint damaged ends in the same weights, bit for bit."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd import AutoencoderSSDD
from ssdd.cli.common import model_of_run
from ssdd.runtime.files import only_one
from ssdd.training.checkpoint import list_checkpoints, read_checkpoint
from ssdd.training.config import TrainConfig, to_json
from ssdd.training.loop import train
from tests.training.runs import exported, newest, stats

Small = Callable[..., TrainConfig]
Command = Callable[..., Any]

TWELVE = ("--total-images", "48", "--log.stats-images", "4", "--log.checkpoint-images", "24")
"""Twelve updates of four images, a checkpoint after six."""

TEN = ("--total-images", "40", "--log.stats-images", "4", "--log.checkpoint-images", "20")
"""Ten updates, a checkpoint after five."""


@pytest.fixture(scope="module")
def whole() -> dict[int, Path]:
    """Uninterrupted runs of twelve updates, by number of processes; made when first asked for."""
    return {}


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_twelve_updates_are_six_and_a_kill_and_six(
    start: tuple[str, ...],
    small: Small,
    command: Command,
    whole: dict[int, Path],
    tmp_path: Path,
    processes: int,
    workers: int,
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
        finish(whole[processes], *start, *TWELVE)
    run = tmp_path / "cut"
    options = (*start, *TWELVE, "--data.workers", str(workers))
    killed = command(run, *options, processes=processes, kill_at=8)
    assert killed.statuses == [-9] * processes, killed.output
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["000000000024"], "no checkpoint to go on from"
    finish(run, *options)

    expected, found = newest(whole[processes]), newest(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == [], "another model, average or optimiser"
    assert stats(run) == stats(whole[processes]), "stats.jsonl tells another story"
    a, b = exported(whole[processes]), exported(run)
    assert all(a[name].equal(b[name]) for name in a), "another exported model"


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on(
    start: tuple[str, ...], command: Command, tmp_path: Path, processes: int
) -> None:
    """A preempted job must lose nothing, whichever process gets the signal; its status says it is unfinished."""
    stopped = command(tmp_path / "run", *start, *TWELVE, processes=processes, terminate_at=3)
    assert stopped.statuses == [143] * processes, stopped.output
    assert "stopped by SIGTERM" in stopped.output
    assert "Traceback" not in stopped.output, stopped.output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name) in (12, 16, 20), "it did not stop at once"
    resumed = command(tmp_path / "run", *start, *TWELVE, processes=processes)
    assert f"resumed at {int(saved.name)} images" in resumed.output, resumed.output
    assert resumed.statuses == [0] * processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer.name", "muon"),
        # Its average has not begun: the one that is saved is schedule-free's own.
        ("--optimizer.name", "schedule-free-radam", "--average.from-images", "1000"),
    ],
    ids=["muon", "schedule-free"],
)
def test_other_optimizers_resume_exactly(
    small: Small, command: Command, start: tuple[str, ...], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Momentum, the counters in the parameter groups or the scale of the loss begin anew."""
    options = (*TEN, *start, *options)
    train(small(*options), tmp_path / "whole")
    assert command(tmp_path / "cut", *options, kill_at=8).statuses == [-9]
    train(small(*options), tmp_path / "cut")
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")


@pytest.mark.slow
def test_adversary_resumes_exactly(small: Small, command: Command, tmp_path: Path) -> None:
    """The discriminator, its power iteration or its optimiser begins anew; or an average that has not begun yet."""
    options = (*TWELVE, "--data.resolution", "32", "--loss.adversarial", "0.5", "--average.from-images", "36")
    late = (*options, "--loss.adversarial-from-images", "12")
    train(small(*late, recipe="tiny-kl-vae"), tmp_path / "whole")
    # two optimiser steps an update once the discriminator is there: the 12th is in update 8
    assert command(tmp_path / "cut", *late, recipe="tiny-kl-vae", kill_at=12).statuses == [-9]
    train(small(*late, recipe="tiny-kl-vae"), tmp_path / "cut")
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")
    assert stats(tmp_path / "whole") == stats(tmp_path / "cut")


def test_two_commands_on_one_folder(start: tuple[str, ...], small: Small, tmp_path: Path) -> None:
    """A requeued job that starts while the old one still saves destroys both."""
    (tmp_path / "run").mkdir()
    with only_one(tmp_path / "run"), pytest.raises(ValueError, match="is being trained by another process"):
        train(small(*start), tmp_path / "run")
    train(small(*start, "--total-images", "4"), tmp_path / "run")


def test_skipped_updates_are_still_counted_after_resuming(start: tuple[str, ...], small: Small, tmp_path: Path) -> None:
    train(small(*start, "--total-images", "12"), tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((folder / "state.json").read_text())
    assert (state["skipped_updates"], state["skipped_in_a_row"]) == (0, 0)
    (folder / "state.json").write_text(json.dumps({**state, "skipped_updates": 5}))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "total_images": 24}))
    train(small(*start), tmp_path / "run")
    assert stats(tmp_path / "run")[-1]["skipped_updates"] == 5


def test_what_is_left_of_a_run_without_a_checkpoint(start: tuple[str, ...], small: Small, tmp_path: Path) -> None:
    """It may have had other settings: its figures and its best model are not this one's."""
    run, found = tmp_path / "run", tmp_path / "run" / "validation.jsonl"
    (run / "best").mkdir(parents=True)
    (run / "config.json").write_text(to_json(small(*start, "--optimizer.learning-rate", "1")))
    (run / "best.json").write_text('{"images": 8, "psnr_1": 99.0}')
    for path in (found, run / "stats.jsonl"):
        path.write_text('{"images": 0, "psnr_1": 99.0}\n')
    train(small(*start, "--validation.count", "4", "--validation.share", "0.25", "--validation.steps", "1"), run)
    assert [json.loads(line)["images"] for line in found.read_text().splitlines()] == [0, 24]
    assert "99.0" not in found.read_text() + (run / "best.json").read_text()
    AutoencoderSSDD.from_pretrained(run / "best")


@pytest.mark.slow
def test_run_may_go_on_with_another_number_of_processes(
    start: tuple[str, ...], small: Small, command: Command, tmp_path: Path
) -> None:
    """A checkpoint must not be tied to the machine that wrote it; the result differs by rounding only."""
    assert command(tmp_path / "run", *start, *TWELVE, processes=2, terminate_at=7).statuses == [143, 143]
    train(small(*start, *TWELVE), tmp_path / "run")
    train(small(*start, *TWELVE), tmp_path / "one")
    for a, b in zip(stats(tmp_path / "run"), stats(tmp_path / "one"), strict=True):
        assert a["total"] == pytest.approx(b["total"], rel=1e-4), "the loss curve breaks at the resumption"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with three checkpoints; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("intact") / "run"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "no state", "empty state"])
def test_damaged_checkpoint_is_passed_over(
    start: tuple[str, ...], small: Small, intact: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that a crash or a bad disk spoiled stops a run, or worse, is trained on."""
    options = (*start, "--total-images", "36", "--log.checkpoint-images", "12", "--log.keep-checkpoints", "3")
    if not intact.exists():
        train(small(*options), intact)
    shutil.copytree(intact, tmp_path / "run")
    before = newest(intact)
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


def test_all_checkpoints_damaged(start: tuple[str, ...], small: Small, tmp_path: Path) -> None:
    """Starting over in silence would throw the run away."""
    train(small(*start), tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "average.safetensors").unlink()
    with pytest.raises(ValueError, match="all 2 checkpoints are damaged; to begin anew, choose another --out"):
        train(small(*start), tmp_path / "run")


def test_half_written_checkpoint_is_no_checkpoint(start: tuple[str, ...], small: Small, tmp_path: Path) -> None:
    """A run killed while it wrote leaves a folder that must be neither used nor in the way."""
    train(small(*start, "--total-images", "12"), tmp_path / "run")
    partial = tmp_path / "run" / "checkpoints" / "000000000024.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "total_images": 24}))
    train(small(*start), tmp_path / "run")
    assert not partial.exists()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["000000000012", "000000000024"]


@pytest.mark.slow
def test_run_can_be_lengthened(small: Small, start: tuple[str, ...], tmp_path: Path) -> None:
    """A longer run is not what it would have been from the start, or one whose rate has decayed goes on."""
    options = (*start, "--optimizer.warmup-images", "8")
    train(small(*options), tmp_path / "whole")
    train(small(*options, "--total-images", "12"), tmp_path / "grown")
    assert model_of_run(str(tmp_path / "grown")) == str(tmp_path / "grown"), "a finished run is its model"
    model_of_run.cache_clear()
    config = (tmp_path / "grown" / "config.json").read_text()
    (tmp_path / "grown" / "config.json").write_text(to_json(small(*options)))
    assert model_of_run(str(tmp_path / "grown")).endswith("grown@12/model"), "a run that goes on is its old model"
    (tmp_path / "grown" / "config.json").write_text(config)
    train(small(*options), tmp_path / "grown")
    assert newest(tmp_path / "grown") == newest(tmp_path / "whole")
    assert [line["images"] for line in stats(tmp_path / "grown")] == [8, 12, 16, 24]
    a, b = exported(tmp_path / "whole"), exported(tmp_path / "grown")
    assert all(a[name].equal(b[name]) for name in a), "another exported model"
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["total_images"] == 24

    decaying = (*options, "--optimizer.decay-images", "4")
    train(small(*decaying, "--total-images", "12"), tmp_path / "decayed")
    with pytest.raises(ValueError, match=r"other settings \(total_images: 12 -> 24\)"):
        train(small(*decaying), tmp_path / "decayed")


@pytest.mark.parametrize(
    "average", [("--average.from-images", "1000"), ("--average.halflife-images", "1e-3")], ids=["before", "after"]
)
def test_schedule_free_exports_its_own_average(
    small: Small, start: tuple[str, ...], tmp_path: Path, average: tuple[str, ...]
) -> None:
    """Before or after the moving average begins, the training sequence y is exported, and not the average x."""
    options = (*start, "--optimizer.name", "schedule-free-radam", *average)
    options += ("--optimizer.warmup-images", "0", "--total-images", "48")  # its first five updates are hardly any
    config = small(*options, "--optimizer.learning-rate", "1e-2")
    train(config, tmp_path / "run")
    tensors = read_checkpoint(list_checkpoints(tmp_path / "run")[-1])[0]
    y, z, found = tensors["model"], tensors["optimizer"], exported(tmp_path / "run")
    plain = list(dict(config.build_stage().model.named_parameters()))
    undecayed = [name for name in plain if y[name].dim() <= 1 or name.endswith("bias_table")]
    order = [name for name in plain if name not in undecayed] + undecayed
    beta = config.optimizer.betas[0]
    moved = 0.0
    for index, name in enumerate(order):
        x = y[name] + (y[name] - z[f"{index}.z"]) * (1 - beta) / beta
        torch.testing.assert_close(found[name], x)
        moved = max(moved, float((x - y[name]).abs().max()))
    assert moved > 1e-4, "x and y are the same here: nothing is tested"


def test_stream_goes_on_exactly(
    small: Small,
    stopped: Callable[..., Path],
    start: tuple[str, ...],
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run on a streamed data set sees other images after a stop, or goes on on another data set."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'ssdd[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for name, step in (("stream", 1), ("backwards", -1)):
        (tmp_path / name).mkdir()
        cells = [{"bytes": p.read_bytes(), "path": None} for p in sorted(photographs.iterdir())][::step]
        for shard in range(3):
            rows = {"image": cells[4 * shard : 4 * shard + 4], "label": [0] * 4}
            dataset = datasets.Dataset.from_dict(rows, features=features)
            dataset.to_parquet(tmp_path / name / f"train-{shard:05d}-of-00003.parquet")
    options = (*start, "--log.stats-images", "4", "--data.paths")
    stream = f"hf:{tmp_path}/stream:train?streaming"
    train(small(*options, stream), tmp_path / "whole")
    stopped(tmp_path / "cut", *options, stream)
    with pytest.raises(ValueError, match="expected the photographs that this run began with"):
        train(small(*options, f"hf:{tmp_path}/backwards:train?streaming"), tmp_path / "cut")
    train(small(*options, stream), tmp_path / "cut")
    assert newest(tmp_path / "cut") == newest(tmp_path / "whole")
    assert stats(tmp_path / "cut") == stats(tmp_path / "whole")
