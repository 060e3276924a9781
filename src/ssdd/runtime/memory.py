"""What the C library does with freed memory, and how much a call takes."""

import ctypes
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # the commands ask for memory before they import torch, which takes seconds
    import torch

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
_KEPT_BYTES = (1 << 31) - 1  # the largest number that mallopt takes

_kept = False


def keep_freed_memory() -> bool:
    """Lets the process keep freed blocks of up to two gigabytes for its next use; glibc only, for good.

    Otherwise every tensor above 32 MiB is fresh memory from the system, to be zeroed page by page: a third of the time
    of a large decoding. The price is that the process does not shrink after its peak.

    Returns whether the C library takes the advice.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    global _kept
    _kept = all([library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES), library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)])
    return _kept


def freed_memory_is_kept() -> bool:
    """Return whether ``keep_freed_memory`` took effect in this process."""
    return _kept


def memory_growth(work: Callable[[], T], device: "torch.device") -> tuple[T, int]:
    """Return what a call returns, and by how many bytes it made memory grow at most: of CUDA, or of the process."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):  # Linux: forget the peak until now; elsewhere the call must top it
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS") or _peak_resident()
    result = work()
    return result, max(0, _peak_resident() - before)


def _peak_resident() -> int:
    """Return the most bytes that the process ever had. Linux' ``ru_maxrss`` begins with the peak of the parent."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int | None:
    """Return the bytes in a line of Linux' table of this process; None elsewhere."""
    table = Path("/proc/self/status")
    if not table.is_file():
        return None
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
