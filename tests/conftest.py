"""Fixtures that several folders share: a tiny model, pictures, the command line in this process."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Read when huggingface_hub is imported: no test asks the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"

# Read when torch is imported, here and in processes that tests start: tests that run side by side share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts its background jobs with Ctrl-C ignored, nohup its command with SIGHUP, and a process hands that on to
# those that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small f8c4 model with random weights, always the same."""
    from ssdd import AutoencoderSSDD

    folder = tmp_path_factory.mktemp("tiny-model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderSSDD.from_preset(encoder="f8c4", decoder="XXS", encoder_width=32)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """torch.compile finds no C++ compiler; it looks for one at the first call of what is compiled."""
    import torch._inductor.config

    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    """``picture(height, width, seed)``: smooth colours with some noise; no two rows or columns alike."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        y, x = np.mgrid[0:height, 0:width]
        colours = np.stack([x * 200 / width, y * 200 / height, (x + 2 * y + 50 * seed) % 200], axis=-1)
        noise = np.random.default_rng(seed).integers(0, 40, colours.shape)
        return (colours + noise).clip(0, 255).astype(np.uint8)

    return make


@dataclass(frozen=True)
class CommandResult:
    """What a command left: exit status, standard output and error."""

    status: int
    out: str
    err: str

    def error_line(self) -> str:
        """The one line on standard error. Fails if there are more, or if the status is not 1."""
        lines = self.err.splitlines()
        assert self.status == 1, f"expected exit status 1, found {self.status}: {self.err}"
        assert len(lines) == 1, f"expected one clear line, found: {self.err}"
        assert lines[0].startswith("ssdd: error: "), f"the line does not say who failed: {lines[0]}"
        return lines[0]

    def skipped(self) -> list[str]:
        """The lines that name a skipped input."""
        return [line for line in self.err.splitlines() if line.startswith("skipped ")]


@pytest.fixture
def ssdd(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., CommandResult]:
    """``ssdd("encode", path, ...)`` runs a command in this process, with ``tmp_path`` as the current folder."""
    from ssdd.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", os.fspath(tmp_path / "no-torch-home"))  # results without LPIPS everywhere
    monkeypatch.delenv("SSDD_TRACEBACK", raising=False)

    def run(*arguments: object) -> CommandResult:
        capfd.readouterr()
        try:
            status = main.run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        except SystemExit as stop:  # tyro, for --help and wrong usage
            status = int(stop.code or 0)
        return CommandResult(status, *capfd.readouterr())

    return run


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """``tree(folder)``: every entry below a folder and the bytes of the files, to see what a command changed."""

    def read(folder: Path) -> dict[str, bytes]:
        paths = sorted(folder.rglob("*"))
        return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in paths}

    return read
