"""Whoever makes the shards, and whatever happens to them: the same bytes, nobody left behind, one line for an error."""

import contextlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from ssdd.processes import usable_cores
from ssdd.tokenization import TokenizeStopped, processes, tokenize, verify, worker
from ssdd.tokenization.plan import OpenJob, ShardTask
from ssdd.tokenization.processes import encoder_devices
from ssdd.tokenization.shard import write_shard
from ssdd.tokenization.worker import Failed, Order
from tests.tokenization.conftest import TEMPORARY, Bar, Job

Tree = Callable[[Path], dict[str, bytes]]

LONG = 100
"""Crops of an image: some seconds of work."""


def test_a_process_that_is_killed_loses_nothing(
    job: Job, single: Path, tmp_path: Path, tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill_one(done: int) -> None:
        if not killed:
            victim = multiprocessing.active_children()[0]
            assert victim.pid is not None
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    bar = Bar(kill_one)
    with caplog.at_level(logging.WARNING):
        done = tokenize(job(shard_images=1), tmp_path / "out", processes=2, workers=1, progress=bar)
    assert done.made == 7
    assert f"process {killed[0]} on cpu was killed by SIGKILL; its shards: " in caplog.text
    assert tree(tmp_path / "out") == tree(single)
    assert bar.done == bar.total == 7
    assert multiprocessing.active_children() == []


def test_processes_that_all_die_are_one_line(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = processes._Worker.__init__

    def start_and_kill(worker: processes._Worker, order: Order) -> None:
        start(worker, order)
        worker.process.kill()

    monkeypatch.setattr(processes._Worker, "__init__", start_and_kill)
    monkeypatch.setattr(processes, "MOST_RESTARTS", 1)
    with pytest.raises(
        RuntimeError, match=r"expected processes that live, but .*SIGKILL.*the same command goes on"
    ) as e:
        tokenize(job(shard_images=1), tmp_path / "out", processes=2)
    assert "\n" not in str(e.value)


def test_a_shard_given_back_after_the_others_were_told_that_there_is_none(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They end well, and somebody has to make it all the same, also where none may take the place of the dead."""
    start, send = processes._Worker.__init__, processes._Worker.send
    started: list[processes._Worker] = []
    killed: list[int | None] = []

    def note(worker: processes._Worker, order: Order) -> None:
        start(worker, order)
        started.append(worker)

    def kill_the_other(worker: processes._Worker, task: ShardTask | None) -> None:
        send(worker, task)
        for other in started:
            if task is None and other is not worker and other.tasks and not killed:
                killed.append(other.pid)
                other.process.kill()

    monkeypatch.setattr(processes._Worker, "__init__", note)
    monkeypatch.setattr(processes._Worker, "send", kill_the_other)
    monkeypatch.setattr(processes, "MOST_RESTARTS", 0)
    with caplog.at_level(logging.WARNING):
        done = tokenize(job(rule="random", crops=LONG), tmp_path / "out", processes=2)
    assert done.made == 2
    assert verify(tmp_path / "out") == []
    assert f"process {killed[0]} on cpu was killed by SIGKILL; its shards: " in caplog.text
    assert "; the others go on" in caplog.text
    assert len(started) == 3


def test_a_reader_that_is_killed_is_a_process_that_dies(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill_a_reader(done: int) -> None:
        if not killed:
            victims = [reader for process in multiprocessing.active_children() for reader in children(process.pid or 0)]
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    with caplog.at_level(logging.WARNING):
        long = job(shard_images=1, rule="random", crops=LONG)
        done = tokenize(long, tmp_path / "out", processes=2, workers=1, progress=Bar(kill_a_reader))
    assert done.made == 7
    assert verify(tmp_path / "out") == []
    assert "lost a process that read for it; its shards: " in caplog.text


def test_an_error_in_a_process_is_the_error(job: Job, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    changed = job(shard_images=1, paths=(str(tmp_path / "data"),))

    def lose(total: int) -> contextlib.AbstractContextManager[Bar]:
        (tmp_path / "data" / "cow" / "x.png").unlink()  # planned here, looked for there
        return contextlib.nullcontext(Bar(lambda done: None))

    with pytest.raises(ValueError, match="expected the data and the model that the command began with"):
        tokenize(changed, tmp_path / "out", processes=2, progress=lose)
    assert multiprocessing.active_children() == []


def children(pid: int) -> list[int]:
    """All below a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(word) for word in path.read_text().split()]
    return found + [below for child in found for below in children(child)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return what()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_the_command(
    photographs: Path, tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    long = ("--size", "32", "--crop", "random", "--crops", "1000", "--shard-images", "1", "--processes", "2")
    command = [sys.executable, "-m", "ssdd", "tokenize", str(photographs), "--model", str(tiny_model), *long]
    run = subprocess.Popen([*command, "--device", "cpu", "--out", str(out)], stderr=subprocess.PIPE, text=True)

    def busy() -> set[str]:
        return {m[1] for path in out.glob(".*") if (m := TEMPORARY.fullmatch(path.name))} if out.exists() else set()

    assert wait_for(lambda: len(busy()) == 2, 120), "two processes never wrote at the same time"
    below = children(run.pid)
    assert {int(pid) for pid in busy()} <= set(below)
    assert len(below) >= 4, "no readers"
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert wait_for(lambda: not any(map(is_running, below)), 8), "processes were left behind"
    if number == signal.SIGTERM:
        assert run.returncode == 143
        (line,) = [line for line in errors.splitlines() if line.startswith("ssdd tokenize: ")]
        assert re.search(r"stopped by SIGTERM: \d of 7 shards are in .*; the same command goes on", line)
        assert "Traceback" not in errors
        assert not busy(), "half-written files were left"


def test_ctrl_c_while_processes_start(photographs: Path, tiny_model: Path, tmp_path: Path) -> None:
    """It reaches them too, in the midst of their imports."""
    out = tmp_path / "out"
    small = ("--size", "32", "--shard-images", "1", "--processes", "2", "--device", "cpu", "--out", str(out))
    command = [sys.executable, "-m", "ssdd", "tokenize", str(photographs), "--model", str(tiny_model), *small]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def spawned() -> list[int]:
        return [pid for pid in children(run.pid) if b"spawn_main" in command_line(pid)]

    assert wait_for(lambda: bool(spawned()), 120)
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert re.search(r"stopped by SIGINT: \d of 7 shards", errors)


def test_ctrl_c_in_a_single_process(job: Job, single: Path, tmp_path: Path, tree: Tree) -> None:
    def interrupt(done: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TokenizeStopped, match=r"stopped by SIGINT: \d of 7 shards are in") as caught:
        tokenize(job(shard_images=1), tmp_path / "out", workers=0, progress=Bar(interrupt))
    assert caught.value.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert not any(TEMPORARY.fullmatch(path.name) for path in (tmp_path / "out").iterdir())
    tokenize(job(shard_images=1), tmp_path / "out", workers=0)
    assert tree(tmp_path / "out") == tree(single)


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_a_full_disk(job: Job, tmp_path: Path, container: str) -> None:
    if container == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra: pip install 'ssdd[parquet]'")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"shard-000000\.\w+: expected to write this shard, found: File too large"
        ) as e:
            tokenize(job(container=container), tmp_path / "out", workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(e.value)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "plan.json"]
    tokenize(job(container=container), tmp_path / "out", workers=0)
    assert verify(tmp_path / "out") == []


def test_errors_of_others_are_not_those_of_writing(job: Job, tmp_path: Path) -> None:
    opened = OpenJob(job())
    (task, _) = opened.shards()

    def lost() -> Iterator[Any]:
        raise ConnectionResetError("the file server")
        yield

    def nobody(images: int) -> None:
        raise BrokenPipeError("the parent")

    with pytest.raises(ConnectionResetError, match=r"^the file server$"):
        write_shard(opened, task, tmp_path, lost())
    with pytest.raises(BrokenPipeError, match=r"^the parent$"):
        write_shard(opened, task, tmp_path, report=nobody)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_of_the_work_that_breaks_is_an_error(job: Job, tmp_path: Path) -> None:
    """The parent is there, so it is not the connection to it."""
    theirs, ours = multiprocessing.Pipe()
    order = Order(job(), "", "cpu", 0, tmp_path)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=serve_with_a_lost_server, args=(order, theirs))
    process.start()
    assert ours.poll(60)
    assert ours.recv() == Failed("OSError", "the file server")
    process.join()


def serve_with_a_lost_server(order: Order, connection: Connection) -> None:
    def lost(*_: object) -> OpenJob:
        raise ConnectionResetError("the file server")

    worker.open_like = lost
    worker.serve(order, connection)


def test_data_that_disappear_are_not_broken_images(job: Job, photographs: Path, tmp_path: Path, tree: Tree) -> None:
    """They would be skipped for ever."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(photographs, data)

    def lose(done: int) -> None:
        if data.exists():
            data.rename(tmp_path / "unmounted")

    with pytest.raises(OSError, match=r"expected the image that was listed, found none: put the data back"):
        tokenize(job(shard_images=1, paths=(str(data),)), out, workers=0, progress=Bar(lose))
    (tmp_path / "unmounted").rename(data)
    tokenize(job(shard_images=1, paths=(str(data),)), out, workers=0)
    assert verify(out) == []


def test_how_many_processes(job: Job, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    cores = usable_cores()
    assert encoder_devices(cpu, None, 1) == ["cpu"] * cores
    assert encoder_devices(cpu, None, cores + 1) == ["cpu"]
    assert encoder_devices(cpu, 3, 1) == ["cpu"] * 3
    assert encoder_devices(torch.device("cuda:1"), None, 1) == ["cuda:1"]
    for wrong in ({"processes": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match="expected at least one process and no less than 0 workers"):
            tokenize(job(), tmp_path / "out", **wrong)
