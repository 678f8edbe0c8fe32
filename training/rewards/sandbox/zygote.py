"""The process that candidate programs are forked from: a bare interpreter, confined as far as it can be.

Run as a script by `training.rewards.sandbox.sandbox`, with the number of its control socket. It imports what
programs like to import, leaves the machine's namespaces, and then forks one child for each request. A child
confines itself for good before it looks at a candidate's text, and is killed with everything it started when
the judge says so or the judge is gone.
"""

# ruff: noqa: F401, SIM115

from __future__ import annotations

import bisect
import collections
import ctypes
import dataclasses
import datetime
import decimal
import fractions
import functools
import gc
import heapq
import io
import itertools
import json
import math
import operator
import os
import random
import re
import select
import socket
import statistics
import string
import struct
import sys
import types
import typing
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))
import confinement
import exchange

sys.path.pop(0)

TEXT = 4 << 20
"""Longest program or call, in bytes."""


def serve(control: socket.socket, scratch: str) -> None:
    """Answer requests until the control socket ends."""
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # die with the judge
    os.setsid()
    missing = confinement.enter_namespaces()
    control.sendall(json.dumps({"missing": missing + _trial(scratch, missing)}).encode() + b"\n")
    gc.collect()
    gc.freeze()  # children share these pages as long as nobody writes to them
    while True:
        head, descriptors, _, _ = socket.recv_fds(control, 1 << 12, 3)
        if not head:
            return
        request = json.loads(head)
        limits = confinement.Limits(**request["limits"])
        child = _fork(missing)
        if child == 0:
            control.close()
            _begin(request, descriptors, scratch, limits)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(json.dumps(_watch(child, control)).encode() + b"\n")


def _fork(missing: list[str]) -> int:
    return os.fork() if missing else int(confinement.fork_into_new_namespaces())


def _trial(scratch: str, missing: list[str]) -> list[str]:
    """What a child could not be denied here, found out by confining one."""
    ours, theirs = os.pipe()
    try:
        child = _fork(missing)
    except OSError:
        return ["process namespace"]
    if child == 0:
        found = confinement.confine(scratch, confinement.Limits())
        os.write(theirs, json.dumps(found).encode())
        os._exit(0)
    os.close(theirs)
    text = os.read(ours, 1 << 12)
    os.close(ours)
    os.waitpid(child, 0)
    return list(json.loads(text)) if text else ["any confinement: the trial process died"]


def _watch(child: int, control: socket.socket) -> dict[str, Any]:
    """Wait for the child's end, or end it when the judge says a word; returns how it ended and what it used."""
    descriptor = os.pidfd_open(child)
    waiting: list[Any] = [descriptor, control]
    ready, _, _ = select.select(waiting, [], [])
    if control in ready and descriptor not in ready:
        os.kill(child, 9)
    _, status, used = os.wait4(child, 0)
    os.close(descriptor)
    if control in ready or select.select([control], [], [], None)[0]:
        control.recv(1)  # the judge's word comes in any case, so that both know where they are
    return {
        "code": os.waitstatus_to_exitcode(status),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "memory_bytes": used.ru_maxrss * 1024,
    }


def _begin(request: dict[str, Any], descriptors: list[int], scratch: str, limits: Any) -> NoReturn:
    """In the child: confine, then run the candidate as the request says; never returns."""
    try:
        channel = descriptors[0]
        if len(descriptors) == 3:
            os.dup2(descriptors[1], 0)
            os.dup2(descriptors[2], 1)
        high = 200
        os.dup2(channel, high)
        os.closerange(3, high)
        os.closerange(high + 1, 1024)
        os.environ.clear()
        missing = confinement.confine(scratch, limits)
        talk = _Talk(high)
        if missing and not request["allow_weak"]:
            talk.say({"refused": missing})
            os._exit(3)
        _MODES[request["mode"]](talk)
    except MemoryError:
        os._exit(7)
    except BaseException:
        os._exit(1)
    os._exit(0)


class _Talk:
    """Messages over the channel, by plain reads and writes: sockets are refused by now."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, message: Any) -> None:
        exchange.send(lambda part: os.write(self._descriptor, part), message)

    def hear(self) -> Any:
        return exchange.receive(lambda count: os.read(self._descriptor, count), TEXT)


def _execute(source: str, name: str, names: dict[str, Any]) -> dict[str, Any]:
    random.seed(0)  # a fork seeds it anew; the same text shall earn the same reward every time
    module = types.ModuleType(name)
    sys.modules[name] = module
    module.__dict__.update(names)
    exec(compile(source, "<program>", "exec"), module.__dict__)
    return module.__dict__


def _serve_calls(talk: _Talk) -> None:
    """Define the program, then answer calls of its functions with their values."""
    try:
        names = _execute(talk.hear()["source"], "candidate", {})
    except BaseException as error:
        talk.say({"error": _told(error)})
        return
    talk.say({"value": None})
    objects: list[Any] = []
    numbers: dict[int, int] = {}
    operations: dict[str, Any] = {
        ".call": lambda function, *a, **k: function(*a, **k),
        ".get": getattr,
        ".set": setattr,
    }

    def keep(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    while (message := talk.hear()) is not None:
        try:
            function = operations.get(message["call"]) or names[message["call"]]
            held = objects.__getitem__
            arguments, named = (
                exchange.decode(message["arguments"], held),
                exchange.decode(message["named"], held),
            )
            kept = keep if message.get("objects") else None
            answer = {"value": exchange.encode(function(*arguments, **named), kept)}
        except MemoryError:
            os._exit(7)
        except BaseException as error:
            answer = {"error": _told(error)}
        talk.say(answer)


def _run_program(talk: _Talk) -> None:
    """Run the program as a script on the standard input and output that came with the request."""
    source = talk.hear()["source"]
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    answer: dict[str, Any] = {"value": None}
    try:
        _execute(source, "__main__", {})
    except SystemExit as stop:
        if stop.code not in (None, 0):
            answer = {"error": f"SystemExit: {stop.code}"[:300]}
    except MemoryError:
        os._exit(7)
    except BaseException as error:
        answer = {"error": _told(error)}
    try:
        sys.stdout.flush()
    except BaseException as error:
        answer = {"error": _told(error)}
    talk.say(answer)


def _run_tests(talk: _Talk) -> None:
    """Run test code in which the candidate's functions are stand-ins that ask the judge."""
    message = talk.hear()

    def stand_in(name: str) -> Any:
        def ask(*arguments: Any, **named: Any) -> Any:
            asked = {
                "arguments": exchange.encode(arguments, _number),
                "named": exchange.encode(named, _number),
            }
            talk.say({"ask": name} | asked)
            answer = talk.hear()
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return exchange.decode(answer["value"], held)

        ask.__name__ = name
        return ask

    operations = {name: stand_in(name) for name in exchange.OPERATIONS}
    known: dict[int, _Theirs] = {}

    def held(number: int) -> _Theirs:
        return known.setdefault(number, _Theirs(number, operations))

    # Some tests use modules that only the program imports (MBPP's task 596).
    names: dict[str, Any] = {name: sys.modules[name] for name in ("collections", "math", "re", "sys")}
    names |= {name: stand_in(name) for name in message["functions"]}
    try:
        names = _execute(message["source"], "__main__", names)
        if "check" in message:  # HumanEval's form: a function `check` that is handed the candidate
            names["check"](stand_in(message["check"]))
        answer: dict[str, Any] = {"value": None}
    except AssertionError as error:
        answer = {"failed": _told(error)}
    except BaseException as error:
        answer = {"error": _told(error)}
    talk.say(answer)


class _Theirs:
    """An object of the candidate's in the tests' process. What Python itself asks of it ("__") is answered here."""

    def __init__(self, number: int, operations: dict[str, Any]) -> None:
        self.__dict__.update(_number=number, _operations=operations)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._operations[".get"](self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._operations[".set"](self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._operations[".call"](self, *arguments, **named)


def _number(value: Any) -> int:
    if not isinstance(value, _Theirs):
        raise exchange.Unsendable(f"a value of type {type(value).__name__} cannot be given to the program")
    return int(value._number)


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__[:300]


_MODES = {"calls": _serve_calls, "program": _run_program, "tests": _run_tests}

if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
