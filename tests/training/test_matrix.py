"""The matrix: shared steps are trained once, a killed one goes on, and its intervals hold what they promise."""

import doctest
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

import training.matrix_table
from curation.errors import DataError, RecipeError
from tests.training.post_training_models import killed, tiny_folder, write_rows
from training import matrix, matrix_steps
from training.distillation_settings import Distillation
from training.grpo import GrpoSettings
from training.huggingface import load_huggingface
from training.matrix import Pipeline, greedy, run_matrix
from training.matrix_steps import Cost, Inputs, OnPolicyStep, RlStep, SftStep, TeachStep
from training.matrix_table import difference, interval, matrix_rows, write_matrix
from training.on_policy_settings import OnPolicySettings
from training.rollout import RolloutSettings
from training.sequence_distillation import TeachingSettings
from training.sft import SftSettings, sft
from training.solve_rate import SolveRateSettings
from training.stopping import StoppingRule

ROWS = [
    {
        "prompt": f"{a} + {b} =",
        "answer": str(a + b),
        "messages": [
            {"role": "user", "content": f"{a} + {b} ="},
            {"role": "assistant", "content": f"<think> {a} + {b} </think> {a + b}"},
        ],
    }
    for a in range(5)
    for b in range(5)
]
SFT = SftSettings(
    sequence_tokens=32, batch_sequences=6, micro_batch_sequences=6, epochs=2, learning_rate=1e-2
)
ROLLOUT = RolloutSettings(max_tokens=8)
RL = GrpoSettings(steps=1, prompts_per_step=4, replicas=2, rollout=ROLLOUT, learning_rate=1e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    tiny_folder(folder / "start")
    write_rows(folder / "train.jsonl", ROWS[:20])
    write_rows(folder / "test.jsonl", ROWS[20:])
    sft(folder / "start", folder / "train.jsonl", folder / "taught", replace(SFT, epochs=30))
    return folder


def matrix_in(world, out, *pipelines, **changes):
    inputs = Inputs(world / "train.jsonl", world / "train.jsonl", "exact")
    wanted = {"seeds": (0, 1), "measures": {"plain": greedy(ROLLOUT)}} | changes
    return run_matrix(world / "start", pipelines, inputs, world / "test.jsonl", out, **wanted)


FINE, REINFORCED = SftStep("sft", SFT), RlStep("rl", RL)


def counted(monkeypatch):
    calls = []
    for name in ("sft", "grpo"):
        work = getattr(matrix_steps, name)

        def counting(start, data, *rest, work=work, name=name, **named):
            calls.append(name)
            return work(start, data, *rest, **named)

        monkeypatch.setattr(matrix_steps, name, counting)
    return calls


def test_a_shared_step_is_trained_once_a_seed_and_a_finished_matrix_trains_nothing(
    world, tmp_path, monkeypatch
):
    calls = counted(monkeypatch)
    pipelines = [Pipeline("start", ()), Pipeline("sft", (FINE,)), Pipeline("sft+rl", (FINE, REINFORCED))]
    first = matrix_in(world, tmp_path, *pipelines)
    assert sorted(calls) == ["grpo", "grpo", "sft", "sft"]
    again = matrix_in(world, tmp_path, *pipelines)
    assert len(calls) == 4
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.right["plain"], other.right["plain"]) and one.costs == other.costs
    matrix_in(world, tmp_path, *pipelines, Pipeline("rl", (REINFORCED,)))
    assert calls[4:] == ["grpo", "grpo"]
    start, fine, both = first
    assert start.right["plain"].shape == (2, 5) and start.costs == (Cost(), Cost())
    tokens = sum(2 * (len(row["messages"][1]["content"].split()) + 7) for row in ROWS[:20])
    assert (
        fine.costs[0].trained == tokens
    )  # <bos> <user> a + b = <assistant> before, <eos> after, none for the last
    assert both.costs[0].flops > fine.costs[0].flops and both.costs[0].sampled > 0
    # The same chain by hand ends with the same weights.
    from training.grpo import grpo

    sft(world / "start", world / "train.jsonl", tmp_path / "hand", replace(SFT, seed=1))
    grpo(tmp_path / "hand" / "model", world / "train.jsonl", "exact", tmp_path / "hand2", replace(RL, seed=1))
    found = [f / "model" / "model.safetensors" for f in (tmp_path / "seed-1" / "sft+rl", tmp_path / "hand2")]
    assert found[0].read_bytes() == found[1].read_bytes()
    assert (tmp_path / "seed-1" / "sft+rl" / "metrics.jsonl").exists()


def test_a_killed_matrix_ends_with_the_same_tables(world, tmp_path):
    pipelines = [Pipeline("sft", (FINE,)), Pipeline("sft+rl", (FINE, REINFORCED))]
    whole = matrix_in(world, tmp_path / "whole", *pipelines)

    def work():
        train = matrix_steps.grpo

        def dying(start, prompts, reward, out, settings):
            if settings.seed == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return train(start, prompts, reward, out, settings)

        matrix_steps.grpo = dying
        matrix_in(world, tmp_path / "killed", *pipelines)

    assert killed(work) == -signal.SIGKILL
    went_on = matrix_in(world, tmp_path / "killed", *pipelines)
    for folder, outcomes in (("whole", whole), ("killed", went_on)):
        write_matrix(tmp_path / folder, outcomes, "sft")
    for name in ("matrix.json", "matrix.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_every_kind_of_step_trains_and_costs(world, tmp_path):
    teacher = str(world / "taught" / "model")
    lesson = Distillation(teacher, precision="float32")
    rule = StoppingRule(0.0, 1.0, 2, 0.0)
    steps = [
        SftStep("kd", replace(SFT, distillation=lesson)),
        SftStep("joint", SFT, (world / "train.jsonl", world / "train.jsonl")),
        TeachStep("seqkd", teacher, TeachingSettings(answers=2, keep="finished", rollout=ROLLOUT), SFT),
        OnPolicyStep(
            "gkd", OnPolicySettings(lesson, steps=1, prompts_per_step=2, replicas=2, rollout=ROLLOUT)
        ),
        RlStep("rl.filter", RL, SolveRateSettings(rule=rule, rollout=ROLLOUT)),
    ]
    outcomes = matrix_in(world, tmp_path, *[Pipeline(s.name, (s,)) for s in steps], seeds=(0,))
    costs = {outcome.pipeline: outcome.costs[0] for outcome in outcomes}
    assert costs["joint"].trained == 2 * costs["kd"].trained
    assert costs["joint"].flops < 2 * costs["kd"].flops  # the teacher's forward passes count
    assert costs["seqkd"].sampled > 0 and costs["gkd"].sampled > 0 and costs["rl.filter"].sampled > 0
    assert all(load_huggingface(tmp_path / "seed-0" / step.name / "model") for step in steps)


def test_a_pipeline_that_fails_is_named_and_the_others_go_on(world, tmp_path):
    nothing = SolveRateSettings(rule=StoppingRule(0.99, 1.0, 2, 0.0), rollout=RolloutSettings(max_tokens=1))
    pipelines = [Pipeline("hard", (RlStep("hard", RL, nothing),)), Pipeline("sft", (FINE,))]
    failed, good = matrix_in(world, tmp_path, *pipelines, seeds=(0,))
    assert "20 are too hard" in failed.failures[0] and not failed.seeds and good.seeds == (0,)
    result = write_matrix(tmp_path, [failed, good], "sft")
    assert result["rows"][0]["accuracy"] is None and "0" in result["failures"]["hard"]
    json.dumps(result, allow_nan=False)


def test_what_cannot_be_is_refused(world, tmp_path):
    fine = Pipeline("sft", (FINE,))
    with pytest.raises(RecipeError, match="two things"):
        matrix_in(world, tmp_path, fine, fine)
    with pytest.raises(RecipeError, match="make no matrix"):
        matrix_in(world, tmp_path, fine, seeds=())
    inputs = Inputs(world / "train.jsonl", world / "train.jsonl", "exact")
    with pytest.raises(DataError, match="also among the prompts"):
        tests, measures = world / "train.jsonl", {"plain": greedy(ROLLOUT)}
        run_matrix(world / "start", [fine], inputs, tests, tmp_path, seeds=(0,), measures=measures)
    matrix_in(world, tmp_path, fine, seeds=(0,))
    with pytest.raises(RecipeError, match="other settings"):
        other = SftStep("sft", replace(SFT, epochs=1))
        matrix_in(world, tmp_path, Pipeline("sft", (other,)), seeds=(0,))
    with pytest.raises(RecipeError, match="cannot be"):
        matrix.Measure(RolloutSettings(temperature=0.0), samples=2)


def test_examples_in_docstrings():
    result = doctest.testmod(training.matrix_table)
    assert result.attempted and not result.failed


def test_the_interval_is_the_textbooks():
    table = np.array([[3.0, 5.0, 7.0], [2.0, 6.0, 4.0]])
    # By hand: mean 4.5; row means 5, 4; column means 2.5, 5.5, 5.5.
    # MS_seeds = 3 (.25 + .25) = 1.5; MS_problems = 2 (4 + 1 + 1) / 2 = 6; the rest has squares
    # 0, 1, 1, 0, 1, 1, so MS = 4 / 2 = 2. Variance (1.5 + 6 - 2) / 6.
    found = interval(table)
    from scipy.stats import t

    degrees = 5.5**2 / (1.5**2 / 1 + 6**2 / 2 + 2**2 / 2)
    half = t.ppf(0.975, degrees) * (5.5 / 6) ** 0.5
    assert found.mean == 4.5 and found.high - found.mean == pytest.approx(half)
    assert found.seeds_high - found.mean == pytest.approx(t.ppf(0.975, 1) * (1.5 / 6) ** 0.5)
    one = interval(table[:1])
    assert one.high - one.mean == pytest.approx(t.ppf(0.975, 2) * 2 / 3**0.5) and one.seeds_low is None


@pytest.mark.parametrize("seeds, problems, by_seed, by_problem", [(3, 60, 0.1, 0.3), (4, 20, 0.0, 0.2)])
def test_the_interval_covers_what_it_promises(seeds, problems, by_seed, by_problem):
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        table = random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_problem, (1, problems))
        found = interval(table + random.normal(0, 0.3, (seeds, problems)))
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.985


def test_differences_are_paired_by_seed_and_problem():
    def outcome(name, right, seeds):
        return matrix.Outcome(
            name, (), seeds, {"plain": right}, {"plain": right}, {"plain": right}, (Cost(),) * len(seeds)
        )

    random = np.random.default_rng(2)
    base = random.random((3, 50))
    one, other = outcome("a", base + 0.01, (0, 1, 2)), outcome("b", base[[0, 2]], (0, 2))
    found = difference(one, other, "plain")
    assert found.mean == pytest.approx(0.01) and found.high - found.low < 1e-9
    assert difference(outcome("a", base[:1], (7,)), other, "plain") is None
    rows = matrix_rows([one, other], "b")
    assert rows[1]["accuracy_difference"] is None and rows[0]["accuracy_difference"].mean == pytest.approx(
        0.01
    )
    with pytest.raises(RecipeError, match="no pipeline 'c'"):
        matrix_rows([one, other], "c")
