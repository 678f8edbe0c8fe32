"""A model folder and task rows small enough to be evaluated in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig
from training.tokenizer import train_tokenizer

TEXTS = [
    "Question: Which of these is a metal? Answer: iron. The answer is copper or tin, said the teacher.",
    "Question: How many legs has a spider? Answer: eight legs. A horse has four legs and a bird has two.",
] * 3
ARC = [
    {
        "id": f"q{i}",
        "question": question,
        "choices": {"text": list(choices), "label": list(labels)},
        "answerKey": labels[gold],
    }
    for i, (question, choices, labels, gold) in enumerate(
        [
            ("Which of these is a metal?", ("wood", "iron", "a long piece of paper", "glass"), "ABCD", 1),
            ("How many legs has a spider?", ("two", "eight legs"), "12", 1),
            ("What does a plant need?", ("light {and} water", "a horse", "tin"), "ABC", 0),
            ("Which is a bird?", ("a horse", "a spider", "an owl", "a copper tin"), "ABCD", 2),
            ("What is cold?", ("ice", "fire"), "AB", 0),
        ]
    )
]


def model_folder(folder: Path, *, seed: int = 1, positions: int = 256) -> Path:
    """A random decoder of 2 layers with a trained byte-level tokenizer."""
    tokenizer = train_tokenizer(TEXTS, 320, folder / "tokenizer")
    config = ModelConfig(
        len(tokenizer), 32, 2, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=positions,
        initializer_range=0.3,
    )  # fmt: skip
    save_huggingface(Decoder(config).init_weights(seed), folder / "model", tokenizer)
    return folder / "model"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
