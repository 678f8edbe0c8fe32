"""The benchmark of the verifiers on files of a few rows: what is accepted and rejected, and what counts as wrong."""

from __future__ import annotations

import json

from benchmarks import verifiers
from benchmarks.verifiers import count_of, mutants, report, wrong_answers


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_references_are_accepted_and_wrong_answers_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(verifiers, "MathVerify", _Never)
    rows = [
        {"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"},
        {"question": "A thousand and one?", "answer": "As it says.\n#### 1,001"},
    ]
    count = count_of("gsm8k", write(tmp_path / "gsm8k.jsonl", rows))
    assert (count.rows, count.accepted, count.rewritten_accepted) == (2, 2, 1) and count.exceptions == []
    assert count.wrong == count.rejected == 3 + 4  # a digit, the sign, the other row; 1,001 has two ends
    assert "| gsm8k | 2 | 2 | 1 of 1 | 7 of 7 |" in report({"gsm8k": count})
    # A verifier that takes anything is found out.
    monkeypatch.setattr(verifiers, "MathReward", lambda **_: lambda completion, answer: 1.0)
    count = count_of("gsm8k", write(tmp_path / "gsm8k.jsonl", rows))
    assert count.rejected == 0 and len(count.exceptions) == 7 and "accepted" in count.exceptions[0]


def test_changed_programs_count_by_what_a_plain_interpreter_says(tmp_path):
    row = {
        "task_id": 1, "text": "", "code": "def larger(a, b):\n    return a if a > b else b", "test_setup_code": "",
        "test_list": ["assert larger(1, 2) == 2", "assert larger(4, 3) == 4"],
    }  # fmt: skip
    leaves = row | {"task_id": 2, "code": "def larger(a, b):\n    return max(a, b) + 0"}
    count = count_of("mbpp", write(tmp_path / "mbpp.jsonl", [row, leaves]))
    assert (count.rows, count.accepted, count.exceptions) == (2, 2, [])
    assert count.wrong == count.rejected == 4  # <=, None; + 1, None
    assert count.rewritten == count.rewritten_accepted == 1  # - 0
    item = verifiers.read_items(verifiers.task_for("mbpp", str(tmp_path / "mbpp.jsonl")))[0]
    assert verifiers.passes_plainly(row["code"], item)
    assert not verifiers.passes_plainly("def larger(a, b):\n    exit()", item)


def test_wrong_answers_are_wrong():
    assert list(wrong_answers("7", "7\\%")) == ["8", "-7"]
    assert list(wrong_answers("\\frac34", "\\frac{3}{4}")) == ["\\frac44", "\\frac35", "-\\frac34"]
    assert list(wrong_answers("-9", "9")) == ["-8", "9"]
    assert len(list(mutants("def f(n):\n    return [n % 2 == 0 for _ in range(3)]", "seed"))) == 3


class _Never:
    """No second opinion, so that no process starts: the answers here are exact."""

    def __init__(self, seconds: float) -> None: ...

    def equal(self, reference: str, answer: str) -> bool:
        return False

    def close(self) -> None: ...
