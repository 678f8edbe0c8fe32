"""Memory of this process: its peak, and keeping what is freed, so that it need not be fetched from the kernel again."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30
_LARGEST_ON_HEAP = 32 << 20  # the most that glibc allows


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what a training step frees; True where that is possible.

    By default it gives large tensors back to the kernel after each use and gets them, page by page and zeroed, at the
    next step. A training step of a 1M-parameter model on a CPU took 1.14 to 1.22 times as long (process time, three
    pairs). Affects the whole process, which then holds its peak of memory, at most 1 GB of it unused.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP) and libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        )
    except (OSError, AttributeError):
        return False


def peak_memory() -> int:
    """The most that this process has had resident, in bytes, since its program began.

    On Linux not `ru_maxrss`, which also counts what the process that started this one held at that moment.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
