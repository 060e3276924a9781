"""What the tests of training share: options of a small run, and reading what a run left."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SMALL = [
    *("--data.resolution", "16", "--data.workers", "0", "--loss.lpips", "0", "--validation.count", "0"),
    *("--optimizer.name", "adamw", "--optimizer.warmup-images", "16", "--optimizer.decay-images", "0"),
    *("--average.halflife-images", "16"),
    *("--total-images", "24", "--batch-size", "4", "--precision", "fp32"),
    *("--log.stats-images", "8", "--log.checkpoint-images", "12", "--log.sample-images", "0"),
]
"""XXS decoder and width-32 encoder on 16 px, without LPIPS, which needs weights, by the quickest optimiser: six updates
of four images."""


DRIVER = Path(__file__).parent / "driver.py"


@dataclass(frozen=True)
class Ended:
    """Exit statuses and output of the processes of a command."""

    statuses: list[int]
    output: str


def in_processes(arguments: list[str], count: int, environment: Mapping[str, int | tuple[int, int]] = {}) -> Ended:
    """``ssdd ARGUMENTS`` by the driver in ``count`` processes that know of one another, one thread each.

    environment: more variables; of a pair the first is for the first process, the second for the others.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        variables: dict[str, object] = {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
        variables |= {k: v[min(rank, 1)] if isinstance(v, tuple) else v for k, v in environment.items()}
        if count > 1:
            variables |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        children.append(
            subprocess.Popen(
                [sys.executable, str(DRIVER), *arguments],
                env={**os.environ, **{k: str(v) for k, v in variables.items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [child.communicate(timeout=300)[0] for child in children]
    return Ended([child.returncode for child in children], "\n".join(outputs))


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
    """Every loss of every update within the tolerance; the gradient's norm, which magnifies rounding, within ten."""
    for a, b in zip(stats(expected), stats(found), strict=True):
        assert a.keys() == b.keys()
        assert a.pop("parts").keys() == b.pop("parts").keys()
        for name in a:
            allowed = 10 * tolerance if "gradient" in name else tolerance
            assert b[name] == pytest.approx(a[name], rel=allowed, abs=tolerance), f"{name} at {a['images']} images"
    a, b = exported(expected), exported(found)
    worst = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert worst < 10 * tolerance, f"weights differ by {worst}"
