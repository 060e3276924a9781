"""How much memory does a decoding need beside the weights? Each row in a fresh process, so that none helps another.

On a GPU: what PyTorch had allocated at most. On a CPU: how far the process grew (resident pages), after its weights
were there and a small image had been decoded.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch

from .config import MemoryBench, Peer
from .networks import decoder_kinds
from .setting import Setting, this_setting
from .throughput import check_decoders, check_sizes

_TAIL = 300


@dataclass(frozen=True)
class MemoryRow:
    """tiling: ``off`` or ``on``. peak_bytes: of a call above the weights."""

    name: str
    size: int
    batch: int
    tiling: str
    peak_bytes: int


@dataclass(frozen=True)
class MemoryRows:
    """skipped: rows whose process failed, a line each."""

    setting: Setting
    rows: list[MemoryRow]
    skipped: list[str]


@dataclass(frozen=True)
class Cell:
    """What one process measures."""

    kind: Peer | None
    decoder: str
    size: int
    tiled: bool


def check_memory_bench(settings: MemoryBench) -> None:
    """Raises ValueError with one line for settings that cannot be measured."""
    if not settings.sizes or min(settings.batch_size, settings.steps) < 1:
        raise ValueError("expected sizes, and a batch size and steps of at least 1")
    if settings.compile and settings.mode == "eager":
        raise ValueError("expected --compile with --mode optimized, found it with --mode eager")
    check_sizes(settings.sizes, settings.latent)
    check_decoders(settings.decoders)


def memory_setting(settings: MemoryBench, device: torch.device) -> Setting:
    """Of the processes that measure."""
    return this_setting(
        "memory",
        device,
        dtype=settings.dtype,
        compile=settings.compile,
        mode=settings.mode,
        steps=settings.steps,
        freed_memory_kept=settings.mode == "optimized" and device.type == "cpu",
    )


def memory_cells(settings: MemoryBench) -> list[Cell]:
    """One for each row, the smallest images first."""
    tiled = {"both": (False, True), "off": (False,), "on": (True,)}[settings.tiling]
    return [
        Cell(kind, decoder, size, t)
        for size in sorted(set(settings.sizes))
        for kind, decoder in decoder_kinds(settings)
        for t in tiled
        if not (t and kind == "plain")
    ]


def bench_memory(settings: MemoryBench, device: torch.device, step: Callable[[], object] = lambda: None) -> MemoryRows:
    """Peak memory of a decoding, for each contender and size, whole and in tiles.

    step: called after each row. Raises ValueError for settings that cannot be measured, RuntimeError with the last
    line of a process' error if not one row could be.
    """
    check_memory_bench(settings)
    found = MemoryRows(memory_setting(settings, device), [], [])
    for cell in memory_cells(settings):
        try:
            found.rows.append(_measured(cell, settings, device))
        except RuntimeError as error:
            found.skipped.append(f"{cell.kind or 'SSDD'} {cell.decoder} at {cell.size} px: {error}")
        step()
    if not found.rows:
        raise RuntimeError(found.skipped[0])
    return found


def _measured(cell: Cell, settings: MemoryBench, device: torch.device) -> MemoryRow:
    task = {
        "cell": asdict(cell),
        "settings": {f.name: getattr(settings, f.name) for f in fields(MemoryBench)},
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "ssdd.bench.memory_process", json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise RuntimeError(lines[-1][-_TAIL:] if lines else f"its process ended with status {result.returncode}")
    return MemoryRow(**json.loads(result.stdout.splitlines()[-1]))
