"""What the tests of training share: options of a small run, and reading what a run left."""

import itertools
import json
import os
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssdd.training.optimizers import Update
from tests.process import Prepare, ranks

SMALL = [
    *("--data.resolution", "16", "--data.workers", "0", "--loss.lpips", "0", "--validation.count", "0"),
    *("--optimizer.name", "adamw", "--optimizer.warmup-images", "16", "--optimizer.decay-images", "0"),
    *("--average.halflife-images", "16"),
    *("--total-images", "24", "--batch-size", "4", "--precision", "fp32"),
    *("--log.stats-images", "8", "--log.checkpoint-images", "12", "--log.sample-images", "0"),
]
"""XXS decoder and width-32 encoder on 16 px, without LPIPS, which needs weights, by the quickest optimiser: six updates
of four images."""


@dataclass(frozen=True)
class Ended:
    """Exit statuses and output of the processes of a command."""

    statuses: list[int]
    output: str


def in_processes(
    arguments: list[str], count: int, kill_at: int = 0, terminate_at: int = 0, full_disk: bool = False
) -> Ended:
    """``ssdd ARGUMENTS`` in ``count`` processes that know of one another, one thread each.

    kill_at: each process kills itself (SIGKILL) in that update. terminate_at: the first sends itself SIGTERM.
    full_disk: no file can be larger than a megabyte.
    """

    def disturb(rank: int) -> Prepare:
        signals = {kill_at: signal.SIGKILL, terminate_at if rank == 0 else 0: signal.SIGTERM}
        return partial(_disturb, signals, full_disk)

    ended = ranks(*arguments, count=count, prepare=disturb)
    return Ended([e.status for e in ended], "\n".join(e.out + e.err for e in ended))


def _disturb(signals: Mapping[int, signal.Signals], full_disk: bool) -> None:
    """Make this process send itself a signal in the given updates, counted from 1."""
    if full_disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    updates = itertools.count(1)
    step = Update.step

    def counted(self: Update, rate: float, watch: Any = None) -> Any:
        if number := signals.get(next(updates)):
            os.kill(os.getpid(), number)
        return step(self, rate, watch)

    Update.step = counted  # type: ignore[method-assign]


def stats(run: Path) -> list[dict[str, Any]]:
    """The lines of ``stats.jsonl`` without what depends on the clock on the wall."""
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "utilisation")} for line in lines]


def figures(run: Path) -> list[dict[str, float]]:
    """Numbers of the lines of ``stats.jsonl``, without those of the parts of the network."""
    return [{name: value for name, value in line.items() if name != "parts"} for line in stats(run)]


def exported(run: Path) -> dict[str, torch.Tensor]:
    """Weights of a run's result."""
    return load_file(run / "model" / "diffusion_pytorch_model.safetensors")


def newest(run: Path) -> dict[str, bytes]:
    """The tensors' bytes of the newest checkpoint, by file and name."""
    folder = sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit())[-1]
    return {
        f"{path.name}:{name}": tensor.numpy().tobytes()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def compare(expected: Path, found: Path, tolerance: float) -> None:
    """Every loss of every update within the tolerance; norms of gradients and the adaptive weight, a quotient of two,
    which magnify rounding, within ten."""
    for a, b in zip(stats(expected), stats(found), strict=True):
        assert a.keys() == b.keys()
        assert a.pop("parts").keys() == b.pop("parts").keys()
        for name in a:
            allowed = 10 * tolerance if "gradient" in name or name == "adaptive" else tolerance
            where = f"{name} at {a['images']} images"
            assert b[name] == pytest.approx(a[name], rel=allowed, abs=tolerance), where
    a, b = exported(expected), exported(found)
    worst = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert worst < 10 * tolerance, f"weights differ by {worst}"
