"""`mixwright matrix`, `teach` and `gkd`: names of steps, plans, and what they print."""

import json
import sys

import pytest

from curation.errors import RecipeError
from recipes.cli import main
from recipes.matrix_file import read_matrix
from recipes.matrix_plan import MatrixPlan, changed
from tests.training.post_training_models import tiny_folder, write_rows
from training.budgets import RolloutSettings
from training.sft import SftSettings

PLAN = """
data: data.jsonl
hold_out: 4
reward: exact
seeds: [5]
teacher: start
sft: {epochs: 1, sequence_tokens: 32, learning_rate: 1e-2}
rl: {steps: 1, prompts_per_step: 2, replicas: 2}
gkd: {steps: 1, prompts_per_step: 2, replicas: 2}
rollout: {max_tokens: 6}
budget: {thinking_tokens: 3, answer_tokens: 2}
distillation: {precision: float32}
measures:
  plain: {max_tokens: 6}
  sampled: {max_tokens: 6, temperature: 1.0, samples: 2}
steps:
  general: {kind: sft, data: data.jsonl, learning_rate: 5e-3}
  slow: {kind: rl.lead, learning_rate: 1e-6, objective: {baseline: rloo}}
pipelines: [start, sft, sft+rl.budget, gkd, {name: two-stage, steps: [general, sft]}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_folder(folder / "start")
    rows = [
        {"prompt": f"{a} + {b} =", "answer": str(a + b), "response": f"<think> {a} </think> {a + b}"}
        for a in range(4)
        for b in range(4)
    ]
    write_rows(folder / "data.jsonl", rows)
    (folder / "plan.yaml").write_text(PLAN)
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["mixwright", "--quiet", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    return code, capsys.readouterr()


def test_a_plan_becomes_runs_and_a_table(world, tmp_path, monkeypatch, capsys):
    arguments = ("matrix", world / "start", "--plan", world / "plan.yaml", "--out", tmp_path / "out")
    code, printed = run(monkeypatch, capsys, *arguments, "--against", "sft", "--json")
    assert code == 0, printed.err
    result = json.loads(printed.out)
    assert [row["pipeline"] for row in result["rows"][::2]] == [
        "start",
        "sft",
        "sft+rl.budget",
        "gkd",
        "two-stage",
    ]
    assert result["steps"]["two-stage"] == ["general", "sft"] and result["against"] == "sft"
    assert (tmp_path / "out" / "seed-5" / "general+sft" / "model").is_dir()
    held = [
        json.loads(line)["prompt"] for line in (tmp_path / "out" / "held_out.jsonl").read_text().splitlines()
    ]
    trained = [
        json.loads(line)["prompt"] for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()
    ]
    assert len(held) == 4 and len(trained) == 12 and not set(held) & set(trained)
    assert (tmp_path / "out" / "matrix.csv").read_text().startswith("pipeline,measure,seeds,failed,accuracy,")
    code, printed = run(monkeypatch, capsys, *arguments)
    assert code == 0 and "two-stage" in printed.out and "FLOPs" in printed.out


def test_teach_and_gkd_write_what_sft_and_grpo_read(world, tmp_path, monkeypatch, capsys):
    chats = tmp_path / "chats.jsonl"
    said = ("teach", world / "start", "--data", world / "data.jsonl", "--out", chats, "--reward", "exact")
    code, printed = run(monkeypatch, capsys, *said, "--keep", "all", "--max-tokens", "4", "--json")
    assert code == 0, printed.err
    assert json.loads(printed.out)["kept"] == len(chats.read_text().splitlines()) == 16
    code, printed = run(monkeypatch, capsys, *said, "--keep", "best")
    assert code == 2 and "keep cannot be 'best'" in printed.err
    out = tmp_path / "gkd"
    said = (
        "gkd",
        world / "start",
        "--data",
        world / "data.jsonl",
        "--teacher",
        world / "start",
        "--out",
        out,
    )
    code, printed = run(
        monkeypatch, capsys, *said, "--steps", "1", "--max-tokens", "4", "--reward", "exact", "--json"
    )
    assert code == 0, printed.err
    assert json.loads(printed.out)["steps"] == 1 and (out / "model").is_dir()


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("ppo", "is no step"),
        ("sft.lead", "is no step"),
        ("rl.budget", "no budgets"),
        ("kd", "needs a teacher"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, wrong):
    with pytest.raises(RecipeError, match=wrong):
        MatrixPlan().pipeline(name)


def test_changes_behind_dots():
    plan = MatrixPlan(budget=RolloutSettings(thinking_tokens=5, answer_tokens=2))
    step = plan.step("rl.lead.budget.filter")
    assert step.settings.objective.lead and step.settings.rollout.thinking_tokens == 5
    assert step.keep.rollout == step.settings.rollout
    assert plan.step("rl").settings.objective.lead is None and plan.step("rl").keep is None
    joint = MatrixPlan(teacher="somewhere").step("sftkd").settings.distillation
    assert (joint.alpha, joint.beta) == (0.5, 0.5)


def test_wrong_settings_are_sentences(world, tmp_path):
    with pytest.raises(RecipeError, match="no setting 'epoch'"):
        changed(SftSettings(), {"epoch": 3}, "sft")
    with pytest.raises(RecipeError, match="epochs cannot be 'many'"):
        changed(SftSettings(), {"epochs": "many"}, "sft")
    with pytest.raises(RecipeError, match="no key `pipeline`"):
        bad = tmp_path / "bad.yaml"
        bad.write_text("data: x\npipeline: sft\n")
        read_matrix(bad, {})
    with pytest.raises(RecipeError, match="No data"):
        read_matrix(None, {})
    slow = read_matrix(world / "plan.yaml", {"pipelines": ["slow"]}, ["rl.steps=3"]).pipelines[0].steps[0]
    assert (slow.settings.learning_rate, slow.settings.objective.baseline, slow.settings.steps) == (
        1e-6,
        "rloo",
        3,
    )
    assert slow.settings.objective.lead is not None
