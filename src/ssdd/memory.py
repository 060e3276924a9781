"""What the C library does with freed memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
_KEPT_BYTES = (1 << 31) - 1  # the largest number that mallopt takes


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
    taken = [library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES), library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)]
    return all(taken)
