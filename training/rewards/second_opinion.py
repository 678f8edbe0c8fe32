"""math-verify as a second opinion, in a process that can be killed.

math-verify parses and simplifies what the model wrote, which can take for ever, and its own timeout needs a
signal in the main thread. Here it runs in a worker with a wall-clock deadline kept by the parent; a worker
that does not answer in time is killed and replaced. The worker has a limit on its memory and dies with its
parent. It is a plain subprocess, as in `curation.workers`: a script of three lines, without
`if __name__ == "__main__"`, or a notebook can ask it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

MEMORY_BYTES = 4 << 30
START_SECONDS = 60.0  # the first question also waits for the import
_START = (
    "import sys; sys.path[:] = {path!r}; from training.rewards.second_opinion import serve; "
    "serve({descriptor}, {parent})"
)


class MathVerify:
    """`equal(reference, answer)` -> True, False, or None when it gave no answer within `seconds` (wall
    clock).

    The worker starts with the first question. `timeouts` counts the questions that were cut off.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds, self.timeouts = seconds, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def equal(self, reference: str, answer: str) -> bool | None:
        pipe = self._started()
        if pipe is None:
            return None
        with contextlib.suppress(EOFError, OSError, ValueError):
            pipe.send_bytes(json.dumps([reference, answer]).encode())
            if pipe.poll(self.seconds):
                return json.loads(pipe.recv_bytes()) is True
        self.timeouts += 1
        self.close()
        return None

    def close(self) -> None:
        """Kill the worker; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        atexit.unregister(self.close)

    def _started(self) -> Connection | None:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = socket.socketpair()
        with theirs:
            start = _START.format(path=sys.path, descriptor=theirs.fileno(), parent=os.getpid())
            self._process = subprocess.Popen(
                [sys.executable, "-c", start], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._pipe = Connection(ours.detach())
        atexit.register(self.close)
        ready = False
        with contextlib.suppress(EOFError, OSError):
            ready = self._pipe.poll(START_SECONDS) and self._pipe.recv_bytes() == b"ready"
        if not ready:
            self.close()
        return self._pipe


def available() -> bool:
    """Whether math-verify is installed."""
    from importlib.util import find_spec

    return find_spec("math_verify") is not None


def serve(descriptor: int, parent: int) -> None:
    """The worker: answers pairs until its parent is gone."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Connection(descriptor)
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    pipe.send_bytes(b"ready")
    while True:
        try:
            reference, answer = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            gold = parse(f"${reference}$", parsing_timeout=None)
            given = parse(f"${answer}$", parsing_timeout=None)
            verdict = bool(gold and given and verify(gold, given, timeout_seconds=None))
        except Exception:
            verdict = False
        pipe.send_bytes(json.dumps(verdict).encode())


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, even in the middle of a computation."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
