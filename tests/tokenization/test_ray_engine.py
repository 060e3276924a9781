"""Shards by a Ray cluster: the same bytes, whatever happens to its actors; one line where there is no room."""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssdd.tokenization import tokenize
from ssdd.tokenization.plan import OpenJob
from tests.tokenization.conftest import TEMPORARY, Bar, Job

Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray cluster on this machine, with two workers."""
    ray = pytest.importorskip("ray", reason="needs the extra: pip install 'ssdd[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_killed_loses_nothing(job: Job, single: Path, tmp_path: Path, tree: Tree) -> None:
    out, killed = tmp_path / "out", []
    over = threading.Event()

    def kill_one() -> None:
        while not over.is_set() and not killed:
            for path in out.glob(".*-shard-00000[1-5].tar"):
                match = TEMPORARY.fullmatch(path.name)
                assert match
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(match[1]), signal.SIGKILL)
                    killed.append(int(match[1]))
                    return
            time.sleep(0.001)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        bar = Bar(lambda done: None)
        done = tokenize(job(shard_images=1), out, engine="ray", processes=2, workers=0, progress=bar)
    finally:
        over.set()
        killer.join()
    assert killed, "no actor was killed while it wrote"
    assert (done.made, bar.done) == (7, 7)
    assert tree(out) == tree(single)


def is_an_actor(cmdline: Path) -> bool:
    with contextlib.suppress(OSError):  # it has ended since it was listed
        return b"ray::ShardMaker" in cmdline.read_bytes()
    return False


@pytest.mark.usefixtures("cluster")
def test_less_room_than_is_asked_for(job: Job, single: Path, tmp_path: Path, tree: Tree) -> None:
    tokenize(job(shard_images=1), tmp_path / "out", engine="ray", processes=5, workers=0)
    assert tree(tmp_path / "out") == tree(single)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_an_actor(path)]
    assert left == [], "actors were told to end and not waited for"


@pytest.mark.usefixtures("cluster")
def test_a_cluster_full_of_other_work(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ssdd.tokenization import ray_engine

    class Other:
        def ready(self) -> None:
            pass

    other = ray.remote(num_cpus=2)(Other).remote()
    ray.get(other.ready.remote())
    monkeypatch.setattr(ray_engine, "_READY_SECONDS", 1)
    with pytest.raises(RuntimeError, match="expected room for an actor in the Ray cluster, found none in 1 s"):
        tokenize(job(shard_images=1), tmp_path / "out", engine="ray", processes=2, workers=0)


def test_room_for_ray_is_that_of_each_machine(job: Job) -> None:
    from ssdd.tokenization.ray_engine import _room

    nodes = [{"Alive": alive, "Resources": {"CPU": 3.0, "GPU": 4.0}} for alive in (True, True, False)]
    assert _room(nodes, OpenJob(job(threads=2))) == 2
    with pytest.raises(ValueError, match="expected 4 cores for an actor on a machine of the Ray cluster, found"):
        _room(nodes, OpenJob(job(threads=4)))


def test_ray_is_an_extra(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'ssdd[ray]'")):
        tokenize(job(), tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()
