"""Rollouts by vLLM, against a stand-in with its interface that decodes with our own model."""

import math
import sys
import types
from dataclasses import dataclass, replace

import pytest
import torch

from curation.errors import DataError, MachineError, RecipeError
from tests.training.post_training_models import tiny_folder, write_rows
from tests.training.test_grpo import SETTINGS, says_seven
from tests.training.test_rollout import CLOSE, CONFIG, END, ENDING, PROMPTS, biased
from training.grpo import grpo
from training.huggingface import load_huggingface, save_huggingface
from training.model import Decoder
from training.rollout import RolloutSettings, roll_out
from training.rollout_records import read_rollouts
from training.vllm_rollout import VllmEngine


@dataclass
class SamplingParams:
    """The parameters that the engine sets, by vLLM's names; another name is a TypeError, as there."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: list
    ignore_eos: bool
    logprobs: int
    detokenize: bool


class LLM:
    """vLLM's class for offline inference, decoding token by token with the weights it was given."""

    made = None

    def __init__(
        self, *, model, dtype, max_model_len, enable_prefix_caching, logprobs_mode, gpu_memory_utilization
    ):
        assert logprobs_mode == "processed_logprobs" and 0 < gpu_memory_utilization < 1
        self.model, self.calls, self.loaded = load_huggingface(model), 0, 0
        self.names = set(_names(self.model))
        LLM.made = self

    def apply_model(self, function):
        function(self)

    def load_weights(self, weights):
        weights = dict(weights)
        assert set(weights) == self.names, "the names are those of the folder"
        with torch.no_grad():
            for (_, mine), given in zip(self.model.named_parameters(), weights.values(), strict=True):
                mine.copy_(given)
        self.loaded += 1

    def reset_prefix_cache(self):
        self.fresh = True

    def generate(self, prompts, sampling_params, use_tqdm):
        assert self.fresh and not use_tqdm and len(prompts) == len(sampling_params)
        self.calls += 1
        return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    @torch.no_grad()
    def _one(self, ids, params):
        generator, found, logprobs = torch.Generator().manual_seed(params.seed), [], []
        while len(found) < params.max_tokens:
            hidden = self.model(torch.tensor([[*ids, *found]]))[0, -1]
            logits = self.model.logits(hidden)
            row = (logits if params.temperature == 0 else logits / params.temperature).log_softmax(-1)
            if params.temperature == 0:
                token = int(row.argmax())
            else:
                token = int(torch.multinomial(row.exp(), 1, generator=generator))
            found.append(token)
            logprobs.append({token: types.SimpleNamespace(logprob=float(row[token]))})
            if token in params.stop_token_ids:
                break
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=found, logprobs=logprobs)])


def _names(model):
    return [n.replace(".mlp.", ".feed_forward.") if n == "lm_head.weight" else
            "model." + n.replace(".mlp.", ".feed_forward.") for n, _ in model.named_parameters()]  # fmt: skip


@pytest.fixture
def vllm(monkeypatch):
    module = types.SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture
def engine(vllm, model, tmp_path):
    save_huggingface(Decoder(CONFIG).init_weights(5), tmp_path / "other")
    return VllmEngine(tmp_path / "other", dtype="float32")


@pytest.fixture(scope="module")
def model():
    model = Decoder(CONFIG).init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("budget", [{}, {"thinking_tokens": 5, "answer_tokens": 6}])
@pytest.mark.parametrize("closing", [(7,), CLOSE])
def test_greedy_rollouts_are_those_of_our_loop(engine, model, budget, closing):
    settings = RolloutSettings(max_tokens=12, temperature=0.0, **budget)
    ending = replace(ENDING, closing=closing)
    ours = roll_out(model, PROMPTS, settings, ending)
    theirs = engine.roll_out(model, PROMPTS, settings, ending)
    for one, other in zip(ours, theirs, strict=True):
        assert replace(one, logprobs=()) == replace(other, logprobs=())
        for mine, other_logprob, forced in zip(one.logprobs, other.logprobs, one.forced, strict=True):
            assert other_logprob == (0.0 if forced else pytest.approx(mine, abs=1e-5))


def test_sampled_rollouts_keep_their_budgets_and_their_seeds(engine, model):
    settings = RolloutSettings(thinking_tokens=4, answer_tokens=3)
    found = engine.roll_out(model, PROMPTS, settings, ENDING, replicas=5, seed=3)
    assert [(r.prompt_index, r.replica) for r in found] == [(p, r) for p in range(4) for r in range(5)]
    assert any(any(r.forced) for r in found) and len({r.completion_ids for r in found}) > 8
    for rollout in found:
        assert rollout.thinking_tokens <= 5 and len(rollout.completion_ids) <= 8
        assert all(math.isfinite(x) for x in rollout.logprobs)
    assert found == engine.roll_out(model, PROMPTS, settings, ENDING, replicas=5, seed=3)
    assert found != engine.roll_out(model, PROMPTS, settings, ENDING, replicas=5, seed=4)


def test_the_end_of_text_while_thinking(vllm, engine, model, monkeypatch):
    monkeypatch.setattr(engine._llm, "model", biased(model, END, 1000.0))
    monkeypatch.setattr(engine, "load", lambda model: engine._llm.reset_prefix_cache())
    settings = RolloutSettings(thinking_tokens=4, answer_tokens=3)
    (stopped,) = engine.roll_out(model, PROMPTS[:1], settings, ENDING)
    assert stopped.completion_ids == (END,) and stopped.finish_reason == "end_while_thinking"
    (closed,) = engine.roll_out(model, PROMPTS[:1], replace(settings, end_while_thinking="close"), ENDING)
    assert closed.completion_ids == (7, END) and closed.forced == (True, False)


def test_grpo_trains_on_its_rollouts_and_hands_over_new_weights(vllm, tmp_path):
    start = tiny_folder(tmp_path / "start")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(7)])
    settings = replace(SETTINGS, steps=3, rollout=RolloutSettings(max_tokens=5, engine="vllm"))
    result = grpo(start, prompts, says_seven, tmp_path / "out", settings)
    assert LLM.made.loaded == LLM.made.calls == 3 and result.updates >= 1
    final = load_huggingface(result.final)
    assert not torch.equal(final.embed_tokens.weight, load_huggingface(start).embed_tokens.weight)
    assert len(read_rollouts(tmp_path / "out" / "rollouts" / "step-3.parquet")[0]) == 18


def test_without_vllm_there_is_a_sentence(tmp_path, monkeypatch, engine, model):
    with pytest.raises(DataError, match="prompt 0"):
        engine.roll_out(model, PROMPTS, RolloutSettings(max_tokens=126), ENDING)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MachineError, match="need the package vllm"):
        VllmEngine(tmp_path)
    with pytest.raises(RecipeError, match="sglang"):
        RolloutSettings(engine="sglang")
