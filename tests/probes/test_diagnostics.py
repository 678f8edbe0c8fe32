"""Norms and attention: equal to what transformers gives out, and to channels that were made dead or huge."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curation.errors import DataError
from probes.diagnostics import diagnose
from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig

CONFIG = ModelConfig(
    40, 32, 2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=32, initializer_range=0.3
)
FAMILIES = {
    "llama": replace(CONFIG, family="llama", rope_style="half", qk_norm="none", tied=False),
    "llama4_text": replace(CONFIG, family="llama4_text", rope_style="interleaved", qk_norm="l2_after_rope"),
    "qwen3": replace(CONFIG, family="qwen3", rope_style="half", qk_norm="rms_before_rope"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_transformers(family: str, tmp_path: object) -> None:
    model = Decoder(FAMILIES[family]).init_weights(0)
    save_huggingface(model, f"{tmp_path}/m")
    theirs = AutoModelForCausalLM.from_pretrained(f"{tmp_path}/m", attn_implementation="eager")
    texts = [np.arange(1, 12), np.arange(30, 3, -2), np.array([5])]
    found = diagnose(model, texts)
    assert found.tokens == 26 and found.texts == 3
    outs = []
    with torch.no_grad():
        for ids in texts:
            given = torch.from_numpy(ids)[None]
            outs.append(theirs(given, output_hidden_states=True, output_attentions=True))
    for number, layer in enumerate(found.layers):
        weights = [out.attentions[number][0].double() for out in outs]
        sinks = torch.cat([w[:, 1:, 0].mean(0) for w in weights])
        assert layer.sink == pytest.approx(float(sinks.mean()), rel=1e-4)
        even = torch.cat(
            [
                (-(w * w.clamp(min=1e-300).log()).sum(-1).mean(0) / torch.arange(1, w.shape[1] + 1).log())[1:]
                for w in weights
            ]
        )
        assert layer.entropy == pytest.approx(float(even.mean()), rel=1e-4)
    # transformers gives the stream before each layer; after the last one it is normed
    before = torch.cat([out.hidden_states[1][0].double() for out in outs])
    assert found.layers[0].residual_rms == pytest.approx(math.sqrt(float(before.square().mean())), rel=1e-4)
    assert found.layers[0].largest == pytest.approx(float(before.abs().max()), rel=1e-4)
    logits = torch.cat([out.logits[0].double() for out in outs])
    assert found.logit_rms == pytest.approx(math.sqrt(float(logits.square().mean())), rel=1e-4)
    assert found.largest_logit == pytest.approx(float(logits.abs().max()), rel=1e-4)
    assert found.squared_normaliser == pytest.approx(float(logits.logsumexp(-1).square().mean()), rel=1e-4)


def test_dead_and_huge_channels_are_counted() -> None:
    model = Decoder(CONFIG).init_weights(0)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[:12] = 0
    first, second = diagnose(model, [np.arange(20)]).layers
    assert first.dead_channels == 0 and second.dead_channels == 0.25
    assert first.huge_channels == second.huge_channels == 0
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[3] *= 1e5
    assert [layer.huge_channels for layer in diagnose(model, [np.arange(20)]).layers] == [1, 1]


def test_even_attention_and_bad_input() -> None:
    model = Decoder(replace(CONFIG, qk_norm="none")).init_weights(0)
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight.zero_()
    found = diagnose(model, [np.arange(9)], context=4)
    assert found.tokens == 4
    assert found.layers[0].entropy == pytest.approx(1.0)
    assert found.layers[0].sink == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    with pytest.raises(DataError, match="no text"):
        diagnose(model, [])
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0] = float("inf")
    with pytest.raises(DataError, match="layer 1 is not finite"):
        diagnose(model, [np.arange(9)])
