"""Runs that take seconds: pictures, and a recipe cut down to 16 px without LPIPS."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.cli.parse import parse
from ssdd.training.config import TrainConfig
from ssdd.training.loop import train
from ssdd.training.watch import StopRequest, TrainingStopped
from tests.training.runs import SMALL, Ended, in_processes


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve smooth coloured pictures."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(12):
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """``small_model(seed)``: folder of an f4c4 model that a CPU trains in no time, with random weights."""
    folder = tmp_path_factory.mktemp("models")

    def make(seed: int = 0) -> Path:
        if not (folder / str(seed)).is_dir():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoencoderSSDD(
                    block_out_channels=(32, 64, 128),
                    encoder_groups=8,
                    decoder_channels=(32, 32, 32, 32),
                    decoder_layers=1,
                    decoder_heads=2,
                    decoder_groups=8,
                )
            model.save_pretrained(folder / str(seed))
        return folder / str(seed)

    return make


@pytest.fixture(scope="session")
def start(small_model: Callable[[int], Path]) -> tuple[str, ...]:
    """Options of ``tiny-encoder`` by which it starts from that model."""
    return ("--model.start-from", str(small_model(0)), "--encoder", "None", "--model.decoder", "None")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A handful of crops for the latent statistics, no measurement of the machine's peak, and one thread, as in the
    processes of ``command``: sums over several threads differ in their last bits."""
    from ssdd.training import loop, tokenizer

    monkeypatch.setattr(tokenizer, "STATISTICS_IMAGES", 16)
    monkeypatch.setattr(tokenizer, "LATENT_CROPS", 32)
    monkeypatch.setattr(loop, "peak_flops", lambda *_, **__: 1e12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(photographs: Path) -> Callable[..., TrainConfig]:
    """``small("--seed", "1", recipe="tiny-encoder")``: the config of a small run, as the command line makes it."""

    def make(*options: str, recipe: str = "tiny-encoder") -> TrainConfig:
        return parse(["train", recipe, "--data.paths", str(photographs), *SMALL, *options]).recipe

    return make


@pytest.fixture
def stopped(small: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``stopped(run, "--seed", "1")``: a run that was told to stop after its third update, at 12 of 24 images."""

    def make(run: Path, *options: str, recipe: str = "tiny-encoder") -> Path:
        asked = 0

        def third_time(self: StopRequest) -> int:
            nonlocal asked
            asked += 1
            return 15 if asked == 3 else 0

        config = small(*options, recipe=recipe)
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "agreed", third_time)
            with pytest.raises(TrainingStopped, match="at 12 images"):
                train(config, run)
        return run

    return make


@pytest.fixture
def cpu() -> torch.device:
    """Tests compare bits: on one device, whatever the machine has."""
    return torch.device("cpu")


@pytest.fixture
def command(photographs: Path) -> Callable[..., Ended]:
    """``command(run, "--seed", "1", processes=2, kill_at=13)``: ``ssdd train`` in processes of its own.

    ``kill_at``: each process kills itself (SIGKILL) in that update; ``terminate_at``: the first sends itself SIGTERM;
    ``full_disk``: no file can be larger than a megabyte.
    """

    def start(
        run: Path,
        *options: str,
        recipe: str = "tiny-encoder",
        processes: int = 1,
        kill_at: int = 0,
        terminate_at: int = 0,
        full_disk: bool = False,
    ) -> Ended:
        arguments = ["train", recipe, "--out", str(run), "--data.paths", str(photographs), *SMALL, *options]
        return in_processes(arguments, processes, kill_at, terminate_at, full_disk)

    return start
