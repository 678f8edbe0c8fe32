"""The adapter: models that are not ours train, decode and come back, with the numbers of transformers."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, GraniteConfig, PhiConfig

from curation.errors import DataError
from tests.training.post_training_models import WORDS, tiny_config, tiny_folder, tiny_tokenizer, write_rows
from training.chat import render_chat
from training.chat_packing import chat_batch
from training.distillation_settings import Distillation
from training.grpo import GrpoSettings, grpo
from training.grpo_settings import ObjectiveSettings
from training.grpo_step import add_gradient
from training.huggingface import load_huggingface, save_huggingface
from training.losses import IGNORED
from training.model import Decoder
from training.on_policy_distillation import on_policy_distillation
from training.on_policy_settings import OnPolicySettings
from training.recomputation import recompute_layers
from training.replay import replay
from training.rollout import Ending, Prompt, RolloutSettings, roll_out
from training.rollout_records import read_rollouts
from training.run_log import read_rows
from training.sequence_distillation import TeachingSettings, write_teacher_chats
from training.sft import SftSettings, sft
from training.start import load_policy
from training.transformers_model import load_transformers
from training.update import accumulate_gradients

V, END = len(WORDS), 1
LLAMA_LIKE = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": END, "pad_token_id": 2,
}  # fmt: skip
CONFIGS = {
    # learned positions; dropout that must stay off
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0,
                       eos_token_id=END, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3),
    # a bias on the logits, rotation of a part of each head
    "phi": PhiConfig(**{k: v for k, v in LLAMA_LIKE.items() if k != "head_dim"}),
    # a soft cap on the logits, windows in every other layer
    "gemma2": Gemma2Config(**LLAMA_LIKE, sliding_window=6, final_logit_softcapping=2.0),
    # logits divided by a constant
    "granite": GraniteConfig(**{k: v for k, v in LLAMA_LIKE.items() if k != "head_dim"}, logits_scaling=4.0),
    # ALiBi: knows no positions, so that documents get rows of their own
    "bloom": BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=END),
}  # fmt: skip
SAID = [(f"{a} + {b} =", f"<think> {a} + {b} </think> {a + b}") for a in range(4) for b in range(4)]


def messages(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # sharp enough that rollouts differ, and biases matter
            torch.nn.init.normal_(parameter, std=0.4 if parameter.dim() > 1 else 0.3)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        tiny_tokenizer().save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def chats():
    return [render_chat(tiny_tokenizer(), messages(*said)) for said in SAID[:7]]


def gradients(model, loss):
    return loss, torch.cat([p.grad.reshape(-1).double() for p in model.parameters()])


def transformers_gradient(folder, chats):
    """Mean loss over assistant tokens from transformers' own logits, a chat at a time, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    count = sum(sum(chat.assistant[1:]) for chat in chats)
    total = 0.0
    for chat in chats:
        labels = torch.tensor(
            [i if said else IGNORED for i, said in zip(chat.ids, chat.assistant, strict=True)]
        )
        logits = model(torch.tensor([chat.ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    return gradients(model, total)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_loss_and_gradient_are_those_of_transformers_alone(folders, chats, name):
    expected, slope = transformers_gradient(folders[name], chats)
    model = load_transformers(folders[name])
    assert model._apart == (name != "bloom") and model._cached
    model.double()  # to 1e-6, since transformers' norms are float32 also in a float64 model
    for rows, micro_batch, every in (
        ([[0, 1, 2], [3, 4], [5, 6]], 2, None),
        ([[6, 0], [5, 2, 1], [3, 4]], 1, 1),
    ):
        recompute_layers(model, every)
        model.zero_grad()
        batch = chat_batch(chats, rows, 48)
        loss, found = gradients(model, accumulate_gradients(model, batch, micro_batch_sequences=micro_batch))
        assert float(loss) == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-6)
    model.train()
    assert float(accumulate_gradients(model, batch)) == pytest.approx(expected, rel=1e-6), "dropout is off"


@pytest.mark.parametrize("name", CONFIGS)
def test_rollouts_are_the_greedy_ones_of_generate_and_their_logprobs_the_teacher_forced(folders, name):
    model = load_transformers(folders[name])
    ending, settings = Ending(frozenset({END}), closing=(6,)), RolloutSettings(max_tokens=10, temperature=0.0)
    prompts = [Prompt(at, tuple(range(3, 3 + n))) for at, n in enumerate((4, 1, 7, 3))]
    theirs = AutoModelForCausalLM.from_pretrained(folders[name])
    for rollout in roll_out(model, prompts, settings, ending):
        ids = torch.tensor([rollout.prompt_ids])
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10,
                                   eos_token_id=END, pad_token_id=2)  # fmt: skip
        assert list(rollout.completion_ids) == expected[0, ids.shape[1] :].tolist()
    budget = RolloutSettings(thinking_tokens=4, answer_tokens=5)
    rollouts = roll_out(model, prompts, budget, ending, replicas=3, seed=1)
    assert len({len(r.completion_ids) for r in rollouts}) > 1 and any(any(r.forced) for r in rollouts)
    for rollout in rollouts:
        whole = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        logprobs = theirs.eval()(whole).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        taken = logprobs.gather(1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.logprobs), taken.detach(), atol=1e-5, rtol=0)
    model.__dict__["_cached"] = False  # the slower path decodes the same
    slow = roll_out(model, prompts, budget, ending, replicas=3, seed=1)
    assert [r.completion_ids for r in slow] == [r.completion_ids for r in rollouts]


def test_a_model_that_both_can_hold_has_our_decoders_loss_and_gradient(tmp_path, chats):
    config = replace(tiny_config(), family="llama", rope_style="half", qk_norm="none", tied=False)
    ours = Decoder(config).init_weights(2)
    save_huggingface(ours, tmp_path / "model", tiny_tokenizer())
    theirs = load_transformers(tmp_path / "model").double()
    ours = load_huggingface(tmp_path / "model").double()
    assert isinstance(load_policy(tmp_path / "model"), Decoder)
    names = {
        f"inner.model.{n}".replace("inner.model.lm_head", "inner.lm_head"): p
        for n, p in ours.named_parameters()
    }

    def compare(one, other):
        assert one == pytest.approx(other, rel=1e-6)
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(parameter.grad, names[name].grad, rtol=1e-4, atol=1e-7)
            names[name].grad = parameter.grad = None

    batch = chat_batch(chats, [[0, 1, 2], [3, 4], [5, 6]], 48)
    compare(*(float(accumulate_gradients(m, batch, micro_batch_sequences=2)) for m in (theirs, ours)))
    ending, settings = Ending(frozenset({END})), RolloutSettings(max_tokens=8)
    rollouts = roll_out(ours, [Prompt(0, (3, 4)), Prompt(1, (3, 4, 5))], settings, ending, replicas=4)
    assert rollouts == roll_out(ours, [Prompt(0, (3, 4)), Prompt(1, (3, 4, 5))], settings, ending, replicas=4)
    advantages, weights = torch.linspace(-1, 1, 8).double(), torch.full((8,), 0.02).double()
    more = {"temperature": 0.8, "micro_batch": 3}
    stats = [
        add_gradient(m, rollouts, advantages, weights, ObjectiveSettings(), **more).loss
        for m in (theirs, ours)
    ]
    compare(*stats)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_fine_tuning_and_reinforcement_end_in_a_folder_of_the_same_kind(folders, tmp_path, name):
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": messages(*said)} for said in SAID])
    tuned = sft(folders[name], data, tmp_path / "sft", SftSettings(
        sequence_tokens=48, batch_sequences=2, epochs=8, learning_rate=1e-2, checkpoint_every=4
    ))  # fmt: skip
    final = AutoModelForCausalLM.from_pretrained(tuned.final)
    assert final.config.model_type == name and final.generation_config.eos_token_id == END
    before, after = (float(accumulate_gradients(load_transformers(folder), chat_batch(
        [render_chat(tiny_tokenizer(), messages(*said)) for said in SAID], [[at] for at in range(16)], 48
    ))) for folder in (folders[name], tuned.final))  # fmt: skip
    assert after < before / 2
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(5)])
    settings = GrpoSettings(
        steps=2, prompts_per_step=2, replicas=4, rollout=RolloutSettings(max_tokens=6), checkpoint_every=1,
        objective=ObjectiveSettings(kl_coefficient=0.01),
    )  # fmt: skip
    result = grpo(tuned.final, prompts, says_digit, tmp_path / "grpo", settings)
    assert result.updates >= 1 and AutoModelForCausalLM.from_pretrained(result.final)
    again = [replay(tmp_path / "grpo", step, reward=says_digit) for step in (1, 2)]
    assert all(found.same for found in again) and any(found.grad_norm for found in again)


def says_digit(completion, answer):
    return float(sum(word.isdigit() for word in completion.split()) % 2)


def test_one_teaches_and_another_is_distilled(folders, tmp_path):
    """Phi answers for GPT-2's chats, and GPT-2 learns Phi's distributions at its own tokens."""
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(3)])
    teaching = TeachingSettings(answers=2, keep="all", rollout=RolloutSettings(max_tokens=6))
    taught = write_teacher_chats(folders["phi"], prompts, tmp_path / "chats.jsonl", teaching, reward=None)
    assert taught.kept == 3 and len((tmp_path / "chats.jsonl").read_text().splitlines()) == 3
    settings = OnPolicySettings(
        Distillation(str(folders["phi"]), direction="forward", precision="float32"), steps=1, prompts_per_step=3,
        replicas=2, rollout=RolloutSettings(max_tokens=6), learning_rate=1e-3,
    )  # fmt: skip
    result = on_policy_distillation(folders["gpt2"], prompts, says_digit, tmp_path / "gkd", settings)
    assert AutoModelForCausalLM.from_pretrained(result.final).config.model_type == "gpt2"
    rollouts, _ = read_rollouts(tmp_path / "gkd/rollouts/step-1.parquet")
    student, teacher = (AutoModelForCausalLM.from_pretrained(folders[n]).eval() for n in ("gpt2", "phi"))
    total = count = 0.0
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            said, meant = (
                m(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1) for m in (student, teacher)
            )
        total += float((meant.exp() * (meant - said)).sum())
        count += len(rollout.completion_ids)
    (row,) = read_rows(tmp_path / "gkd/metrics.jsonl")
    assert row["tokens"] == count and row["divergence"] == pytest.approx(total / count, rel=1e-4)


def test_models_that_cannot_be_trained_are_refused(folders, tmp_path):
    for described, says in (
        ('{"model_type": "bert", "vocab_size": 20}', "causal"),
        ('{"model_type": "nonesuch"}', "nonesuch"),
    ):
        (tmp_path / "config.json").write_text(described)
        with pytest.raises(DataError, match=says):
            load_policy(tmp_path)
    broken = tiny_folder(tmp_path / "broken")
    (broken / "config.json").write_text(CONFIGS["gpt2"].to_json_string())
    with pytest.raises(DataError, match="lack"):
        load_policy(broken)
    model = load_transformers(folders["gpt2"])
    model.inner.lm_head.register_forward_hook(lambda module, given, made: made.square())
    with pytest.raises(DataError, match="linear map"):
        model.hidden(torch.tensor([[1, 2]]))
