"""Runs that take a second or two: latents of 4 x 4, the tiny DiT."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssdd.generation import task
from ssdd.generation.config import GenerationConfig
from ssdd.generation.result import Generator, load_generator
from ssdd.generation.task import train_generator
from ssdd.training.config import AverageConfig, LogConfig, OptimizerConfig
from ssdd.training.watch import StopRequest
from tests.generation.latents import MemoryLatents, two_classes

Train = Callable[..., Path]

SMALL = GenerationConfig(
    latents="memory",
    size="tiny/2",
    optimizer=OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_images=64),
    average=AverageConfig(halflife_images=16),
    log=LogConfig(stats_images=4, sample_images=0, checkpoint_images=12),
    total_images=24,
    batch_size=4,
    workers=0,
    precision="fp32",
)


@pytest.fixture(autouse=True, scope="package")
def quick() -> Iterator[None]:
    """No measurement of the machine's peak, and one thread: sums over several differ in their last bits."""
    from ssdd.training import loop

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", lambda *_, **__: 1e12)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """``train(run, data, seed=1)``: trains the tiny DiT on latents in memory."""

    def start(run: Path, data: MemoryLatents, **settings: object) -> Path:
        monkeypatch.setattr(task, "LatentDataset", lambda folder: data)
        return train_generator(replace(SMALL, **settings), run, torch.device("cpu"))  # type: ignore[arg-type]

    return start


def stop_third_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run be told to stop, as by SIGTERM, when it asks for the third time."""
    asked = 0

    def third_time(self: StopRequest) -> int:
        nonlocal asked
        asked += 1
        return 15 if asked == 3 else 0

    monkeypatch.setattr(StopRequest, "agreed", third_time)


@pytest.fixture(scope="package")
def two(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt two constant latents by their class."""
    run = tmp_path_factory.mktemp("two") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "LatentDataset", lambda folder: two_classes())
        config = replace(
            SMALL,
            optimizer=replace(SMALL.optimizer, learning_rate=3e-3, decay_images=1600),
            total_images=3200,
            batch_size=16,
            label_dropout=0.2,
            average=AverageConfig(halflife_images=200),
            log=LogConfig(stats_images=320, sample_images=0, checkpoint_images=3200),
        )
        train_generator(config, run, torch.device("cpu"))
    return run


@pytest.fixture(scope="package")
def generator(two: Path) -> Generator:
    return load_generator(two)
