"""A worker's side of `curation.workers`: it runs the jobs that come through its socket, and dies with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from curation.errors import MixwrightError
from curation.memory import keep_freed_memory
from curation.progress import set_progress_mode
from curation.quiet_libraries import quiet_libraries

_PR_SET_PDEATHSIG = 1
REPORT_SECONDS = 0.5
PARENT_CHECK_SECONDS = 1.0
MEMORY = (
    "MachineError",
    "The memory ran out in a worker",
    "workers",
    "Use fewer workers or smaller batches, and start the same command again: what had finished is kept",
)


def serve(descriptor: int, parent: int) -> None:
    """Main function of a worker: run the jobs that come through the socket until it closes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it stops its workers.
    set_progress_mode("quiet")
    quiet_libraries()
    keep_freed_memory()
    connection = Connection(descriptor)
    while True:
        try:
            parcel = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            function, argument = pickle.loads(parcel)
            # The environment has said so already; this holds against a library that sets it when imported.
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
            reporter = _Reporter(connection)
            result = function(argument, reporter)
            reporter.flush()
            message: tuple[str, Any] = ("result", result)
        except MixwrightError as error:
            message = ("sentence", (type(error).__name__, error.what, error.where, error.remedy))
        except MemoryError:
            message = ("sentence", MEMORY)
        except BaseException:
            message = ("traceback", traceback.format_exc())
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception:  # a result that cannot be pickled
            connection.send(("traceback", traceback.format_exc()))


class _Reporter:
    """Sends progress to the parent, at most twice a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._amount, self._sent = connection, 0.0, time.monotonic()

    def __call__(self, amount: float) -> None:
        self._amount += amount
        if time.monotonic() - self._sent >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._amount:
            self._connection.send(("progress", self._amount))
        self._amount, self._sent = 0.0, time.monotonic()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
