"""How much memory a process or a GPU has used at most since a moment, and how much there is left."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR, _ALL = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")


def reset_peak(device: torch.device) -> bool:
    """Begin a new peak; whether that is possible here (on a GPU, and on Linux where /proc may be written)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device) -> int:
    """The largest amount held at once since `reset_peak`, or since the process began where that is not possible."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = _field(_STATUS, "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return found if found is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(device: torch.device) -> int | None:
    """What may still be allocated; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _field(_ALL, "MemAvailable")


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
