"""The verifiers on whole benchmarks: every reference solution accepted, every wrong copy rejected.

    python -m benchmarks.verifiers gsm8k=test.jsonl math=test.jsonl humaneval=HumanEval.jsonl mbpp=mbpp.jsonl [--write]

Files are local and have the fields of the hub datasets that the shipped tasks name; questions and references are read
through these tasks. A wrong mathematical answer is the reference with a digit, its sign or all of it changed. A wrong
program is the reference with an operator or its value changed, and counts only where a plain interpreter, without our
sandbox, says that its tests fail; where they pass (no test notices), the sandbox must accept it, too.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.measure import machine, publish, table
from probes.task_record import Item, Task
from probes.tasks import load_task, read_items
from training.rewards import MathReward, MathVerify, Reward, exact_value, score
from training.rewards.code import CodeReward
from training.rewards.rational import plain_expression
from training.rewards.sandbox import Limits

SOLUTION = {"gsm8k": "answer", "math": "solution", "math500": "solution", "humaneval": "canonical_solution",
            "mbpp": "code"}  # fmt: skip
PLAIN_SECONDS, WAIT_SECONDS = (
    10,
    300.0,
)  # of the processor, and by the clock: a crowded machine is no wrong answer
REACHED = "the end of the tests"


@dataclass
class Count:
    """What one benchmark gave; `exceptions` are the texts that were judged wrongly, each with its row's id."""

    rows: int = 0
    accepted: int = 0
    rewritten: int = 0
    rewritten_accepted: int = 0
    wrong: int = 0
    rejected: int = 0
    exceptions: list[str] = field(default_factory=list)


def mathematics(items: Sequence[Item], solution: str, reward: Reward) -> Count:
    """The reference solutions, their answers in another dressing, and wrong answers."""
    count = Count(rows=len(items))
    golds = [item.gold.strip() for item in items]
    for at, item in enumerate(items):
        gold = golds[at]
        _expect(True, reward, item.meta["row"][solution], item, count)
        for text in dressings(gold):
            _expect(True, reward, f"So it is $\\boxed{{{text}}}$.", item, count, "rewritten")
        for text in wrong_answers(gold, golds[at - 1]):
            _expect(False, reward, f"So it is $\\boxed{{{text}}}$.", item, count)
    return count


def programs(items: Sequence[Item], solution: str, reward: Reward, *, threads: int = 2) -> Count:
    """The reference programs, and changed ones, which a plain interpreter judges first."""
    count = Count(rows=len(items))
    changed = []
    for item in items:
        program = item.head + item.meta["row"][solution]
        _expect(True, reward, program, item, count)
        changed += [(item, text) for text in mutants(program, item.id)]
    with ThreadPoolExecutor(threads) as pool:
        verdicts = pool.map(lambda pair: passes_plainly(pair[1], pair[0]), changed)
        for (item, text), passes in zip(changed, verdicts, strict=True):
            _expect(passes, reward, text, item, count, "rewritten" if passes else "accepted")
    return count


def _expect(right: bool, reward: Reward, text: str, item: Item, count: Count, kind: str = "accepted") -> None:
    good = score(reward, text, item.gold).correct == right
    if not right:
        count.wrong, count.rejected = count.wrong + 1, count.rejected + good
    elif kind == "rewritten":
        count.rewritten, count.rewritten_accepted = count.rewritten + 1, count.rewritten_accepted + good
    else:
        count.accepted += good
    if not good:
        said = "refused" if right else "accepted"
        count.exceptions.append(f"{item.id}: {said} {text[-200:]!r} for {item.gold[:80]!r}")


def dressings(gold: str) -> Iterator[str]:
    """The same answer as other people write it.

    >>> list(dressings("\\\\dfrac{1}{2}")), list(dressings("1,000"))
    (['\\\\frac{1}{2}'], ['1000'])
    """
    texts = [
        re.sub(r"\\[dt]?frac", r"\\frac" if "\\dfrac" in gold else r"\\dfrac", gold),
        gold.replace("\\left", "").replace("\\right", "") if "\\left" in gold else gold,
        re.sub(r"(?<=\d),\\?!?(?=\d{3}(?!\d))", "", gold) if exact_value(gold) is not None else gold,
        re.sub(r"\s*([=,+])\s*", r" \1 ", gold)
        if exact_value(gold) is None and "\\text" not in gold
        else gold,
        re.sub(r"\\text\{([^{}]*)\}", r"\1", gold) if gold.startswith("\\text") else gold,
    ]
    yield from dict.fromkeys(text for text in texts if text.strip() != gold)


def wrong_answers(gold: str, another: str) -> Iterator[str]:
    """Answers that are not `gold`: its first and its last digit changed, its sign, and the reference of another row.

    >>> list(wrong_answers("12", "7")), list(wrong_answers("\\\\text{odd}", "\\\\text{odd}"))
    (['22', '13', '-12', '7'], ['\\\\text{odd} + 1'])
    """
    digits = [at for at, character in enumerate(gold) if character.isdigit()]
    texts = []
    for at in digits[:1] + digits[-1:]:
        digit = int(gold[at])
        texts.append(gold[:at] + str(digit + 1 if digit < 9 else 8) + gold[at + 1 :])
    if exact_value(gold):  # neither None nor 0
        texts.append(gold[1:] if gold.startswith("-") else f"-{gold}")
    if not digits:
        texts.append(f"{gold} + 1")
    one, other = (text.replace("\\%", "") for text in (gold, another))  # 7% answers a question for 7 per cent
    same = plain_expression(one) == plain_expression(other)
    if not same and (exact_value(one) is None or exact_value(one) != exact_value(other)):
        texts.append(another)
    yield from dict.fromkeys(texts)


_CHANGES: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutants(program: str, seed: str) -> Iterator[str]:
    """`program` with one operator changed, with one number larger by one, and with nothing returned.

    >>> list(mutants("def f(n):\\n    return n > 1", "a"))
    ['def f(n):\\n    return n <= 1', 'def f(n):\\n    return n > 2', 'def f(n):\\n    return None']
    """
    rng = random.Random(seed)

    def changed(kind: str) -> str | None:
        tree = ast.parse(program)
        sites = [(node, name, part, at) for node in ast.walk(tree) for name, part, at in _sites(node, kind)]
        if not sites:
            return None
        for node, name, part, at in sites if kind == "value" else [rng.choice(sites)]:
            if at is None:
                setattr(node, name, part)
            else:
                getattr(node, name)[at] = part
        return ast.unparse(tree)

    yield from dict.fromkeys(text for kind in ("operator", "number", "value") if (text := changed(kind)))


def _sites(node: ast.AST, kind: str) -> Iterator[tuple[str, Any, int | None]]:
    if kind == "value" and isinstance(node, ast.Return) and node.value is not None:
        yield "value", ast.Constant(None), None
    if kind == "number" and isinstance(node, ast.Constant) and type(node.value) is int:
        yield "value", node.value + 1, None
    if kind == "operator" and type(getattr(node, "op", None)) in _CHANGES:
        yield "op", _CHANGES[type(node.op)](), None  # type: ignore[attr-defined]
    if kind == "operator" and isinstance(node, ast.Compare):
        yield from (
            ("ops", _CHANGES[type(op)](), at) for at, op in enumerate(node.ops) if type(op) in _CHANGES
        )


def passes_plainly(program: str, item: Item) -> bool:
    """Whether program and tests run to their end in one interpreter, as in the benchmark's own harness."""
    row = item.meta["row"]
    tests = row.get("test") or "\n".join([row.get("test_setup_code") or "", *row["test_list"]])
    call = f"\ncheck({row['entry_point']})" if "entry_point" in row else ""
    # A program that leaves by exit() has not passed: the end of its tests must be reached.
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_CPU, ({PLAIN_SECONDS}, {PLAIN_SECONDS}))\n"
    source = f"{limit}{program}\n{tests}{call}\nimport sys\nsys.stderr.write({REACHED!r})\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = subprocess.run(
                [sys.executable, "-I", "-c", source], cwd=folder, timeout=WAIT_SECONDS, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return ended.returncode == 0 and ended.stderr.endswith(REACHED.encode())


def task_for(name: str, file: str) -> Task:
    """The shipped task over a local file, without examples before the questions."""
    task = load_task(name)
    return replace(task, data=file, duplicates="keep", fewshot=replace(task.fewshot, count=0))


def count_of(name: str, file: str) -> Count:
    """All verdicts on one benchmark."""
    task = task_for(name, file)
    items = read_items(task)
    if task.generation.reward == "code":
        code = CodeReward(limits=Limits(seconds=WAIT_SECONDS))  # of the processor the reward's own five
        try:
            return programs(items, SOLUTION[name], code)
        finally:
            code.close()
    opinion = MathVerify(seconds=60.0)
    try:
        return mathematics(items, SOLUTION[name], MathReward(second_opinion=opinion.equal))
    finally:
        opinion.close()


def report(counts: dict[str, Count]) -> str:
    """The section: a row a benchmark."""
    rows = [
        (name, f"{c.rows:,}", f"{c.accepted:,}", f"{c.rewritten_accepted:,} of {c.rewritten:,}",
         f"{c.rejected:,} of {c.wrong:,}")
        for name, c in counts.items()
    ]  # fmt: skip
    return (
        "## Verifiers on the benchmarks' own solutions\n\n"
        "Local copies of the benchmarks, read through the shipped tasks (`python -m benchmarks.verifiers`). The "
        "same otherwise: answers in another LaTeX dressing; programs with a change that no test of theirs notices, "
        "by a plain interpreter. Wrong: a digit, the sign or the whole answer changed; programs with a changed "
        "operator, number or value that fail their tests in a plain interpreter.\n\n"
        + table(("", "rows", "references accepted", "the same otherwise, accepted", "wrong, rejected"), rows)
        + f"\n{machine('math-verify', 'sympy')}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help=f"NAME=FILE, with NAME one of {', '.join(SOLUTION)}")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    counts = {}
    for pair in arguments.files:
        name, _, file = pair.partition("=")
        if name not in SOLUTION or not file:
            parser.error(f"{pair!r} is not NAME=FILE with NAME one of {', '.join(SOLUTION)}")
        counts[name] = count_of(name, file)
        print("\n".join([name, *counts[name].exceptions]), flush=True)
    publish("verifiers", report(counts), write=arguments.write)


if __name__ == "__main__":
    main()
