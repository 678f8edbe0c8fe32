"""GRPO: it learns, its gradient does not depend on how the step is cut, and kills change nothing."""

import doctest
import os
import signal
from dataclasses import replace
from math import comb

import pyarrow.parquet as parquet
import pytest
import torch

import training.grpo
import training.prompts
from curation.errors import DataError, RecipeError
from tests.training.post_training_models import (
    killed,
    tiny_config,
    tiny_folder,
    tiny_tokenizer,
    write_rows,
)
from training.advantages import LeadSettings
from training.grpo import GrpoSettings, ObjectiveSettings, grpo
from training.grpo_run import GrpoRun
from training.grpo_step import add_gradient, completion_logprobs, judge, step_weights
from training.huggingface import load_huggingface
from training.model import Decoder
from training.prompts import accuracy, question_at, read_questions, score_rollouts, wilson_interval
from training.rewards import named_reward
from training.rollout import Ending, Prompt, Rollout, RolloutSettings, roll_out
from training.rollout_records import read_rollouts
from training.run_log import read_rows

SETTINGS = GrpoSettings(
    steps=6,
    prompts_per_step=3,
    replicas=6,
    rollout=RolloutSettings(max_tokens=5),
    learning_rate=1e-2,
    micro_batch_rollouts=5,
    checkpoint_every=2,
    seed=1,
)


def says_seven(completion: str, answer: str) -> float:
    return float("7" in completion.split())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    start = tiny_folder(folder / "start")
    prompts = write_rows(folder / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(7)])
    held_out = write_rows(folder / "h.jsonl", [{"prompt": f"{n} + =", "answer": "7"} for n in range(10)])
    return start, prompts, held_out


def test_examples_in_docstrings():
    result = doctest.testmod(training.prompts)
    assert result.attempted and not result.failed


def test_it_learns_to_say_a_digit(files, tmp_path):
    start, prompts, held_out = files
    settings = replace(SETTINGS, steps=30, checkpoint_every=50)
    result = grpo(start, prompts, says_seven, tmp_path / "out", settings, held_out=held_out)
    rows = read_rows(tmp_path / "out" / "metrics.jsonl")
    first, last = ([row["reward"] for row in part] for part in (rows[:5], rows[-5:]))
    assert sum(first) / 5 < 0.5 and sum(last) / 5 > 0.85
    assert result.before["high"] < result.after["low"] and result.after["right"] >= 9
    assert rows[-1]["entropy"] is None or rows[-1]["entropy"] < rows[0]["entropy"]
    assert max(row["logprob_gap"] or 0 for row in rows) < 1e-5
    model = load_huggingface(result.final)
    questions = read_questions(held_out, tiny_tokenizer()).items
    found = accuracy(model, questions, says_seven, tiny_tokenizer(), settings.rollout)
    assert found.right == result.after["right"] and found.low <= found.value <= found.high


def a_step(objective, limit=9, temperature=1.0):
    """Twelve rollouts of three prompts with budgets, some truncated, and their verdicts."""
    model = Decoder(tiny_config()).init_weights(3).double()
    with torch.no_grad():
        model.embed_tokens.weight.mul_(6)
    settings = RolloutSettings(thinking_tokens=3, answer_tokens=4, temperature=temperature)
    ending = Ending(frozenset({1, 9, 10}), closing=(5, 6))
    prompts = [Prompt(at, tuple(range(7, 9 + 2 * at))) for at in range(3)]
    rollouts = roll_out(model, prompts, settings, ending, replicas=4, seed=2)
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(3, 4, generator=generator) < 0.5
    correct[0] = False
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts]).view(3, 4)
    truncated = torch.tensor([r.truncated for r in rollouts]).view(3, 4)
    judged = judge(correct.double(), correct, lengths, truncated, limit, objective)
    return model, rollouts, judged, step_weights(rollouts, judged, limit, objective)


@pytest.mark.parametrize("normalisation", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_loss_and_gradient_do_not_depend_on_micro_batches_or_order(normalisation):
    objective = ObjectiveSettings(
        normalisation=normalisation,
        batch_rollouts=4,
        lead=LeadSettings(),
        kl_coefficient=0.1,
        soft_overlong_cache=3,
    )
    model, rollouts, judged, weights = a_step(objective)
    assert 0 < int(judged.trained.sum()) < 12 and judged.truncated.any()
    assert any(any(r.forced) for r in rollouts)
    reference = Decoder(tiny_config()).init_weights(4).double()
    advantages = judged.advantages.reshape(-1)

    def run(order, micro_batch, old=None):
        model.zero_grad()
        stats = add_gradient(
            model,
            [rollouts[i] for i in order],
            advantages[order],
            weights[order],
            objective,
            temperature=0.8,
            micro_batch=micro_batch,
            reference=reference,
            old=None if old is None else {at: old[i] for at, i in enumerate(order) if i in old},
        )
        return stats, torch.cat([p.grad.reshape(-1) for p in model.parameters()])

    order = list(range(12))
    stats, gradient = run(order, 12)
    assert gradient.abs().max() > 1e-4 and stats.tokens == sum(
        r.forced.count(False) for r, used in zip(rollouts, judged.trained.reshape(-1), strict=True) if used
    )
    off_policy = {i: logprob + 0.3 * ((i % 5) - 2) for i, logprob in stats.old.items()}
    expected, far = run(order, 12, off_policy)
    assert expected.clipped > 0 and not torch.equal(far, gradient)
    for other in (order[::-1], [5, 0, 11, 3, 8, 1, 10, 2, 6, 4, 9, 7]):
        for micro_batch in (1, 5):
            found, same = run(other, micro_batch)
            assert found.loss == pytest.approx(stats.loss, rel=1e-12, abs=1e-15)
            torch.testing.assert_close(same, gradient, rtol=1e-9, atol=1e-14)
            found, same = run(other, micro_batch, off_policy)
            assert found.loss == pytest.approx(expected.loss, rel=1e-12) and found.clipped == expected.clipped
            torch.testing.assert_close(same, far, rtol=1e-9, atol=1e-14)


def test_forced_and_filtered_tokens_carry_no_gradient():
    model, rollouts, judged, weights = a_step(ObjectiveSettings(), temperature=0.7)
    assert (weights.view(3, 4)[judged.truncated] == 0).all() and (weights.view(3, 4)[0] == 0).all()
    for rollout in rollouts:
        logprobs, _, mask = completion_logprobs(model, [rollout], 0.7)
        assert mask[0].tolist() == [not flag for flag in rollout.forced]
        torch.testing.assert_close(logprobs[0], torch.tensor(rollout.logprobs).double(), atol=1e-5, rtol=0)
        assert completion_logprobs(model, [rollout], 0.7, forced_too=True)[2].all()


def test_what_a_reward_reads():
    """The text with its special tokens and without the end token, unless that was cut or forced."""
    ending = Ending(frozenset({1}))
    ids = (5, 8, 6, 9, 1)
    ended = Rollout(0, 0, (0,), ids, (0.0,) * 5, (False,) * 5, False, "end", 3)
    cut = Rollout(0, 1, (0,), ids[:4], (0.0,) * 4, (False,) * 4, True, "length", 3)
    seen = score_rollouts([ended, cut], ["2", "3"], named_reward("exact"), tiny_tokenizer(), ending)
    assert [text for text, _ in seen] == ["<think> 1 </think> 2"] * 2
    assert [scored.correct for _, scored in seen] == [True, False]


def test_verdicts():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    correct, lengths = rewards > 0.5, torch.tensor([[4, 4, 9, 4], [2, 4, 6, 8]])
    truncated = lengths == 9
    plain = judge(rewards, correct, lengths, truncated, 9, ObjectiveSettings())
    assert plain.advantages[0].tolist() == [0.75, -0.25, -0.25, -0.25] and plain.groups_used == 1
    assert plain.trained.tolist() == [[True, True, False, True], [False] * 4]
    out = judge(rewards, correct, lengths, truncated, 9, ObjectiveSettings(overlong_in_baseline=False))
    assert out.advantages[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, -1 / 3])
    kept = judge(rewards, correct, lengths, truncated, 9, ObjectiveSettings(overlong_filter=False))
    assert kept.trained[0].all()
    lead = ObjectiveSettings(lead=LeadSettings(), group_filter="any_correct")
    shaped = judge(rewards, correct, lengths, truncated, 9, lead)
    assert shaped.groups_used == 2 and shaped.shaped[0].tolist() == [1, -1, -1, -1]
    assert shaped.advantages[1].tolist() == sorted(shaped.advantages[1].tolist(), reverse=True)
    late = judge(rewards, correct, lengths, truncated, 9, ObjectiveSettings(soft_overlong_cache=2))
    assert late.shaped.tolist() == [[1, 0, -1, 0], [1, 1, 1, 0.5]]
    with pytest.raises(RecipeError, match="rloo"):
        ObjectiveSettings(baseline="rloo", scale="group")


def budgeted():
    rollout = RolloutSettings(thinking_tokens=3, answer_tokens=3)
    return replace(
        SETTINGS, rollout=rollout, objective=ObjectiveSettings(lead=LeadSettings(), kl_coefficient=0.01)
    )


def files_of(folder):
    names = ["model/model.safetensors", "metrics.jsonl", "evaluations.jsonl", "result.json"]
    names += [f"rollouts/step-{n}.parquet" for n in range(1, 7)]
    return {name: (folder / name).read_bytes() for name in names}


def test_killed_anywhere_and_resumed_it_ends_with_the_same_bytes(files, tmp_path):
    start, prompts, held_out = files
    settings = replace(budgeted(), updates=2)

    def run(name):
        return grpo(start, prompts, says_seven, tmp_path / name, settings, held_out=held_out)

    expected = run("whole")
    assert expected.updates >= 4

    def dying(method, step):
        original = getattr(GrpoRun, method)

        def work():
            def dies(self, *args, **more):
                if self.step == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, *args, **more)

            setattr(GrpoRun, method, dies)
            run("killed")

        return work

    moments = [("_sample", 1), ("_update", 1), ("_update", 3), ("_evaluate", 6), ("_checkpoint", 6)]
    for method, step in moments:
        assert killed(dying(method, step)) == -signal.SIGKILL, (method, step)
    assert run("killed") == replace(expected, final=tmp_path / "killed" / "model")
    whole, resumed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert [name for name in whole if whole[name] != resumed[name]] == []
    # a record is enough to repeat its step's verdicts
    rollouts, scored = read_rollouts(tmp_path / "whole" / "rollouts" / "step-2.parquet")
    table = parquet.read_table(tmp_path / "whole" / "rollouts" / "step-2.parquet")
    tables = [
        torch.tensor(x).view(3, 6)
        for x in (
            [s.reward for _, s in scored],
            [s.correct for _, s in scored],
            [len(r.completion_ids) for r in rollouts],
            [r.truncated for r in rollouts],
        )
    ]
    judged = judge(*tables, 7, settings.objective)
    assert judged.advantages.reshape(-1).tolist() == table["advantage"].to_pylist()
    assert step_weights(rollouts, judged, 7, settings.objective).tolist() == table["weight"].to_pylist()
    assert all(isinstance(r, Rollout) for r in rollouts) and len(rollouts) == 18


def test_a_finished_run_returns_at_once_and_another_is_refused(files, tmp_path, monkeypatch):
    start, prompts, _ = files
    settings = replace(SETTINGS, steps=1)
    result = grpo(start, prompts, says_seven, tmp_path / "out", settings)
    monkeypatch.setattr(GrpoRun, "train", None)
    assert grpo(start, prompts, says_seven, tmp_path / "out", settings) == result
    with pytest.raises(RecipeError, match="replicas was 6, is 4"):
        grpo(start, prompts, says_seven, tmp_path / "out", replace(settings, replicas=4))


def test_a_step_without_a_mixed_group_makes_no_update(files, tmp_path):
    start, prompts, _ = files
    result = grpo(start, prompts, lambda text, answer: 1.0, tmp_path / "out", replace(SETTINGS, steps=2))
    rows = read_rows(tmp_path / "out" / "metrics.jsonl")
    assert result.updates == 0 and [row["groups_used"] for row in rows] == [0, 0]
    assert rows[0]["entropy"] is None and rows[0]["accuracy"] == 1
    name = "model.safetensors"
    assert (result.final / name).read_bytes() == (start / name).read_bytes()


def test_every_prompt_once_in_each_epoch():
    epochs = [[question_at(e * 11 + i, 11, 5) for i in range(11)] for e in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs) and epochs[0] != epochs[1]


def test_questions(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "1 + 1 =", "answer": 2}, {"question": "1 =", "answer": "1 = 1\n#### 1"}]
    rows.append({"prompt": [{"role": "user", "content": "1 ="}], "answer": "1"})
    questions = read_questions(write_rows(tmp_path / "q.jsonl", rows), tokenizer).items
    assert [q.answer for q in questions] == ["2", "1", "1"] and questions[1].ids == questions[2].ids
    assert tokenizer.decode(questions[0].ids) == "<bos> <user> 1 + 1 = <assistant>"
    for bad in ({"prompt": "1"}, {"prompt": "1", "answer": ""}, {"prompt": "", "answer": "1"}):
        with pytest.raises(DataError, match="no prompt with an answer"):
            read_questions(write_rows(tmp_path / "bad.jsonl", [*rows, bad]), tokenizer)


def test_wilson_interval_covers():
    for share in (0.05, 0.5):
        intervals = [wilson_interval(k, 40) for k in range(41)]
        # exactly: the probabilities of the counts whose interval holds the share
        covered = sum(
            comb(40, k) * share**k * (1 - share) ** (40 - k)
            for k, (low, high) in enumerate(intervals)
            if low <= share <= high
        )
        assert 0.92 < covered < 0.99


def test_bad_input(files, tmp_path):
    start, prompts, _ = files
    with pytest.raises(RecipeError, match="group of one"):
        replace(SETTINGS, replicas=1)
    with pytest.raises(RecipeError, match="Greedy"):
        replace(SETTINGS, rollout=RolloutSettings(temperature=0))
    with pytest.raises(DataError, match="held-out prompts are also"):
        grpo(start, prompts, says_seven, tmp_path / "a", SETTINGS, held_out=prompts)
    with pytest.raises(DataError, match="nan"):
        grpo(start, prompts, lambda t, a: float("nan"), tmp_path / "b", SETTINGS)
    with pytest.raises(DataError, match="prompt 0, replica 0"):
        grpo(start, prompts, lambda t, a: 1 / 0, tmp_path / "c", SETTINGS)
    with pytest.raises(DataError, match="prompt 0"):
        long = replace(SETTINGS, rollout=RolloutSettings(max_tokens=64))
        grpo(start, prompts, says_seven, tmp_path / "d", long)
    with pytest.raises(RecipeError, match="no reward"):
        grpo(start, prompts, "maths", tmp_path / "e", SETTINGS)
