"""The judge's side of the sandbox: it starts candidates, talks to them, and ends them in time.

Expected outputs never enter a candidate's process. It gets inputs and gives back values of exact built-in types
(see `exchange`), which the judge compares; so an object that is equal to everything, a forged result line or a
tampered interpreter gains nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from curation.errors import MachineError
from training.rewards.sandbox import exchange
from training.rewards.sandbox.confinement import Limits

Reason = Literal["error", "timeout", "memory", "output", "died", "malformed"]
_ZYGOTE = Path(__file__).with_name("zygote.py")
_START_SECONDS = 30.0
_ROOM = 1 << 16
_EXITS: dict[int, tuple[Reason, str]] = {
    7: ("memory", "out of memory"),
    -signal.SIGXCPU: ("timeout", "out of processor time"),
    -signal.SIGXFSZ: ("output", "a file too large"),
}


class Ended(Exception):
    """A candidate gave no value. reason : why, in a word; detail : its own error, or what happened."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Output:
    """What a program wrote. text : its standard output; error : how it failed, or None."""

    text: str
    error: str | None


class Sandbox:
    """A place to run candidate programs in; use it as a context, or call `close`.

    limits     : for each run; `seconds` is wall-clock time for all its calls together
    allow_weak : also run where the kernel lacks a part of the confinement; `missing` names the parts

    Without `allow_weak` a MachineError names what the machine lacks. One run at a time; about 3 ms each.
    """

    def __init__(self, limits: Limits | None = None, *, allow_weak: bool = False) -> None:
        self.limits, self.allow_weak = limits or Limits(), allow_weak
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._scratch = ""
        self.missing: tuple[str, ...] = ()
        self._start()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote and with it every candidate."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None
        shutil.rmtree(self._scratch, ignore_errors=True)
        atexit.unregister(self.close)

    @contextmanager
    def program(self, source: str, *, wait: bool = True) -> Iterator[Conversation]:
        """A program whose functions can be called. Raises Ended when it cannot even be defined.

        Without `wait` that is for the caller to ask, by `answered`, before the first call.
        """
        with self._run("calls") as talk:
            talk.say({"source": source})
            if wait:
                talk.answered()
            yield talk

    def run(self, source: str, stdin: str = "") -> Output:
        """Run a program as a script. Raises Ended for time, memory or output beyond the limits."""
        with tempfile.TemporaryFile() as given:
            given.write(stdin.encode("utf-8", "replace"))
            given.seek(0)
            ours, theirs = os.pipe()
            try:
                with self._run("program", given.fileno(), theirs) as talk:
                    os.close(theirs)
                    theirs = -1
                    talk.say({"source": source})
                    text = self._drain(ours, talk)
                    answer = talk.hear()
            finally:
                os.close(ours)
                if theirs >= 0:
                    os.close(theirs)
        return Output(text.decode("utf-8", "replace"), answer.get("error"))

    @contextmanager
    def tests(self, source: str, functions: list[str], check: str | None) -> Iterator[Conversation]:
        """Test code in which `functions` are stand-ins; the conversation yields its questions."""
        with self._run("tests") as talk:
            talk.say({"source": source, "functions": functions} | ({"check": check} if check else {}))
            yield talk

    def _drain(self, descriptor: int, talk: Conversation) -> bytes:
        text = bytearray()
        while True:
            if not select.select([descriptor], [], [], max(talk.left(), 0))[0]:
                raise Ended("timeout", f"more than {self.limits.seconds:g} s")
            part = os.read(descriptor, 1 << 16)
            if not part:
                return bytes(text)
            text += part
            if len(text) > self.limits.output_bytes:
                raise Ended("output", f"more than {self.limits.output_bytes:,} bytes")

    @contextmanager
    def _run(self, mode: str, *stdio: int) -> Iterator[Conversation]:
        """Fork a candidate, talk to it, and see to its end whatever happens."""
        control = self._alive()
        ours, theirs = socket.socketpair()
        talk = Conversation(ours, self.limits)
        request = {"mode": mode, "allow_weak": self.allow_weak, "limits": asdict(self.limits)}
        try:
            socket.send_fds(control, [json.dumps(request).encode()], [theirs.fileno(), *stdio])
        finally:
            theirs.close()
        ended: Ended | None = None
        try:
            yield talk
        except Ended as problem:
            ended = problem
        finally:
            ours.close()
            code = self._end()
        if ended is not None:
            reason, detail = _EXITS.get(code, (ended.reason, ended.detail))
            raise Ended(reason, detail) if ended.reason == "died" else ended

    def _end(self) -> int:
        """Tell the zygote to end the run; returns the candidate's exit code, negative for a signal."""
        control = self._alive()
        try:
            control.sendall(b".")
            line = self._line(control)
        except OSError as error:
            self.close()
            self._start()
            raise Ended("died", "the sandbox had to be started again") from error
        return int(json.loads(line)["code"])

    def _alive(self) -> socket.socket:
        if self._control is None or self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self._control is not None
        return self._control

    def _start(self) -> None:
        self._scratch = tempfile.mkdtemp(prefix="mixwright-")
        ours, theirs = socket.socketpair()
        # No site packages, no user folder, nothing of our environment; sets in the same order every time.
        command = [sys.executable, "-S", "-s", "-P", str(_ZYGOTE), str(theirs.fileno()), self._scratch]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
        self._control = ours
        atexit.register(self.close)
        ours.settimeout(_START_SECONDS)
        try:
            self.missing = tuple(json.loads(self._line(ours))["missing"])
        except (OSError, ValueError) as error:
            self.close()
            raise MachineError(
                "The sandbox for generated code did not start",
                where="sandbox",
                remedy="It needs Linux and a Python that starts with -S; see `mixwright doctor`",
            ) from error
        if self.missing and not self.allow_weak:
            self.close()
            raise MachineError(
                f"This machine cannot confine generated code: it lacks {', '.join(self.missing)}",
                where="sandbox",
                remedy="Use Linux 5.13 or newer with user namespaces, or allow a weak sandbox on a machine that "
                "holds nothing of value",
            )

    @staticmethod
    def _line(control: socket.socket) -> bytes:
        text = b""
        while not text.endswith(b"\n"):
            part = control.recv(1 << 12)
            if not part:
                raise OSError("the zygote is gone")
            text += part
        return text


class Conversation:
    """Messages with one candidate until its time is up; every failure to answer is an Ended."""

    def __init__(self, channel: socket.socket, limits: Limits) -> None:
        self._channel, self._limits = channel, limits
        self._deadline = time.monotonic() + limits.seconds

    def left(self) -> float:
        """Seconds until the end."""
        return self._deadline - time.monotonic()

    def call(self, function: str, *arguments: Any, **named: Any) -> Any:
        """The value of `function(*arguments, **named)` in the candidate's process."""
        return self._value({"call": function}, arguments, named)

    def call_with_objects(self, function: str, arguments: Any, named: Any) -> Any:
        """`call`, but objects of the candidate's own classes are `Held`; `function` may be one of OPERATIONS."""
        return self._value(
            {"call": function, "objects": True}, arguments, named, exchange.number_of, exchange.Held
        )

    def _value(
        self, message: dict[str, Any], arguments: Any, named: Any, keep: Any = None, held: Any = None
    ) -> Any:
        sent = {"arguments": exchange.encode(arguments, keep), "named": exchange.encode(named, keep)}
        answer = self.ask(message | sent)
        try:
            return exchange.decode(answer["value"], held)
        except exchange.Unsendable as error:
            raise Ended("malformed", str(error)) from error

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Say and hear; Ended with the candidate's own error if it answers with one."""
        self.say(message)
        return self.answered()

    def answered(self) -> dict[str, Any]:
        """The next message, which answers something; Ended with the candidate's own error if it is one."""
        answer = self.hear()
        if "error" in answer or "value" not in answer:
            raise Ended("error", str(answer.get("error", "no value")))
        return answer

    def say(self, message: dict[str, Any]) -> None:
        """Send a message."""
        with self._watched():
            exchange.send(self._channel.send, message)

    def hear(self) -> dict[str, Any]:
        """The next message."""
        with self._watched():
            message = exchange.receive(self._channel.recv, self._limits.output_bytes)
        if message is None:
            raise Ended("died", "the program ended")
        if not isinstance(message, dict):
            raise Ended("malformed", "the answer is not a message")
        if "refused" in message:
            raise MachineError(
                f"This machine cannot confine generated code: it lacks {message['refused']}", where="sandbox"
            )
        return message

    @contextmanager
    def _watched(self) -> Iterator[None]:
        left = self.left()
        if left <= 0:
            raise Ended("timeout", f"more than {self._limits.seconds:g} s")
        self._channel.settimeout(left)
        try:
            yield
        except TimeoutError as error:
            raise Ended("timeout", f"more than {self._limits.seconds:g} s") from error
        except exchange.Unsendable as error:
            reason: Reason = "output" if "too long" in str(error) else "malformed"
            raise Ended(reason, str(error)) from error
        except OSError as error:
            raise Ended("died", "the program ended") from error
