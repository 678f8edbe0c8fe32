"""Solve rates: the sequential rule against enumeration, the filter against itself undisturbed."""

import doctest
import itertools
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import training.solve_rate
import training.stopping
from curation.errors import RecipeError
from curation.progress import set_progress_mode
from recipes.cli import app, post_training
from tests.training.post_training_models import killed, tiny_folder, write_rows
from training.rollout import RolloutSettings
from training.solve_rate import SolveRateSettings, balanced, filter_by_solve_rate
from training.stopping import StoppingRule

SETTINGS = SolveRateSettings(
    rule=StoppingRule(samples=6, error=0.1), rollout=RolloutSettings(max_tokens=3), chunk_prompts=4, seed=3
)


def test_examples_in_docstrings():
    for module in (training.stopping, training.solve_rate):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


def enumerated(rule, rate):
    """Disagreement and expected samples by going through every sequence of outcomes."""
    wrong = cost = 0.0
    for outcomes in itertools.product((0, 1), repeat=rule.samples):
        chance = rate ** sum(outcomes) * (1 - rate) ** (rule.samples - sum(outcomes))
        for look in rule.at:
            decision = rule.decide(sum(outcomes[:look]), look)
            if decision is not None:
                break
        whole = rule.lowest - 1e-12 <= sum(outcomes) / rule.samples <= rule.highest + 1e-12
        wrong += chance * ((decision == "keep") != whole)
        cost += chance * look
    return wrong, cost


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 9),
    limits=st.tuples(st.sampled_from([0.0, 0.2, 1 / 3]), st.sampled_from([0.5, 0.8, 1.0])),
    error=st.sampled_from([0.0, 0.03, 0.2]),
    rate=st.sampled_from([0.0, 0.1, 0.37, 0.8, 1.0]),
)
def test_the_promise_is_kept_for_every_solve_rate(samples, limits, error, rate):
    rule = StoppingRule(*limits, samples=samples, error=error)
    rates = np.array([rate])
    wrong, cost = enumerated(rule, rate)
    assert rule.disagreement(rates)[0] == pytest.approx(wrong, abs=1e-12)
    assert rule.expected_samples(rates)[0] == pytest.approx(cost, abs=1e-9)
    assert wrong <= error + 1e-9


def test_the_default_rule_saves_samples_and_an_error_of_nothing_loses_none():
    rule, exact = StoppingRule(), StoppingRule(error=0.0)
    assert rule.disagreement().max() <= 0.05 and exact.disagreement().max() < 1e-12
    ends = rule.expected_samples(np.array([0.0, 1.0]))
    assert (ends <= 8).all() and rule.expected_samples().mean() < 8.2 < exact.expected_samples().mean() < 13
    # 13 answers, 20 to 80 %: 3 to 10 solved
    assert [exact.decide(s, 13) for s in (2, 3, 10, 11)] == ["hard", "keep", "keep", "easy"]
    with pytest.raises(RecipeError, match=r"Solve rates from 0\.8 to 0\.2"):
        StoppingRule(0.8, 0.2)
    with pytest.raises(RecipeError, match="looks at"):
        StoppingRule(looks=(4, 12))


def starts_low(completion: str, answer: str) -> float:
    """Solved when the first token has a small number: easy for large answers, hard for small ones."""
    return float(sum(map(ord, completion.split()[0] if completion.split() else "~")) % 10 < int(answer))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solve")
    rows = [
        {"prompt": f"{n} =", "answer": str(n), "source": "ab"[n % 2], "note": n}
        for n in range(10)
        for _ in range(2)
    ]
    return tiny_folder(folder / "start"), write_rows(folder / "p.jsonl", [*rows, {"prompt": ""}][:20])


def test_prompts_of_middling_difficulty_are_kept_as_they_were(files, tmp_path):
    start, data = files
    result = filter_by_solve_rate(start, data, starts_low, tmp_path / "kept.jsonl", SETTINGS)
    table = parquet.read_table(result.table).to_pylist()
    assert result.prompts == len(table) == 20 == result.keep + result.hard + result.easy
    assert result.hard and result.easy and result.keep == result.chosen
    for row in table:
        rate = row["solved"] / row["sampled"]
        assert row["sampled"] in SETTINGS.rule.at and row["low"] <= rate <= row["high"]
        assert row["decision"] == SETTINGS.rule.decide(row["solved"], row["sampled"])
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == result.chosen and all(row["note"] == int(row["answer"]) for row in kept)
    assert all(0 < row["solve_rate"] < 1 for row in kept)
    assert result.samples == sum(row["sampled"] for row in table) < result.samples_of_fixed_rule
    # another balance measures nothing again, and is a subset
    other = replace(SETTINGS, per_source=1)
    fewer = filter_by_solve_rate(start, data, starts_low, tmp_path / "kept.jsonl", other)
    assert fewer.samples == result.samples
    assert all(counts["chosen"] <= 1 for counts in fewer.by_source.values())


def test_the_outcome_depends_on_no_other_prompt(files, tmp_path):
    start, data = files
    lines = data.read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[:3]))
    one = filter_by_solve_rate(
        start, data, starts_low, tmp_path / "a.jsonl", replace(SETTINGS, chunk_prompts=20)
    )
    two = filter_by_solve_rate(start, tmp_path / "fewer.jsonl", starts_low, tmp_path / "b.jsonl", SETTINGS)
    columns = ["solved", "sampled", "tokens", "decision"]
    both = [parquet.read_table(r.table, columns=columns).to_pylist()[:3] for r in (one, two)]
    assert both[0] == both[1]


def test_killed_it_goes_on_from_its_last_chunk(files, tmp_path, monkeypatch):
    start, data = files
    whole = filter_by_solve_rate(start, data, starts_low, tmp_path / "whole.jsonl", SETTINGS)
    real = training.solve_rate.solve_rates

    def work():
        def dies(*arguments, first, **named):
            if first == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, first=first, **named)

        training.solve_rate.solve_rates = dies
        filter_by_solve_rate(start, data, starts_low, tmp_path / "killed.jsonl", SETTINGS)

    assert killed(work) == -signal.SIGKILL
    assert not (tmp_path / "killed.jsonl").exists()
    seen = []
    monkeypatch.setattr(
        training.solve_rate,
        "solve_rates",
        lambda *a, first, **k: seen.append(first) or real(*a, first=first, **k),
    )
    resumed = filter_by_solve_rate(start, data, starts_low, tmp_path / "killed.jsonl", SETTINGS)
    assert seen == [8, 12, 16] and resumed.keep == whole.keep
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


assert post_training  # it adds its command


def test_the_command(files, tmp_path):
    start, data = files
    arguments = ["solve-rate", str(start), "--data", str(data), "--out", str(tmp_path / "k.jsonl")]
    options = ["--samples", "4", "--max-tokens", "3", "--reward", "exact", "--keep", "0:1"]
    found = CliRunner().invoke(app, [*arguments, *options, "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["keep"] == 20
    set_progress_mode("plain")
    try:
        shown = CliRunner().invoke(app, [*arguments, *options])
    finally:
        set_progress_mode("quiet")
    assert shown.exit_code == 0 and "times fewer than 4 for each" in " ".join(shown.output.split())
    assert max(map(len, shown.stdout.splitlines()[:6])) <= 80
    wrong = CliRunner().invoke(app, [*arguments, "--keep", "often"])
    assert isinstance(wrong.exception, RecipeError)


def test_balance():
    sources = ["a"] * 5 + ["b"] * 2
    assert balanced(sources, None, 0) == list(range(7))
    chosen = balanced(sources, "smallest", 0)
    assert sum(at < 5 for at in chosen) == 2 == sum(at >= 5 for at in chosen)
    assert any(balanced(sources, 2, seed) != chosen for seed in range(5))
    assert balanced([], "smallest", 0) == []
