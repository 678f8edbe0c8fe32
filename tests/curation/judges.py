"""Tiny random judges of several published architectures, one folder each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("qwen2", "qwen3", "gemma3", "llama4_text")
SHARES_PREFIX = {"qwen2": True, "qwen3": True, "gemma3": False, "llama4_text": False}


def make_judge(family: str, tokenizer_folder: Path, folder: Path) -> Path:
    """Save a judge of `family` with large random weights, so that its margins differ clearly."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    if family == "qwen2":
        shape.pop("head_dim")
        model: Any = Qwen2ForCausalLM(Qwen2Config(**shape))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
    elif family == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**shape, sliding_window=16, layer_types=kinds))
    else:
        experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
        kinds = ["chunked_attention", "full_attention"]
        model = Llama4ForCausalLM(
            Llama4TextConfig(
                **shape, **experts, attention_chunk_size=32, layer_types=kinds, no_rope_layers=[1, 0]
            )
        )
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
