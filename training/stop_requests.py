"""Stopping on request: the first SIGTERM or SIGINT is noted and obeyed between two updates."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from curation.errors import MixwrightError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStopped(MixwrightError):
    """A run was asked to stop, has saved where it stands, and continues when called again.

    Its exit code is sysexits' EX_TEMPFAIL, "try again later", so that a scheduler can tell it from a failure.
    """

    exit_code = 75


class StopRequest:
    """Which signal has asked this process to stop, if any has."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying of them, for the time of the block.

    A second signal does what it would have done without the block. A signal that the process ignores stays
    ignored, and outside the main thread, where Python allows no handlers, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    ours = [s for s in SIGNALS if before[s] not in (signal.SIG_IGN, None)]

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()

    def restore() -> None:
        for s in ours:
            signal.signal(s, before[s])

    for s in ours:
        signal.signal(s, note)
    try:
        yield request
    finally:
        restore()
