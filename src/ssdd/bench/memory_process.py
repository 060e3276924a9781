"""``python -m ssdd.bench.memory_process TASK``: one row of ``ssdd bench memory``, printed as JSON.

TASK is JSON of ``memory.py``. Nothing but the contender itself runs here.
"""

import json
import sys
from typing import Any

import torch

from ..memory import keep_freed_memory, memory_growth
from .config import MemoryBench
from .memory import MemoryRow
from .networks import decode_contender
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
        peak = memory_growth(work, device)[1] if found is None else found
    row = MemoryRow(contender.name, cell["size"], settings.batch_size, "on" if cell["tiled"] else "off", peak)
    print(json.dumps(vars(row)))


def _settings(values: dict[str, Any]) -> MemoryBench:
    """Out of JSON, which has lists for tuples."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return MemoryBench(**given)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
