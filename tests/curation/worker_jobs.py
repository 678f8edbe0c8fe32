"""Jobs that the tests of the worker pool send to other processes (which must be able to import them)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from curation.errors import DataError


def square(value: int, advance: Any) -> tuple[int, int]:
    import torch

    advance(1)
    return value * value, torch.get_num_threads()


def die(marker: str, advance: Any) -> None:
    # Waits until the other job has finished, then is killed as by the kernel when memory runs out.
    while not Path(marker).exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust(value: int, advance: Any) -> None:
    raise MemoryError


def sentence(value: str, advance: Any) -> None:
    raise DataError("The corpus is empty", where=value, remedy="Give it text")


def bug(value: int, advance: Any) -> float:
    return 1 / value


def sleep_with_pid(path: str, advance: Any) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def process_id(value: int, advance: Any) -> int:
    return os.getpid()
