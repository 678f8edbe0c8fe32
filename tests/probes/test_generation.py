"""Samples, verdicts and rates of generation benchmarks: against the decoder itself, hand-made models, and kills."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probes.generation as generation
from curation.errors import DataError, RecipeError
from probes.generation import GenerationResult, GenerationSettings, at_budget, generate_and_score
from probes.judging import Judge, stated_answer
from tests.training.post_training_models import WORDS, killed, tiny_config, tiny_tokenizer
from training.model import Decoder
from training.rewards import named_reward, score
from training.rollout import RolloutSettings

ID = {word: at for at, word in enumerate(WORDS)}
PROMPTS = ["1 + 2 =", "2 + 2 =", "3 + 4 =", "1 + 1 =", "5 + 3 ="]
ANSWERS = ["3", "4", "7", "2", "8"]
SAMPLED = GenerationSettings(
    samples=4, rollout=RolloutSettings(max_tokens=6, temperature=1.0, batch_rollouts=8), chunk_prompts=2
)
GREEDY = GenerationSettings(rollout=RolloutSettings(max_tokens=4, temperature=0.0))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(tiny_config()).init_weights(0)


def chain(after: dict[str, str]) -> Decoder:
    """A model without attention or memory that follows each word by a fixed one; all else by <eos>."""
    model = Decoder(replace(tiny_config(), tied=False)).init_weights(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 32))
        assert model.lm_head is not None
        model.lm_head.weight.zero_()
        for word in WORDS:
            model.lm_head.weight[ID[after.get(word, "<eos>")], ID[word]] = 5.0
    return model


def answers(model: Decoder, settings: GenerationSettings = SAMPLED, **more: Any) -> GenerationResult:
    return generate_and_score(model, tiny_tokenizer(), PROMPTS, ANSWERS, "math", settings, **more)


def test_a_known_model_is_scored_as_by_hand() -> None:
    model = chain({"=": "4", "4": "<eos>"})
    found = answers(model, GREEDY)
    assert found.samples["text"].to_pylist() == ["4"] * 5
    assert found.correct[:, 0].tolist() == [False, True, False, False, False]
    assert found.samples["tokens"].to_pylist() == [2] * 5
    assert (found.truncated, found.no_answer) == (0.0, 0.0)
    assert found.summary()["avg@1"]["value"] == pytest.approx(0.2)
    assert found.summary()["finish_reasons"] == {"end": 5}


def test_endless_and_empty_answers_are_counted() -> None:
    cold = replace(SAMPLED, rollout=RolloutSettings(max_tokens=6, temperature=0.01))
    endless = answers(chain({"=": "is", "is": "is"}), cold)
    assert (endless.truncated, endless.no_answer) == (1.0, 1.0)
    assert endless.lengths()[0.5] == 6
    assert endless.maj_at_k(3).value == 0
    silent = answers(chain({}), cold)
    assert (silent.truncated, silent.no_answer, silent.lengths()[1.0]) == (0.0, 1.0, 1)


def test_stop_strings_end_the_answer_and_what_follows_is_not_counted() -> None:
    model = chain({"=": "3", "3": "+", "+": "4", "4": "3"})
    settings = GenerationSettings(rollout=RolloutSettings(max_tokens=6, temperature=0.0))
    long = answers(model, settings)
    assert long.samples["text"].to_pylist()[0] == "3 + 4 3 + 4"
    assert not long.correct[0, 0]
    short = answers(model, replace(settings, stop=("4 3", " +")))
    assert short.samples["text"].to_pylist() == ["3"] * 5
    assert short.samples["tokens"].to_pylist() == [2] * 5
    assert set(short.samples["finish_reason"].to_pylist()) == {"stop"}
    assert (short.correct[0, 0], short.truncated) == (True, 0.0)
    # Across tokens, and only where the text holds it.
    across = answers(model, replace(settings, stop=("4 3", "never")))
    assert across.samples["text"].to_pylist()[0] == "3 + "
    assert across.samples["tokens"].to_pylist()[0] == 4


def test_samples_depend_on_neither_chunks_nor_company(model: Decoder) -> None:
    whole = answers(model)
    chunked = answers(model, replace(SAMPLED, chunk_prompts=5))
    assert whole.samples.equals(chunked.samples)
    other = answers(model, replace(SAMPLED, seed=1))
    assert not whole.samples.equals(other.samples)
    assert whole.samples["replica"].to_pylist()[:5] == [0, 1, 2, 3, 0]
    assert whole.correct.shape == (5, 4)
    assert json.loads(json.dumps(whole.summary()))["settings"]["rollout"]["temperature"] == 1.0


@pytest.mark.parametrize("budget", [1, 3])
def test_a_smaller_budget_is_the_run_with_that_limit(model: Decoder, budget: int) -> None:
    large = answers(model)
    cut = at_budget(large, tiny_tokenizer(), ANSWERS, budget)
    small = answers(model, replace(SAMPLED, rollout=replace(SAMPLED.rollout, max_tokens=budget)))
    assert cut.samples.equals(small.samples)
    assert cut.settings == small.settings
    with pytest.raises(RecipeError, match="cannot be cut"):
        at_budget(large, tiny_tokenizer(), ANSWERS, 7)


def test_a_killed_run_goes_on_and_a_finished_one_is_read(
    model: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = generation._samples
    done = []

    def dies(*given: Any) -> Any:
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        return original(*given)

    monkeypatch.setattr(generation, "_samples", dies)
    assert killed(lambda: answers(model, out=tmp_path)) == -signal.SIGKILL
    calls = []
    monkeypatch.setattr(generation, "_samples", lambda *given: calls.append(1) or original(*given))
    resumed = answers(model, out=tmp_path)
    assert len(calls) == 2  # of three chunks
    assert resumed.samples.equals(answers(model).samples)
    calls.clear()
    assert answers(model, out=tmp_path).samples.equals(resumed.samples)
    assert calls == []
    # Another model, or other settings, are another run.
    answers(Decoder(tiny_config()).init_weights(1), out=tmp_path)
    assert len(calls) == 3
    (tmp_path / "samples.parquet").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"samples\.parquet"):
        answers(model, out=tmp_path)


def test_prompts_beyond_the_context_are_cut_on_the_left_and_counted(model: Decoder) -> None:
    settings = GREEDY
    long = "9 " * 100 + PROMPTS[0]
    found = generate_and_score(model, tiny_tokenizer(), [PROMPTS[0], long], ["3", "3"], "math", settings)
    assert found.prompts_cut == 1
    assert found.samples["prompt_tokens"].to_pylist() == [5, 60]
    assert found.samples["prompt_cut"].to_pylist() == [0, 45]
    kept = "9 " * 55 + PROMPTS[0]
    same = generate_and_score(model, tiny_tokenizer(), [PROMPTS[0], kept], ["3", "3"], "math", settings)
    assert same.prompts_cut == 0
    assert same.samples["text"].to_pylist() == found.samples["text"].to_pylist()


def test_the_majority_is_over_equal_values_not_texts() -> None:
    judge = Judge.__new__(Judge)
    judge.name, judge.reward = "math", named_reward("math")
    rows = [{"answer": answer} for answer in ("1/2", None, "0.5", "3", "1/2", r"\frac{1}{2}")]
    judge.classify(rows)
    assert [row["answer_class"] for row in rows] == [0, -1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("reward", "text", "answer", "stated"),
    [
        ("math", "so 7", "7", "7"),
        ("math-verify", r"\boxed{x+1}", "1+x", "x+1"),
        ("choice", "It is (C).", "C", "C"),
        ("exact", " 42 ", "42", "42"),
        ("math", "\\boxed{" * 500, "7", None),
    ],
)
def test_named_rewards_judge(reward: str, text: str, answer: str, stated: str | None) -> None:
    assert stated_answer(reward, text) == stated
    verdict = score(named_reward(reward), text, answer)
    assert verdict.correct == (stated is not None)


def test_code_runs_in_the_sandbox_with_the_head_of_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference solutions are accepted, perturbed ones rejected; the head is HumanEval's part of the program."""
    head = "def double(x):\n"
    tests = json.dumps({"function": "double", "calls": [[[2], 4], [[-1], -2]]})
    texts = iter(["    return 2 * x\n", "    return x + 2\n", "    return ("])
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_, **__: next(texts))
    model = chain({"=": "4"})
    found = generate_and_score(
        model, tokenizer, ["1 ="] * 3, [tests] * 3, "code", GREEDY, ids=list("abc"), heads=[head] * 3
    )
    assert found.correct[:, 0].tolist() == [True, False, False]
    assert found.no_answer == 0.0
    with pytest.raises(RecipeError, match="no majority"):
        found.maj_at_k(1)


def test_bad_input(model: Decoder) -> None:
    tokenizer = tiny_tokenizer()
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (DataError, "no prompts", ([], [], "math"), {}),
        (DataError, "2 prompts have 1 answers", (["1", "2"], ["1"], "math"), {}),
        (DataError, "there twice", (["1", "2"], ["1", "2"], "math"), {"ids": ["a", "a"]}),
        (DataError, "empty", (["1", " "], ["1", "2"], "math"), {}),
        (RecipeError, "no reward", (["1"], ["1"], "guess", SAMPLED), {}),
        (
            RecipeError,
            "reads 64",
            (["1"], ["1"], "math", GenerationSettings(rollout=RolloutSettings(64))),
            {},
        ),
    ]
    for kind, message, given, more in cases:
        with pytest.raises(kind, match=message):
            generate_and_score(model, tokenizer, *given, **more)
    with pytest.raises(RecipeError, match="all the same"):
        GenerationSettings(samples=2)
    with pytest.raises(RecipeError, match="empty"):
        GenerationSettings(stop=("",))


def test_uncertainty_is_that_of_problems_and_runs(model: Decoder) -> None:
    found = answers(model, replace(SAMPLED, samples=6))
    estimate = found.avg_at_n()
    assert estimate.value == pytest.approx(found.correct.mean())
    assert estimate.between_run == pytest.approx(np.std(found.correct.mean(axis=0), ddof=1))
    assert found.pass_at_k(1).value == pytest.approx(estimate.value)
    assert found.pass_at_k(6).value == pytest.approx(found.correct.any(axis=1).mean())
