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
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ssdd.runtime.processes import usable_cores
from ssdd.tokenization import LatentDataset, TokenizeStopped, local, tokenize, verify
from ssdd.tokenization.local import encoder_devices
from ssdd.tokenization.output import open_output
from tests.process import ssdd, start
from tests.tokenization.conftest import TEMPORARY, Bar, Job

pytestmark = pytest.mark.slow

Tree = Callable[[Path], dict[str, bytes]]


def nobody_is_left() -> bool:
    """Whether no process of ours runs: one that is dead may be reaped by the executor's thread a moment later."""
    for _ in range(100):
        if not multiprocessing.active_children():
            return True
        time.sleep(0.05)
    return False


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
    assert "a process died; new ones make the shards that were begun again: " in caplog.text
    assert tree(tmp_path / "out") == tree(single)
    assert bar.done == bar.total == 7
    assert nobody_is_left()


def test_a_shard_that_is_due_when_a_process_dies(
    job: Job, single: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken from the list and never made, and a part of the work ended as if it were whole."""
    broken: list[int] = []

    class Dying(local.ProcessPoolExecutor):
        def submit(self, *args: Any) -> Any:
            if len(broken) == 2:
                broken.append(3)
                raise BrokenProcessPool("a process has died")
            broken.append(len(broken))
            return super().submit(*args)

    monkeypatch.setattr(local, "ProcessPoolExecutor", Dying)
    assert tokenize(job(shard_images=1), tmp_path / "out", processes=2, workers=0).made == 7
    assert tree(tmp_path / "out") == tree(single)


def test_processes_that_all_die_are_one_line(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_RESTARTS", 1)
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.05):
            for process in multiprocessing.active_children():
                process.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(RuntimeError, match=r"one died for the 2th time in a row.*the same command goes on") as e:
            tokenize(job(shard_images=1), tmp_path / "out", processes=2)
    finally:
        over.set()
        killer.join()
    assert "\n" not in str(e.value)


CRASHES = """
import os
from PIL import Image, ImageFile

load = ImageFile.ImageFile.load

def crash(image):
    if image.size == (37, 53):
        os.abort()
    return load(image)

ImageFile.ImageFile.load = crash
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_images_whose_decoder_ends_the_process(
    photographs: Path, tiny_model: Path, tmp_path: Path, processes: int
) -> None:
    """Each is read once more, alone, and left out, both of one shard; with a single process by the commands after."""
    data, code = tmp_path / "data", tmp_path / "code"
    shutil.copytree(photographs, data)
    for name in ("ant/1.png", "bee/b.0.png"):
        Image.open(data / name).resize((37, 53)).save(data / name)
    code.mkdir()
    (code / "sitecustomize.py").write_text(CRASHES)
    options = ("--size", "32", "--shard-images", "4", "--device", "cpu", "--max-skipped", "3")
    command = [sys.executable, "-m", "ssdd", "tokenize", str(data), "--model", str(tiny_model), *options]
    command += ["--processes", str(processes), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])}
    command += ["--workers", "0"]  # which of them ends it is no matter of chance
    for _ in range(2 if processes == 1 else 0):
        assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGABRT
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1.png: expected an image, found one whose decoder ends the process by SIGABRT" in done.stderr
    assert verify(tmp_path / "out") == []
    assert {skipped["name"] for skipped in LatentDataset(tmp_path / "out").manifest["skipped"]} == {
        "ant/1.png",
        "bee/b.0.png",
        "bee/broken.jpg",
    }


def test_processes_have_the_limit_on_pixels_of_the_command(job: Job, tmp_path: Path) -> None:
    """Pillow's own, for GIF, TIFF and WebP, is lower."""
    (tmp_path / "data").mkdir()
    Image.new("1", (13_400, 13_400)).save(tmp_path / "data" / "large.tif", compression="group4")
    Image.new("L", (40, 40)).save(tmp_path / "data" / "small.png")
    done = tokenize(job(paths=(str(tmp_path / "data"),), shard_images=1), tmp_path / "out", processes=2)
    assert done.manifest is not None
    assert done.manifest.skipped == []


def test_an_error_in_a_process_is_the_error(job: Job, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    changed = job(shard_images=1, paths=(str(tmp_path / "data"),))

    def lose(total: int | None) -> contextlib.AbstractContextManager[Bar]:
        (tmp_path / "data" / "cow" / "x.png").unlink()  # listed here, looked for there
        return contextlib.nullcontext(Bar(lambda done: None))

    with pytest.raises(OSError, match=r"x\.png: expected the image that was listed, found none"):
        tokenize(changed, tmp_path / "out", processes=2, progress=lose)
    assert nobody_is_left()


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
    long = ("--size", 32, "--crop", "random", "--crops", 1000, "--shard-images", 1, "--processes", 2)
    run = start("tokenize", photographs, "--model", tiny_model, *long, "--device", "cpu", "--out", out)

    def busy() -> set[str]:
        return {m[1] for path in out.glob(".*") if (m := TEMPORARY.fullmatch(path.name))} if out.exists() else set()

    assert wait_for(lambda: len(busy()) == 2, 120), "two processes never wrote at the same time"
    below = children(run.pid)
    assert {int(pid) for pid in busy()} <= set(below)
    run.send(number)
    ended = run.wait(30)
    assert wait_for(lambda: not any(map(is_running, below)), 8), "processes were left behind"
    if number == signal.SIGTERM:
        line = ended.one_line(143)
        assert re.search(r"ssdd tokenize: stopped by SIGTERM: \d of 7 shards are in .*; the same command goes on", line)
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
        with pytest.raises(OSError, match=r"shard-000000\.\w+: expected to write it, found: File too large") as e:
            tokenize(job(container=container), tmp_path / "out", workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(e.value)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "images.index", "plan.json"]
    tokenize(job(container=container), tmp_path / "out", workers=0)
    assert verify(tmp_path / "out") == []


def test_errors_of_others_are_not_those_of_writing(tmp_path: Path) -> None:
    output = open_output(tmp_path)
    with pytest.raises(ConnectionResetError, match=r"^the file server$"), output.writing("shard-000000.tar"):
        raise ConnectionResetError("the file server")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", ["torchrun", "srun", "--part"])
def test_two_ranks_share_the_work(
    photographs: Path, tiny_model: Path, single: Path, tmp_path: Path, tree: Tree, launcher: str
) -> None:
    """Each makes its part in one process of its own, and the last one writes the manifest."""
    out = tmp_path / "out"
    options = ("--size", 32, "--shard-images", 1, "--batch-size", 2, "--max-skipped", 1, "--device", "cpu")
    words = ("tokenize", photographs, "--model", tiny_model, *options, "--out", out)
    if launcher == "torchrun":
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ssdd"]
        subprocess.run([*run, *map(str, words)], check=True, capture_output=True)
    else:
        slurm = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODELIST": "localhost"}
        running = []
        for rank in range(2):
            task = {**slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} if launcher == "srun" else {}
            part = ["--part", f"{rank}/2"] if launcher == "--part" else []
            running.append(start(*words, *part, environment=task))
        ended = [process.wait() for process in running]
        assert [one.status for one in ended] == [0, 0], ended
        assert any("6 latents (4, 4, 4) of 6 images in 7 shards" in one.out for one in ended)
        if launcher == "--part":
            again = [ssdd(*words, "--part", f"{rank}/2").out for rank in range(2)]
            assert "6 latents (4, 4, 4) of 6 images in 7 shards" in again[0]
            assert again[1] == f"part 1/2 of {out}: all its shards are there (0 made now, 3 there before), and " + (
                "those of all others\n"
            )
    found, expected = tree(out), tree(single)
    assert {k: v for k, v in found.items() if k[0] != "."} == {k: v for k, v in expected.items() if k[0] != "."}


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
