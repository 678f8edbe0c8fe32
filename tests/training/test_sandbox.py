"""The sandbox for generated code: right programs pass, wrong ones fail, and no attack gains anything."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from curation.errors import DataError, MachineError
from training.rewards import named_reward
from training.rewards.code import functions_called, program_in, run_tests
from training.rewards.sandbox import Limits, Sandbox, check_calls, check_program, check_tests, exchange
from training.rewards.sandbox.sandbox import Ended

LIMITS = Limits(seconds=3.0, cpu_seconds=2, memory_bytes=256 << 20, output_bytes=1 << 16)


def _level() -> str:
    if sys.platform != "linux":
        return "the sandbox needs Linux"
    try:
        Sandbox(LIMITS).close()
    except MachineError as error:
        return str(error)
    return ""


MISSING = _level()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def judge():
    with Sandbox(LIMITS) as made:
        yield made


def test_right_and_wrong_programs(sandbox):
    source = "def add(a, b):\n    return a + b\n"
    assert check_calls(sandbox, source, "add", [((1, 2), 3), (("a", "b"), "ab")]).correct
    verdict = check_calls(sandbox, source, "add", [((1, 2), 3), ((1, 2), 4)])
    assert (verdict.passed, verdict.outcome) == (1, "wrong") and "add(1, 2) gave 3" in verdict.detail
    assert check_calls(sandbox, "def add(:", "add", [((), 1)]).outcome == "error"
    assert "SyntaxError" in check_calls(sandbox, "def add(:", "add", [((), 1)]).detail
    assert "KeyError" in check_calls(sandbox, "x = 1", "add", [((), 1)]).detail
    assert "ZeroDivisionError" in check_calls(sandbox, "def f():\n    return 1 / 0", "f", [((), 1)]).detail
    assert not check_calls(sandbox, source, "add", []).correct  # nothing was shown


def test_programs_by_input_and_output(sandbox):
    double = "print(int(input()) * 2)"
    assert check_program(sandbox, double, [("4\n", "8"), ("5", "10\n\n")]).correct
    assert check_program(sandbox, double, [("4", "9")]).outcome == "wrong"
    assert check_program(sandbox, "import sys\nsys.exit(0)", [("", "")]).correct
    assert check_program(sandbox, "import sys\nsys.exit(3)", [("", "")]).outcome == "error"
    assert check_program(sandbox, "if __name__ == '__main__':\n    print('é')", [("", "é")]).correct


def test_test_code_sees_values_only(sandbox, judge):
    source = "def add(a, b):\n    return a + b\n"
    assert check_tests(
        sandbox, judge, source, "import math\nassert math.isclose(add(.1, .2), .3)", ["add"]
    ).correct
    assert check_tests(
        sandbox, judge, source, "def check(candidate):\n    assert candidate(1, 2) == 3", [], "add"
    ).correct
    assert check_tests(sandbox, judge, source, "assert add(1, 2) == 4", ["add"]).outcome == "wrong"
    expected = (
        "try:\n    add(1, 'a')\n    assert False\nexcept RuntimeError as e:\n    assert 'TypeError' in str(e)"
    )
    assert check_tests(sandbox, judge, source, expected, ["add"]).correct
    assert check_tests(sandbox, judge, source, "unknown()", ["add"]).outcome == "error"


TREE = """
import collections
class Node:
    def __init__(self, value):
        self.value, self.left = value, None
    def depth(self):
        return 1 + (self.left.depth() if self.left else 0)
    def __eq__(self, other):
        return True
    def __lt__(self, other):
        return True
Pair = collections.namedtuple("Pair", "a b")
def depth(node): return node.depth()
def same(node): return node
def count(text): return collections.Counter(text)
def pair(): return Pair(1, [2])
def without(values, kind): return [v for v in values if type(v) is not kind]
"""


def test_tests_can_build_objects_of_the_candidate_and_get_builtin_values_of_derived_ones(sandbox, judge):
    names = ["Node", "depth", "same", "count", "pair", "without"]

    def outcome(tests, source=TREE):
        return check_tests(sandbox, judge, source, tests, names).outcome

    assert outcome("root = Node(1)\nroot.left = Node(2)\nassert depth(root) == root.depth() == 2") == "passed"
    assert outcome("a = Node(3)\nassert same(a) is a and a.left is None and [same(a)] == [a]") == "passed"
    assert outcome("assert count('aab') == {'a': 2, 'b': 1} and pair() == (1, [2])") == "passed"
    assert outcome("assert without([1, 2.5, 'a'], int) == [2.5, 'a'] and math.pi > 3") == "passed"
    # Whatever the class says, its objects are equal to nothing that the tests expect.
    assert outcome("assert same(Node(1)) == 1") == "wrong"
    assert outcome("assert Node(1) == Node(1)") == "wrong"
    assert outcome("assert Node(1) < 1") == outcome("assert len(Node(1)) == 1") == "error"
    assert outcome("Node(1).depths()") == outcome("depth(object())") == "error"
    assert (
        check_calls(sandbox, TREE, "Node", [((1,), 1)]).outcome == "error"
    )  # values alone are compared here


def test_tests_may_call_helpers_of_the_prompt_and_functions_named_as_python_s_own(sandbox, judge):
    source = "def twice(n):\n    return 2 * n\ndef half(n):\n    return n / 2\n"
    tests = "def check(candidate):\n    n = 3\n    assert abs(candidate(twice(n))) == n"
    assert functions_called(tests) == ["twice"]
    assert check_tests(sandbox, judge, source, tests, functions_called(tests), "half").correct
    tests = "assert sum(10, 15) == 6\nassert sum(4, 6) == max(3, 1)"
    assert functions_called(tests) == ["sum"]
    program = "def sum(a, b):\n    return 6 if a == 10 else 3\n"
    assert check_tests(sandbox, judge, program, tests, functions_called(tests)).correct
    assert check_tests(sandbox, judge, "x = 1", tests, functions_called(tests)).outcome == "error"


SECRET = "expected-4711"
ALWAYS_EQUAL = """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(): return Same()
"""
# Each attack defines f(); it succeeds if f gives the secret, which stands in the judge's process only, or True
# where it got hold of something that it should not have.
ATTACKS = {
    "an object equal to everything": ALWAYS_EQUAL,
    "a subclass of str equal to everything": ALWAYS_EQUAL.replace("class Same", "class Same(str)"),
    "a subclass of int": ALWAYS_EQUAL.replace("class Same", "class Same(int)"),
    "a list of them": ALWAYS_EQUAL.replace("return Same()", "return [Same()]"),
    "walking the frames": """
import sys
def f():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [str(v) for v in list(frame.f_locals.values()) + list(frame.f_globals.values())]
        frame = frame.f_back
    found = [s for s in seen if "expected-47" + "11" in s]
    return "expected-47" + "11" if found else "no"
""",
    "every object of the collector": """
import gc
def f():
    found = [o for o in gc.get_objects() if type(o) in (dict, list) and "expected-47" + "11" in repr(o)[:10000]]
    return True if found else "no"
""",
    "leaving after printing": "import os\ndef f():\n    print('passed')\n    os._exit(0)",
    "SystemExit": "def f():\n    raise SystemExit(0)",
    "a forged message": """
import os, struct
def f():
    body = b'{"value": true, "passed": true}'
    for fd in range(3, 1024):
        try: os.write(fd, struct.pack("!I", len(body)) + body)
        except OSError: pass
    return "no"
""",
    "an exit handler": "import atexit, os\natexit.register(lambda: os.write(1, b'passed'))\ndef f():\n    return 'no'",
    "tampering with json": """
import json, sys, builtins
json.dumps = lambda *a, **k: '{"value": true}'
builtins.print = builtins.str = lambda *a, **k: True
def f(): return "no"
""",
    "tampering with modules": """
import sys
for name in list(sys.modules):
    module = sys.modules[name]
    for key in ("encode", "send", "same", "check_calls"):
        if hasattr(module, key): setattr(module, key, lambda *a, **k: True)
def f(): return "no"
""",
    "reading the test file": f"def f():\n    return 'expected' in open({__file__!r}).read()",
    "reading the password file": "def f():\n    return 'root' in open('/etc/passwd').read()",
    "the judge's memory": """
import os
def f():
    for place in os.listdir('/proc'):
        if place.isdigit():
            open(f'/proc/{place}/mem', 'rb').read(1)
            return True
    return "no"
""",
    "the judge's environment": "import os\ndef f():\n    return bool(os.environ) or open('/proc/1/environ').read()",
    "a fork": "import os\ndef f():\n    return os.fork() >= 0",
    "a fork bomb": """
import os
def f():
    n = 0
    while n < 10000:
        os.fork(); n += 1
    return True
""",
    "a daemon": "import os\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        os.fork()\n    return True",
    "a thread": "import threading\ndef f():\n    threading.Thread(target=print).start()\n    return True",
    "another program": "import os\ndef f():\n    os.execv('/bin/sh', ['sh', '-c', 'true'])",
    "a subprocess": "import subprocess\ndef f():\n    return subprocess.run(['true']).returncode == 0",
    "memory": "def f():\n    return len([0] * 10**9) > 0",
    "memory, bit by bit": "def f():\n    kept = []\n    while True:\n        kept.append(bytes(10**6))",
    "endless output": "import os\ndef f():\n    while True:\n        os.write(200, b'x' * 65536)",
    "an endless value": "def f():\n    return 'x' * 10**7",
    "sleep": "import time\ndef f():\n    time.sleep(100)\n    return True",
    "a loop": "def f():\n    while True:\n        pass",
    "stopping itself": "import os, time\ndef f():\n    os.kill(os.getpid(), 19)\n    time.sleep(100)",
    "killing the judge": f"""
import os, signal
def f():
    for pid in ({os.getpid()}, os.getppid(), -1):
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
    return "no"
""",
    "a symbolic link": """
import os
def f():
    os.symlink('/etc/passwd', 'link')
    return 'root' in open('link').read()
""",
    "writing outside": "def f():\n    open('/tmp/mixwright-was-here', 'w').write('x')\n    return True",
    "writing into the library": "import os\ndef f():\n    open(os.__file__, 'a').close()\n    return True",
    "filling the disk": """
def f():
    for i in range(100):
        open(str(i), 'wb').write(bytes(4 << 20))
    return True
""",
    "the network": "import socket\ndef f():\n    socket.socket().connect(('127.0.0.1', PORT))\n    return True",
    "a raw socket call": "import ctypes as c\ndef f():\n    return c.CDLL(None).socket(2, 1, 0) >= 0 or 'no'",
    "tracing": "import ctypes as c\ndef f():\n    return c.CDLL(None).ptrace(16, PARENT, 0, 0) == 0 or 'no'",
    "mounting": "import ctypes as c\ndef f():\n    return not c.CDLL(None).mount(b'x', b'.', b'tmpfs', 0, 0) or 'no'",
    "a namespace of its own": "import ctypes as c\ndef f():\n    return c.CDLL(None).unshare(0x10000000) == 0 or 'no'",
    "more limits": "import resource as r\ndef f():\n    r.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40))\n    return True",
    "deep recursion": "def f():\n    return f()",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    return f()",
    "a deep value": "def f():\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "a huge number": "def f():\n    return 10 ** 10 ** 6",
    "a huge number as text": "def f():\n    return int('9' * 10**7)",
    "a bomb of a regular expression": "import re\ndef f():\n    return bool(re.match('(a+)+$', 'a' * 50 + 'b'))",
    "a crash": "import ctypes\ndef f():\n    ctypes.string_at(0)",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda name: name.replace(" ", "-"))
def test_no_attack_succeeds(sandbox, attack):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        source = ATTACKS[attack].replace("PORT", str(listening.getsockname()[1]))
        source = source.replace("PARENT", str(os.getpid()))
        limits = replace(LIMITS, seconds=0.6, cpu_seconds=1)
        sandbox.limits = limits
        began = time.monotonic()
        # A forged message can claim any value, as `return` can; it does not know which one is wanted.
        for expected in (SECRET,) if attack == "a forged message" else (SECRET, True):
            verdict = check_calls(sandbox, source, "f", [((), expected)])
            assert not verdict.correct, verdict
        assert time.monotonic() - began < 10
        sandbox.limits = LIMITS
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert not Path("/tmp/mixwright-was-here").exists()
    # and the sandbox still works
    assert check_calls(sandbox, "def f():\n    return 1", "f", [((), 1)]).correct


def test_a_run_leaves_nothing_to_the_next(sandbox):
    write = (
        "def f():\n    open('left', 'w').write('x')\n    import builtins\n    builtins.left = 1\n    return 1"
    )
    read = "import os\ndef f():\n    import builtins\n    return os.path.exists('left') or hasattr(builtins, 'left')"
    assert check_calls(sandbox, write, "f", [((), 1)]).correct
    assert check_calls(sandbox, read, "f", [((), False)]).correct


def test_sets_and_random_numbers_come_in_the_same_order_every_time(sandbox):
    source = "import random\ndef f():\n    return [list({'a', 'b', 'c', 'd'}), random.random()]"
    values = []
    for fresh in (sandbox, Sandbox(LIMITS)):
        with fresh.program(source) as talk:
            values.append(talk.call("f"))
    assert values[0] == values[1]


def test_a_candidate_cannot_act_when_the_judge_is_gone(tmp_path):
    """Killed with SIGKILL, the judge takes zygote and candidate with it."""
    script = tmp_path / "judge.py"
    script.write_text(
        "from training.rewards.sandbox import *\n"
        "with Sandbox() as s:\n"
        "    print(s._process.pid, flush=True)\n"
        "    check_calls(s, 'while True: pass', 'f', [((), 1)])\n"
    )
    import subprocess

    root = Path(__file__).parents[2]
    judge = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    )
    zygote = int(judge.stdout.readline())
    time.sleep(0.3)
    judge.kill()
    judge.wait()
    for _ in range(100):
        try:
            os.kill(zygote, 0)
        except ProcessLookupError:
            break
        state = Path(f"/proc/{zygote}/stat").read_text().split()[2]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the zygote outlived its judge")


def test_a_zygote_that_dies_is_replaced(sandbox):
    with Sandbox(LIMITS) as own:
        os.kill(own._process.pid, signal.SIGKILL)
        own._process.wait()
        assert check_calls(own, "def f():\n    return 1", "f", [((), 1)]).correct


def test_without_the_kernels_help_it_refuses(monkeypatch):
    import training.rewards.sandbox.sandbox as module

    text = module._ZYGOTE.read_text()
    here = repr(str(module._ZYGOTE.parent))
    weak = text.replace("str(Path(__file__).parent)", here)
    weak = weak.replace("missing = confinement.enter_namespaces()", 'missing = ["namespaces"]')
    assert weak.count(here) == 1 and '["namespaces"]' in weak
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zygote.py"
        path.write_text(weak)
        monkeypatch.setattr(module, "_ZYGOTE", path)
        with pytest.raises(MachineError, match="cannot confine generated code: it lacks namespaces"):
            Sandbox(LIMITS)
        with Sandbox(LIMITS, allow_weak=True) as allowed:
            assert "namespaces" in allowed.missing
            assert check_calls(allowed, "def f():\n    return 1", "f", [((), 1)]).correct


def test_values_cross_as_they_are():
    for value in (
        None,
        True,
        -3,
        2**200,
        0.1,
        float("inf"),
        1 + 2j,
        "a\0é",
        b"\xff",
        [1, (2, {3: {4, "x"}})],
    ):
        assert exchange.decode(json.loads(json.dumps(exchange.encode(value)))) == value
        assert type(exchange.decode(exchange.encode(value))) is type(value)
    for hostile in (["i", 3], ["i"], [], {}, ["x", 1], ["d", [[["l", []], 1]]], ["f", "x"], 3, ["s", 5]):
        with pytest.raises(exchange.Unsendable):
            exchange.decode(hostile)


def test_the_reward_reads_the_last_block_and_says_what_is_wrong_with_tests():
    reward = named_reward("code")
    answer = json.dumps({"function": "add", "calls": [[[1, 2], 3], [[[1], [2]], [1, 2]]]})
    good = "<think>easy</think>So:\n```python\ndef add(a, b):\n    return a + b\n```"
    assert reward(good, answer).reward == 1.0
    partly = reward(good.replace("a + b", "a + b if a == 1 else None"), answer)
    assert partly.reward == 0.0 and partly.parts["passed"] == 0.5
    assert reward(good.replace("a + b", "tuple(a) + tuple(b) if a == [1] else a + b"), answer).correct
    mbpp = json.dumps({"tests": "assert add(1, 2) == 3", "functions": ["add"]})
    assert reward(good, mbpp).correct
    with pytest.raises(DataError, match=r"tests of a program cannot be read: '\{\}'"):
        reward(good, "{}")
    reward.close()
    assert program_in("no block") == "no block"
    assert functions_called("from math import sqrt\nx = sqrt(4)\nassert f(x) == g(len([1]))") == ["f", "g"]


def test_the_judge_notices_what_candidates_end_with(sandbox):
    with pytest.raises(Ended, match="died"), sandbox.program("import os\ndef f():\n    os._exit(0)") as talk:
        talk.call("f")
    assert check_calls(sandbox, "def f():\n    return object()", "f", [((), 1)]).outcome == "error"
    assert run_tests(lambda _: sandbox, "print(1)", json.dumps({"io": [["", "1"]]})).correct
