"""Signals, counts, the log, operations and the environment: what a run knows about itself."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from ssdd.runtime.peak import peak_flops
from ssdd.runtime.processes import Processes
from ssdd.training.config import FlowConfig
from ssdd.training.log import RunLog, forget_after
from ssdd.training.random import seed_global_generators
from ssdd.training.run_folder import describe_environment, git_revision
from ssdd.training.step import training_flops
from ssdd.training.validation import grid
from ssdd.training.watch import FiniteCount, stop_requests

ONE = Processes(0, 1, torch.device("cpu"))


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@pytest.mark.parametrize("number", STOPPING, ids=lambda n: n.name)
def test_signal_is_noted_and_handlers_are_given_back(number: signal.Signals) -> None:
    """A signal would end the process in the middle of an update, or would be ignored after the training."""
    before = [signal.getsignal(n) for n in STOPPING]
    with stop_requests(ONE) as stop:
        assert stop.agreed() == 0
        os.kill(os.getpid(), number)
        assert stop.agreed() == number
    assert [signal.getsignal(n) for n in STOPPING] == before


def test_hangup_that_is_ignored_stays_ignored() -> None:
    """A training under ``nohup`` would end when its user logs out."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests(ONE) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.agreed() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_second_interrupt_is_at_once() -> None:
    """Ctrl-C twice: a user who does not want to wait for the checkpoint."""
    with stop_requests(ONE) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_in_a_thread() -> None:
    """Only the main thread may have signal handlers; a notebook's server trains in others."""
    found: list[int] = []

    def work() -> None:
        with stop_requests(ONE) as stop:
            found.append(stop.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_rows_of_skipped_updates() -> None:
    """The longest row counts, also one that ended before the host looked, or that spans two readings."""
    count = FiniteCount(torch.device("cpu"))
    for seen, finite in enumerate([True, False, False, True, False]):
        count.add(torch.tensor(finite), 4 * seen)
    assert count.read() == {"skipped": 3, "row": 1, "longest": 2, "seen": 16}
    assert count.read()["longest"] == 1, "an old row is reported twice"
    count.add(torch.tensor(False), 20)
    assert count.read() == {"skipped": 4, "row": 2, "longest": 2, "seen": 20}
    count.add(torch.tensor(True), 24)
    count.read()
    assert count.read() == {"skipped": 4, "row": 0, "longest": 0, "seen": 20}
    for _ in range(2):
        count.add(torch.tensor(False), 28)
    kept = count.until_now()
    assert kept == {"skipped_updates": 6, "skipped_in_a_row": 2}
    assert count.read()["longest"] == 2, "a checkpoint hides a row from the log"
    resumed = FiniteCount(torch.device("cpu"), *kept.values())
    resumed.add(torch.tensor(False), 32)
    assert resumed.read() == {"skipped": 7, "row": 3, "longest": 3, "seen": 32}


def test_stats_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    """They are about to be written again; a line cut by a crash is no reason to stop."""
    stats = tmp_path / "stats.jsonl"
    stats.write_text('{"images": 8}\n{"images": 16}\n{"images": 24}\n{"ima')
    forget_after(stats, 16)
    assert stats.read_text() == '{"images": 8}\n{"images": 16}\n'
    forget_after(tmp_path / "none.jsonl", 3)


def test_means_leave_skipped_updates_out(tmp_path: Path) -> None:
    config = FlowConfig(total_images=100)
    log = RunLog(tmp_path, config, ONE, seen=0, share_of_peak=0.0)
    for value, finite in ((1.0, True), (float("nan"), False), (3.0, True), (100.0, False)):
        log.add({"loss": torch.tensor(value)}, torch.tensor(finite), 4, waited=0.0)
    assert log.write(4, {})["loss"] == 2.0
    log.add({"loss": torch.tensor(float("inf"))}, torch.tensor(False), 8, waited=0.0)
    assert log.write(8, {}) == {}, "a mean of nothing"
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line.get("loss") for line in lines] == [2.0, None]


def test_operations_are_counted_as_known(small) -> None:  # type: ignore[no-untyped-def]
    """XXS with c = 4: its forward pass is counted by hand through its convolutions and products; training is 3 times
    that, less what needs no gradient."""
    stage = small().build_stage()
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.zeros(1, 3, 16, 16)
        moments = stage.model.encoder(x)
        stage.model.decoder(x, torch.zeros(1), moments[:, :4])
    forward = counter.get_total_flops()
    found = training_flops(stage, small(), torch.device("cpu"))
    assert 2.8 * forward < found < 3.01 * forward, "forward and backward are about three forward passes"
    assert all(p.grad is None for p in stage.model.parameters()), "the first update would begin with a gradient"


def test_peak_is_a_plausible_rate() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32, budget=0.05) < 1e15


def test_environment_names_what_ran() -> None:
    found = describe_environment(ONE)
    assert found["processes"] == 1
    assert found["packages"]["torch"]
    json.dumps(found)
    revision = git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40


def test_grid_puts_each_image_in_its_place() -> None:
    import numpy as np

    rows = [
        np.full((2, 4, 4, 3), 10 * r, np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None, None] for r in range(3)
    ]
    page = grid(rows)
    assert page.shape == (3 * 8 - 4, 2 * 8 - 4, 3)
    assert page[0, 0, 0] == 0
    assert page[8, 8, 0] == 11
    assert page[19, 3, 0] == 20
    assert page[5, 0, 0] == 255, "no gap between rows"


def test_global_generators_are_a_function_of_the_clock() -> None:
    """A user's encoder that draws from them would differ after resuming."""
    import random

    import numpy as np

    def draw(*clock: int) -> tuple[float, float, float]:
        seed_global_generators(*clock)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(0, 40, 0) == draw(0, 40, 0)
    assert len({draw(0, 40, 0), draw(0, 44, 0), draw(1, 40, 0), draw(0, 40, 1)}) == 4
