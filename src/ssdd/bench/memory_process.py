"""``python -m ssdd.bench.memory_process TASK``: one row of ``ssdd bench memory``, printed as JSON.

TASK is JSON of ``memory.py``. Nothing but the contender itself runs here.
"""

import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..memory import keep_freed_memory
from .config import MemoryBench
from .memory import MemoryRow
from .networks import Work, decode_contender
from .throughput import peak_memory

_WARM_UP = 64
"""Side of the small image: libraries make their workspaces, and code is loaded."""


def main(task: dict[str, Any]) -> None:
    torch.set_num_threads(task["threads"])
    settings = _settings(task["settings"])
    cell, device = task["cell"], torch.device(task["device"])
    if settings.mode == "optimized" and device.type == "cpu":
        keep_freed_memory()  # as our contender does, so the others too
    contender = decode_contender(cell["kind"], cell["decoder"], settings, device)
    if cell["tiled"]:
        contender.autoencoder.enable_tiling()
    with torch.inference_mode():
        contender.work(_WARM_UP, 1)()
        work = contender.work(cell["size"], settings.batch_size)
        found = peak_memory(work, device)
        peak = _growth(work) if found is None else found
    row = MemoryRow(contender.name, cell["size"], settings.batch_size, "on" if cell["tiled"] else "off", peak)
    print(json.dumps(vars(row)))


def _settings(values: dict[str, Any]) -> MemoryBench:
    """Out of JSON, which has lists for tuples."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return MemoryBench(**given)


def _growth(work: Work) -> int:
    """Bytes by which the process grew at most during a call."""
    with suppress(OSError):  # Linux: forget the peak of loading; elsewhere the call must top it
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    work()
    return max(0, _peak_resident() - before)


def _resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS") or _peak_resident()


def _peak_resident() -> int:
    """The most that it ever was. Not ``ru_maxrss`` on Linux: that begins with the peak of the parent."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int | None:
    """Bytes, of a line in Linux' table of this process; None elsewhere."""
    table = Path("/proc/self/status")
    if not table.is_file():
        return None
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
