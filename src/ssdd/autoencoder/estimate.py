"""How many bytes encoding and decoding take, and how many a device has.

The tensors that live at the widest place of each network are counted: the last level of the decoder, where a skip
meets what comes from below, and the first level of the encoder. A process on a CPU grows by more, for the C library
keeps freed blocks; how much more was fitted to what `benchmarks/memory.py` measures (docs/using.md).
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..runtime.memory import freed_memory_is_kept

LARGE_PIXELS = 1024 * 1024
"""Images up to this size are never asked about: they fit wherever the weights do."""

SHARE = 0.8
"""Of the free memory that is used: others want some too."""

_WORKSPACES = 1.08
"""What the libraries of other devices need beside the tensors."""

_MIB = 1 << 20


def decoding_bytes(pixels: int, channels: Sequence[int], itemsize: int, device: torch.device) -> int:
    """Return the bytes above the weights that decoding takes.

    Args:
        pixels: of all images of the batch.
        channels: of each level of the decoder.
        itemsize: bytes of a number.
        device: where it runs.
    """
    kept = device.type == "cpu" and freed_memory_is_kept()
    # What comes from below and a skip, apart and side by side, and one more skip; noise, image and sum in float32.
    # Norms are in place on a CPU, in float32 and as ``optimize`` makes them; elsewhere a skip's size more is needed.
    skips = 3 if kept or (device.type == "cpu" and itemsize == 4) else 4
    tensors = pixels * ((skips * channels[0] + 2 * channels[1]) * itemsize + 36)
    if device.type != "cpu":
        return round(_WORKSPACES * tensors)
    if kept:  # what building the model left behind is used first
        return max(tensors, round(1.65 * tensors) - 32 * _MIB)
    return min(round(1.15 * tensors) + 64 * _MIB, round(1.5 * tensors))


def encoding_bytes(pixels: int, channels: Sequence[int], itemsize: int, device: torch.device) -> int:
    """Return the same for encoding; channels are those of the encoder's levels."""
    tensors = pixels * 5 * channels[0] * itemsize
    if device.type != "cpu":
        return round(_WORKSPACES * tensors)
    return round((1.5 if freed_memory_is_kept() else 1.1) * tensors)


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes a device has free, also within the limits of a container; None where it does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
    return min((n for n in (available, _free_in_group()) if n is not None), default=None)


def _free_in_group() -> int | None:
    """Return what the process' control group (version 2) may still take; None without a limit."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        root = Path("/sys/fs/cgroup")
        group = root / own.removeprefix("0::/")
        free = []
        for folder in (group, *group.parents):
            if (limit := folder / "memory.max").is_file() and (text := limit.read_text().strip()) != "max":
                free.append(int(text) - int((folder / "memory.current").read_text()) + _cached(folder))
            if folder == root:
                break
        return min(free, default=None)
    except (OSError, ValueError, StopIteration):  # another system, or a table that is laid out otherwise
        return None


def _cached(folder: Path) -> int:
    """Return the bytes of files that the system would give up."""
    lines = (folder / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # PyTorch's on a CPU
