"""The verifier of a real benchmark: all reference solutions accepted, all of a perturbed copy rejected."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from training.rewards import named_reward, score

CORPORA = Path(os.environ.get("MIXWRIGHT_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))


def test_gsm8k_solutions_and_perturbed_copies() -> None:
    file = CORPORA / "gsm8k_train.jsonl.gz"
    if not file.exists():
        pytest.skip(f"the corpora are not there: {file}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    reward = named_reward("math")
    assert len(rows) > 7000
    for row in rows[::5]:
        solution, answer = row["text"][row["completion_start"] :], row["answer"]
        steps, _, stated = solution.rpartition("The answer is ")
        assert stated.strip().strip(".") == answer
        number = float(answer.replace(",", ""))
        assert score(reward, solution, answer).correct
        assert score(reward, f"{steps}\\boxed{{{answer}}}", answer).correct
        assert score(reward, f"{steps}\n#### {answer}", answer).correct
        for wrong in (number + 1, -number - 1, number * 10 + 3, number + 0.5):
            assert not score(reward, f"{steps}The answer is {wrong}.", answer).correct
        assert not score(reward, f"{solution} No: \\boxed{{{answer}7}}", answer).correct
        assert not score(reward, "", answer).correct
