"""Shards by a Ray cluster: the same bytes, whatever happens to its workers."""

import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssdd.tokenization import tokenize
from tests.tokenization.conftest import TEMPORARY, Bar, Job

pytestmark = pytest.mark.slow

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
def test_a_worker_that_is_killed_loses_nothing(job: Job, single: Path, tmp_path: Path, tree: Tree) -> None:
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
    assert killed, "no worker was killed while it wrote"
    assert (done.made, bar.done) == (7, 7)
    assert tree(out) == tree(single)


@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_worker_is_one_line(job: Job, tmp_path: Path, photographs: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photographs, data)

    def lose(total: int | None) -> contextlib.AbstractContextManager[Bar]:
        (data / "cow" / "x.png").unlink()
        return contextlib.nullcontext(Bar(lambda done: None))

    settings = job(shard_images=1, paths=(str(data),))
    with pytest.raises(OSError, match=r"x\.png: expected the image that was listed, found none") as caught:
        tokenize(settings, tmp_path / "out", engine="ray", processes=1, workers=0, progress=lose)
    assert "\n" not in str(caught.value)


def test_ray_is_an_extra(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'ssdd[ray]'")):
        tokenize(job(), tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()
