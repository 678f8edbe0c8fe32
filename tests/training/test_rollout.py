"""Rollouts: the batch does not matter, budgets are exact, log-probabilities are those of the loss."""

from dataclasses import replace

import pytest
import torch

from curation.errors import DataError, RecipeError
from training.huggingface import save_huggingface
from training.losses import linear_logprobs
from training.model import Decoder, ModelConfig
from training.rollout import Ending, Prompt, RolloutSettings, roll_out

VOCABULARY, END, CLOSE = 40, 1, (7, 8, 9)
CONFIG = ModelConfig(VOCABULARY, 32, 2, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=128)
ENDING = Ending(frozenset({END}), closing=(7,))
PROMPTS = [Prompt(i, tuple(range(3, 3 + n))) for i, n in enumerate((4, 1, 7, 3))]
SETTINGS = RolloutSettings(max_tokens=24)


@pytest.fixture(scope="module")
def model():
    model = Decoder(CONFIG).init_weights(0)
    with torch.no_grad():  # sharper than at the start of training, so that rollouts differ and some end
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def biased(model, token, amount):
    """A copy of `model` that favours `token` by `amount` nats."""
    other = Decoder(replace(CONFIG, tied=False)).init_weights(0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = state["embed_tokens.weight"].clone()
    other.load_state_dict(state | {"lm_head.weight": head})
    original = other.logits
    other.logits = lambda hidden: original(hidden) + amount * (torch.arange(VOCABULARY) == token)
    return other


def test_a_rollout_does_not_depend_on_its_batch(model):
    together = roll_out(model, PROMPTS, SETTINGS, ENDING, replicas=6, seed=4)
    assert {len(r.completion_ids) for r in together} != {24}, "some end early, so rows are dropped"
    assert len({r.completion_ids for r in together}) > 12
    alone = replace(SETTINGS, batch_rollouts=1)
    apart = [
        rollout
        for prompt in reversed(PROMPTS)
        for rollout in roll_out(model, [prompt], alone, ENDING, replicas=6, seed=4)
    ]
    apart.sort(key=lambda r: (r.prompt_index, r.replica))
    fewer = roll_out(model, PROMPTS, SETTINGS, ENDING, replicas=2, seed=4)
    for one, other in zip(together, apart, strict=True):
        assert one.completion_ids == other.completion_ids and one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert [r.completion_ids for r in fewer] == [r.completion_ids for r in together if r.replica < 2]
    assert roll_out(model, PROMPTS, SETTINGS, ENDING, replicas=6, seed=4) == together
    assert roll_out(model, PROMPTS, SETTINGS, ENDING, replicas=6, seed=5) != together
    assert roll_out(model, PROMPTS, SETTINGS, ENDING, replicas=6, seed=4, step=1) != together


def teacher_forced(model, rollout, temperature):
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    hidden = model(ids[:, :-1])[0, len(rollout.prompt_ids) - 1 :]
    labels = torch.tensor(rollout.completion_ids)
    return linear_logprobs(hidden, model.output_weight, labels, temperature=temperature)[0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_teacher_forced_ones(model, temperature):
    settings = RolloutSettings(thinking_tokens=5, answer_tokens=6, temperature=temperature)
    ending = replace(ENDING, closing=CLOSE)
    for rollout in roll_out(model, PROMPTS, settings, ending, replicas=4, seed=1):
        expected = teacher_forced(model, rollout, temperature)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("closing", [(7,), CLOSE])
def test_within_its_budget_a_rollout_is_the_unbudgeted_one(model, closing):
    ending = replace(ENDING, closing=closing)
    free = roll_out(model, PROMPTS, replace(SETTINGS, max_tokens=40), ending, replicas=16, seed=2)
    settings = RolloutSettings(thinking_tokens=14, answer_tokens=10)
    bound = roll_out(model, PROMPTS, settings, ending, replicas=16, seed=2)
    reached = within = 0
    for one, other in zip(free, bound, strict=True):
        forced = [at for at, flag in enumerate(other.forced) if flag]
        if forced:
            reached += 1
            assert forced == list(range(forced[0], other.thinking_tokens))
            assert forced[0] == 14 and other.completion_ids[:14] == one.completion_ids[:14]
            assert other.completion_ids[: other.thinking_tokens][-len(closing) :] == closing
            assert len(other.completion_ids) <= other.thinking_tokens + 10
        elif not other.truncated:
            within += 1
            assert other.completion_ids == one.completion_ids
        full = len(other.completion_ids) - other.thinking_tokens == 10
        assert other.truncated == (full and not ended(other))
    assert reached > 5 and within > 5


def ended(rollout):
    return rollout.completion_ids[-1] == END and not rollout.forced[-1]


def test_a_closing_string_that_the_model_has_begun_is_only_completed(model):
    begun = biased(model, CLOSE[0], 1000.0)  # its last 7 begins the string
    settings = RolloutSettings(thinking_tokens=4, answer_tokens=2)
    (rollout,) = roll_out(begun, PROMPTS[:1], settings, replace(ENDING, closing=CLOSE))
    assert rollout.completion_ids == (7, 7, 7, 7, 8, 9, 7, 7)
    assert rollout.forced == (False,) * 4 + (True, True, False, False)
    assert (rollout.thinking_tokens, rollout.truncated, rollout.finish_reason) == (6, True, "length")


def test_a_closing_string_spelled_in_other_tokens_is_seen():
    text = {7: "</", 8: "think", 9: ">", 10: ">\n"}
    ending = Ending(frozenset({END}), CLOSE, "</think>", lambda ids: "".join(text.get(i, "?") for i in ids))
    assert ending.closes([3, 7, 8, 9]) and ending.closes([3, 7, 8, 10]) and not ending.closes([7, 8])
    assert ending.rest_to_force([3, 7, 8]) == [9] and ending.rest_to_force([3]) == [7, 8, 9]


def test_the_end_of_text_while_thinking(model):
    ends = biased(model, END, 1000.0)
    settings = RolloutSettings(thinking_tokens=4, answer_tokens=3)
    (stopped,) = roll_out(ends, PROMPTS[:1], settings, ENDING)
    assert stopped.completion_ids == (END,) and stopped.finish_reason == "end_while_thinking"
    assert not stopped.truncated and stopped.thinking_tokens == 1
    (closed,) = roll_out(ends, PROMPTS[:1], replace(settings, end_while_thinking="close"), ENDING)
    assert closed.completion_ids == (7, END) and closed.forced == (True, False)
    assert closed.finish_reason == "end" and closed.thinking_tokens == 1
    expected = teacher_forced(model, closed, 1.0)  # without the bias, so only the shape can be compared
    assert len(expected) == len(closed.logprobs) and closed.logprobs[0] < -900


def test_greedy_equals_generate_of_transformers(model, tmp_path):
    from transformers import AutoModelForCausalLM

    save_huggingface(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    settings = replace(SETTINGS, temperature=0.0, max_tokens=16)
    for rollout in roll_out(model, PROMPTS, settings, ENDING):
        ids = torch.tensor([rollout.prompt_ids])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert list(rollout.completion_ids) == expected[0, ids.shape[1] :].tolist()


def test_bad_prompts_and_settings_are_refused(model):
    with pytest.raises(DataError, match="prompt 9"):
        roll_out(model, [Prompt(9, (3,) * 110)], SETTINGS, ENDING)
    with pytest.raises(DataError, match="empty"):
        roll_out(model, [Prompt(0, ())], SETTINGS, ENDING)
    with pytest.raises(RecipeError, match="both"):
        RolloutSettings(thinking_tokens=5)
    with pytest.raises(RecipeError, match="top_p"):
        RolloutSettings(top_p=0.0)
    with pytest.raises(RecipeError, match="max_tokens"):
        RolloutSettings(max_tokens=0)
