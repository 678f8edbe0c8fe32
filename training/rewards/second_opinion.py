"""math-verify as a second opinion, in a process that can be killed.

math-verify parses and simplifies what the model wrote, which can take for ever, and its own timeout needs a
signal in the main thread. Here it runs in a spawned worker with a wall-clock deadline kept by the parent; a
worker that does not answer in time is killed and replaced. The worker has a limit on its memory and dies
with its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import resource
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

MEMORY_BYTES = 4 << 30
START_SECONDS = 60.0  # the first question also waits for the import


class MathVerify:
    """`equal(reference, answer)` -> True, False, or None when it gave no answer within `seconds` (wall
    clock).

    The worker starts with the first question. `timeouts` counts the questions that were cut off.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds, self.timeouts = seconds, 0
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def equal(self, reference: str, answer: str) -> bool | None:
        pipe = self._started()
        if pipe is None:
            return None
        try:
            pipe.send((reference, answer))
            if pipe.poll(self.seconds):
                return pipe.recv()
        except (EOFError, OSError):
            pass
        self.timeouts += 1
        self.close()
        return None

    def close(self) -> None:
        """Kill the worker; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _started(self) -> Connection | None:
        if self._pipe is not None:
            return self._pipe
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        atexit.register(self.close)
        ready = False
        with contextlib.suppress(EOFError, OSError):
            ready = self._pipe.poll(START_SECONDS) and self._pipe.recv() == "ready"
        if not ready:
            self.close()
        return self._pipe


def available() -> bool:
    """Whether math-verify is installed."""
    from importlib.util import find_spec

    return find_spec("math_verify") is not None


def _serve(pipe: Connection, parent: int) -> None:
    """The worker: answers pairs until its parent is gone."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    pipe.send("ready")
    while True:
        try:
            reference, answer = pipe.recv()
        except EOFError:
            return
        try:
            gold = parse(f"${reference}$", parsing_timeout=None)
            given = parse(f"${answer}$", parsing_timeout=None)
            verdict = bool(gold and given and verify(gold, given, timeout_seconds=None))
        except Exception:
            verdict = False
        pipe.send(verdict)


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, even in the middle of a computation."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
