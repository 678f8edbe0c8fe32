"""TRL as an oracle: its own loss functions on our very tensors, loss and gradient, for each of its loss types."""

import re
from collections import defaultdict
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from training.grpo_loss import policy_loss, rollout_weights
from training.surrogates import Surrogate

trl = pytest.importorskip("trl", reason="trl is an optional oracle; it is not installed here")

LIMIT = 8
CLIP = Surrogate(low=0.2, high=0.28)
SEQUENCE = Surrogate(low=0.2, high=0.28, ratio="sequence")
# TRL's name, our normalisation, our surrogate
TYPES = [
    ("grpo", "grpo", CLIP),
    ("grpo", "grpo", SEQUENCE),  # GSPO
    ("grpo", "grpo", Surrogate(low=0.2, high=0.28, cap=1.5)),
    ("bnpo", "bnpo", CLIP),
    ("dr_grpo", "dr_grpo", CLIP),
    ("dapo", "dapo", CLIP),
    ("luspo", "luspo", SEQUENCE),
    ("cispo", "dapo", Surrogate("cispo", high=0.28)),
    ("sapo", "grpo", Surrogate("sapo")),
    ("sapo", "grpo", Surrogate("sapo", ratio="sequence")),
    ("vespo", "dapo", Surrogate("vespo")),
]


class Alone:
    """What TRL asks of accelerate, for one process."""

    num_processes, sync_gradients = 1, True

    def gather(self, x):
        return x

    def reduce(self, x, reduction):
        return x


def trl_loss(name, surrogate, leaf, old, reference, mask, advantages, beta):
    """`GRPOTrainer._compute_loss`, its model replaced by log-probabilities that are a leaf of the graph."""
    high = 1 + surrogate.high if name == "cispo" else surrogate.high  # TRL's cispo names the bound itself
    trainer = SimpleNamespace(
        loss_type=name, epsilon_low=surrogate.low, epsilon_high=high, beta=beta,
        importance_sampling_level=surrogate.ratio, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=False, aux_loss_enabled=False, _entropy_bonus_enabled=False, max_completion_length=LIMIT,
        current_gradient_accumulation_steps=1, accelerator=Alone(), model=torch.nn.Linear(1, 1),
        _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(
            delta=surrogate.cap, use_bias_correction_kl=False, steps_per_generation=1,
            sapo_temperature_pos=surrogate.sapo_positive, sapo_temperature_neg=surrogate.sapo_negative,
            vespo_k_pos=surrogate.vespo_positive[0], vespo_lambda_pos=surrogate.vespo_positive[1],
            vespo_k_neg=surrogate.vespo_negative[0], vespo_lambda_neg=surrogate.vespo_negative[1],
        ),
        _get_per_token_logps_and_entropies=lambda *a, **k: (leaf, torch.zeros_like(leaf), None),
        get_gamma_weights=trl.GRPOTrainer.get_gamma_weights,
    )  # fmt: skip
    ids = torch.zeros_like(mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": mask.long(), "completion_ids": ids, "completion_mask": mask.long(),
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


@pytest.mark.parametrize(("name", "normalisation", "surrogate"), TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_every_loss_type_has_trls_loss_and_gradient(name, normalisation, surrogate, beta):
    generator = torch.Generator().manual_seed(8)
    logprobs = -torch.rand(6, 5, dtype=torch.float64, generator=generator)
    old = logprobs + 0.5 * torch.randn(6, 5, dtype=torch.float64, generator=generator)
    reference = logprobs + 0.3 * torch.randn(6, 5, dtype=torch.float64, generator=generator)
    lengths = torch.tensor([1, 5, 3, 2, 4, 5])
    mask = torch.arange(5)[None] < lengths[:, None]
    advantages = torch.randn(6, dtype=torch.float64, generator=generator)
    theirs, ours = (logprobs.clone().requires_grad_() for _ in range(2))
    expected = trl_loss(name, surrogate, theirs, old, reference, mask, advantages, beta)
    expected.backward()
    weights = rollout_weights(lengths, normalisation, constant=LIMIT)
    found = policy_loss(
        ours, advantages, mask, weights, old_logprobs=old, surrogate=surrogate,
        reference_logprobs=reference if beta else None, kl_coefficient=beta,
    )  # fmt: skip
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-16)
    assert ours.grad.abs().sum() > 0


def test_no_loss_type_of_trl_is_left_out():
    described = next(f for f in fields(trl.GRPOConfig) if f.name == "loss_type").metadata["help"]
    supported = re.findall(r"'([a-z_]+)'", described.partition("Supported values are")[2].partition(". ")[0])
    assert len(supported) >= 8 and set(supported) == {name for name, _, _ in TYPES}


def test_sft_has_trls_loss_and_gradient(tmp_path):
    """A whole `SFTTrainer` on the same chats and weights: its collator, its masks, its loss.

    To float32's rounding: transformers' norms and TRL's head work in float32 also in a float64 model.
    """
    datasets = pytest.importorskip("datasets", reason="trl's SFTTrainer needs datasets")
    from transformers import AutoModelForCausalLM

    from tests.training.post_training_models import tiny_config, tiny_tokenizer
    from training.chat import render_chat
    from training.chat_packing import chat_batch
    from training.huggingface import save_huggingface
    from training.model import Decoder
    from training.update import accumulate_gradients

    # TRL's own head does not fit transformers' Llama 4, so this is a Llama
    config = replace(tiny_config(), family="llama", rope_style="half", qk_norm="none")
    tokenizer, ours = tiny_tokenizer(), Decoder(config).init_weights(1).double()
    save_huggingface(ours, tmp_path / "model", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    said = [("1 + 1 =", "<think> 2 </think> 2"), ("3 + 4 + 1 =", "8"), ("2 =", "<think> 2 is 2 </think> 2")]
    messages = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in said]
    chats = [render_chat(tokenizer, chat) for chat in messages]
    rows = [{"messages": chat} for chat in messages]
    args = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, report_to=[], bf16=False, max_length=None,
        assistant_only_loss=True, activation_checkpointing=False, per_device_train_batch_size=3,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=theirs, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(theirs.train(), inputs)
    expected.backward()
    loss = accumulate_gradients(ours, chat_batch(chats, [[0, 2], [1]], 32), micro_batch_sequences=1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    weights = {name.removeprefix("model."): p for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-8)
