"""Decoding on packed weights gives the decoder's own logits, and steps aside where something else is asked for."""

from dataclasses import replace

import pytest
import torch

from training.decoding import PackedRows, packed_weights
from training.model import Decoder, ModelConfig

CONFIG = ModelConfig(40, 32, 2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, max_positions=128)
FAMILIES = {
    "mobilellm": CONFIG,
    "llama": replace(CONFIG, family="llama", rope_style="half", qk_norm="none"),
    "qwen2": replace(CONFIG, family="qwen2", rope_style="half", qk_norm="none", qkv_bias=True),
    "qwen3": replace(CONFIG, family="qwen3", rope_style="half", qk_norm="rms_before_rope"),
}


def made(config, dtype=torch.float64):
    model = Decoder(config).init_weights(0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # gains and biases that are not 1 and 0
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter.mul_(4).add_(0.3 * noise if parameter.dim() == 1 else 0)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_whole_rows_while_rows_come_to_an_end(family, dtype):
    model = made(FAMILIES[family], dtype)
    prompts = [[3, 4, 5, 6, 7], [8], [9, 10, 11]]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.tensor([prompt + [0] * (5 - len(prompt)) for prompt in prompts])
    cache = model.new_cache(3, 5)
    model(padded, cache=cache)
    packed = packed_weights(model)
    assert packed is not None
    rows = PackedRows(packed, cache.keys, cache.values, lengths, 3, 80)
    texts = [list(prompt) for prompt in prompts for _ in range(3)]
    generator = torch.Generator().manual_seed(2)
    # Rows to keep after so many tokens: in a prompt's midst, its last one, all but one; 64 tokens grow the room.
    kept = {1: [0, 2, 3, 4, 5, 8], 2: [1, 2, 3, 5], 70: [2]}
    for step in range(72):
        tokens = torch.randint(40, (len(texts),), generator=generator)
        logits = rows.read(tokens)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        if step < 4 or step > 62:
            whole = torch.stack([model.logits(model(torch.tensor([text])))[0, -1] for text in texts])
            bound = 1e-11 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(logits, whole, atol=bound, rtol=bound)
        if step in kept:
            order = rows.keep(kept[step])
            assert sorted(order) == kept[step]
            texts = [texts[row] for row in order]


def test_it_steps_aside_where_something_else_is_asked_for():
    model = made(CONFIG, torch.float32)
    assert packed_weights(model) is not None
    model.attention = "sdpa"
    assert packed_weights(model) is None
    model.attention = "auto"
    hook = model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert packed_weights(model) is None
    hook.remove()
    assert packed_weights(model.bfloat16()) is None
