"""Signals in the middle of long commands: one line, the status that a scheduler knows, no half result."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssdd.checkpoints.identity import LatentIdentity
from ssdd.generation.model import build_dit
from ssdd.generation.result import Generator, LatentFacts, save_generator
from ssdd.training.checkpoint import list_checkpoints, read_checkpoint
from tests.process import ssdd, start
from tests.reliability.commands import Inputs, arguments, visible
from tests.reliability.interventions import (
    lose,
    lose_in_training,
    signal_in_a_finalizer,
    sigterm_while_files_are_listed,
)
from tests.training.runs import SMALL

pytestmark = pytest.mark.slow

Tree = Callable[[Path], dict[str, bytes]]

LINES = {signal.SIGINT: (130, "ssdd: interrupted"), signal.SIGTERM: (143, "ssdd: stopped by SIGTERM")}
MANY = 3000
"""Photographs, or samples: far more than a command gets done before it is stopped."""


@pytest.fixture(scope="module")
def many(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many links to one picture: minutes of work."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(MANY):
        os.link(photographs / "0.png", folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent DiT with random weights, for the tiny model's latents."""
    statistics = {"scaling_factor": 0.5, "shift_factor": 1.0, "latents_mean": None, "latents_std": None}
    facts = LatentFacts((4, 2, 2), ("one", "two"), statistics, LatentIdentity("", None, 8, 4))
    folder = tmp_path_factory.mktemp("generator")
    save_generator(Generator(build_dit("tiny/2", (4, 2, 2), 2), facts), folder)
    return folder


def typed(command: str, inputs: Inputs, many: Path, generator: Path, out: Path) -> list[object]:
    """A command that takes minutes."""
    if command == "generate":
        options = ("--decoder", inputs.model, "--count", MANY, "--batch-size", 1, "--device", "cpu", "--out", out)
        return ["generate", "sample", generator, *options]
    return [many if argument == inputs.photographs else argument for argument in arguments(command, inputs, out)]


@pytest.mark.parametrize("number", LINES, ids=lambda n: n.name)
@pytest.mark.parametrize("command", ["encode", "reconstruct", "generate"])
def test_commands_that_write_as_they_go(
    command: str, number: signal.Signals, inputs: Inputs, many: Path, generator: Path, tmp_path: Path
) -> None:
    """What is done stays, nothing half done does."""
    out = tmp_path / "out"
    running = start(*typed(command, inputs, many, generator, out))
    running.until(lambda: out.is_dir() and len(list(out.iterdir())) > 2)
    running.send(number)
    status, line = LINES[number]
    assert running.wait(30).one_line(status) == line
    files = [p for p in out.rglob("*") if p.is_file()]
    assert not [p for p in files if p.name.startswith(".")], "a temporary was left"
    assert len(files) < MANY, "it was not stopped at all"
    for path in files:
        assert path.stat().st_size > 50, f"half of {path} was left"


@pytest.mark.parametrize("number", LINES, ids=lambda n: n.name)
def test_one_whose_exception_is_lost(
    number: signal.Signals, inputs: Inputs, many: Path, generator: Path, tmp_path: Path
) -> None:
    """In a finalizer, as in a guard of a compiled function: it ends the command all the same."""
    out = tmp_path / "out"
    running = start(*typed("encode", inputs, many, generator, out), prepare=signal_in_a_finalizer(number))
    status, line = LINES[number]
    assert running.wait().one_line(status) == line
    assert 2 <= len(list(out.iterdir())) < MANY


def all_gone(group: int, seconds: float = 10.0) -> bool:
    """Whether no process of the group is left. Those without a parent are taken away by another process in its time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", LINES, ids=lambda n: n.name)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation(
    number: signal.Signals, workers: int, inputs: Inputs, many: Path, generator: Path, tmp_path: Path, tree: Tree
) -> None:
    """A model's rows come at its end: none, and those of yesterday are as they were. Its workers end with it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_bytes(b"yesterday")
    options = typed("evaluate", inputs, many, generator, out)
    options[options.index("--workers") + 1] = workers
    running = start(*options)
    running.until(lambda: b"".join(running.streams.values()).count(b"img/s") > 2)  # the bar moves
    running.send(number)
    status, line = LINES[number]
    assert running.wait(30).one_line(status) == line
    assert visible(tree(out)) == {"evaluation.json": b"yesterday"}
    assert all_gone(running.pid), "a worker is left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_in_a_training(number: signal.Signals, inputs: Inputs, tmp_path: Path) -> None:
    """A terminal or SLURM signals the whole group, workers too: the work since the last checkpoint would be lost.

    SIGTERM has its tests beside those of resuming.
    """
    run = tmp_path / "run"
    options = [*arguments("train", inputs, run), "--total-images", 4 * MANY, "--data.workers", 2]
    running = start(*options)
    running.until(lambda: len(list_checkpoints(run)) > 0)
    os.killpg(running.pid, number)
    ended = running.wait(30)
    assert (ended.status, "Traceback" in ended.err) == (128 + number, False), ended.err
    assert f"ssdd train: stopped by {number.name} at" in ended.lines()[-1]
    last = list_checkpoints(run)[-1]
    read_checkpoint(last)
    assert f"at {int(last.name)} images" in ended.lines()[-1], "the last moment was not saved"
    assert not (run / "model").exists(), "an unfinished run has a result"


def test_a_training_whose_torchrun_is_killed(inputs: Inputs, tmp_path: Path) -> None:
    """Workers without their torchrun would train on unseen and keep the GPUs; they save a checkpoint and end."""
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ssdd"]
    command = [*launcher, *map(str, arguments("train", inputs, run)), "--total-images", str(4 * MANY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as output:
        torchrun = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    until(lambda: torchrun.poll() is not None or len(list_checkpoints(run)) > 0, 120)
    torchrun.kill()
    assert torchrun.wait() == -signal.SIGKILL, log.read_text()
    until(lambda: "stopped by SIGTERM at" in log.read_text(), 30)
    line = log.read_text().splitlines()[-1]
    assert f"at {int(list_checkpoints(run)[-1].name)} images" in line, "the last moment was not saved"


def until(happened: Callable[[], bool], seconds: float) -> None:
    """Wait until something has happened, but no longer than so many seconds."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)


def test_sigterm_before_the_work(inputs: Inputs, tmp_path: Path) -> None:
    """While photographs are counted and the model is loaded: the same line, and not even a folder."""
    ended = ssdd(*arguments("reconstruct", inputs, tmp_path / "out"), prepare=sigterm_while_files_are_listed)
    assert ended.one_line(143) == "ssdd: stopped by SIGTERM"
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_gone_when_its_turn_comes(inputs: Inputs, tmp_path: Path, tree: Tree) -> None:
    """Between listing and reading: named, skipped and counted, like one that cannot be read."""
    folder = tmp_path / "in"
    shutil.copytree(inputs.photographs, folder)
    for command in ("encode", "evaluate", "data"):
        shutil.copy(inputs.photographs / "1.png", folder / "1.png")
        options = [folder if a == inputs.photographs else a for a in arguments(command, inputs, tmp_path / command)]
        ended = ssdd(*options, prepare=lose(folder / "1.png"))
        assert (ended.status, "Traceback" in ended.err) == (3, False), ended.err
        named = [line for line in ended.lines() if str(folder / "1.png") in line]
        assert len(named) == 1, f"{command}: not named once: {ended.err}"
        assert "found nothing at this path" in named[0] or "found none" in named[0], named[0]
    assert sorted(tree(tmp_path / "encode")) == ["0.safetensors"], "the other photograph was not done"


def test_an_input_that_is_gone_in_training(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(inputs.photographs, folder)

    options = ["train", "tiny-encoder", "--out", tmp_path / "run", "--data.paths", folder, *SMALL]
    ended = ssdd(*options, prepare=lose_in_training(folder / "1.png"))
    assert ended.status == 0, ended.err
    assert any(line.startswith("skipped: ") and "1.png" in line for line in ended.lines()), ended.err
