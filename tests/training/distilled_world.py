"""A language of three rules, a teacher that has learned it, and a data order: the world of the distillation tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.training.post_training_models import WORDS, tiny_tokenizer
from training.huggingface import save_huggingface
from training.losses import plain_cross_entropy
from training.model import Decoder, ModelConfig
from training.order import DataOrder, MixtureSchedule, Phase
from training.settings import TrainSettings
from training.tokens import TokenSource, hash_tokenizer

V, T = len(WORDS), 32
STUDENT = ModelConfig(V, 16, 1, heads=2, kv_heads=1, head_dim=8, ffn_dim=32, max_positions=64)
TEACHER = ModelConfig(V, 48, 2, heads=2, kv_heads=1, head_dim=24, ffn_dim=96, max_positions=64)
SETTINGS = TrainSettings(
    sequence_tokens=T, batch_sequences=4, steps=12, learning_rate=1e-2, resume_every=2, device="cpu"
)


def transitions() -> np.ndarray:
    """Probabilities of the next word given the last: a few likely ones and a long tail; [V, V]."""
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(V, V)) * 2.0
    table = np.exp(logits)
    return table / table.sum(-1, keepdims=True)


def make_source(name: str, seed: int, documents: int = 30) -> TokenSource:
    """Documents of 5 to 60 words drawn from `transitions`; the first and last token are <bos> and <eos>."""
    generator, table = np.random.default_rng(seed), transitions()
    lengths = generator.integers(5, 60, size=documents)
    texts = []
    for length in lengths:
        words = [0]
        for _ in range(length - 2):
            words.append(int(generator.choice(V, p=table[words[-1]])))
        texts.append([*words, 1])
    return TokenSource(
        name=name,
        tokens=np.concatenate(texts).astype(np.uint16),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        ids=[f"{name}-{i}" for i in range(documents)],
        text_bytes=lengths,
        hash=f"{name} {seed} {documents}",
        tokenizer=hash_tokenizer(tiny_tokenizer()),
        vocab_size=V,
    )


def make_order(steps: int = 12, documents: int = 30, seed: int = 0) -> DataOrder:
    """A plain phase and a distilled one; the border lies inside an update."""
    plain = 4 * steps // 2 - 2
    phases = (
        Phase("plain", plain, {"one": 0.5, "two": 0.5}),
        Phase("taught", 4 * steps - plain, {"one": 0.8, "two": 0.2}),
    )
    sources = {name: make_source(name, at, documents) for at, name in enumerate(("one", "two"))}
    return DataOrder(MixtureSchedule(phases, seed, block=8), sources, T)


def trained_teacher(folder: Path, steps: int = 110) -> Path:
    """A Hugging Face folder of a model that has seen much more of the language than any student will."""
    model = Decoder(TEACHER).init_weights(1)
    source = make_source("teacher", 99, 400)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    phases = (Phase("all", 16 * steps, {"teacher": 1.0}),)
    order = DataOrder(MixtureSchedule(phases, 3), {"teacher": source}, T)
    for step in range(steps):
        batch = order.batch(16 * step, 16)
        hidden = model(batch.input_ids, batch.positions, batch.document_ids)
        optimizer.zero_grad()
        plain_cross_entropy(hidden, model.output_weight, batch.labels, reduction="mean").backward()
        optimizer.step()
    save_huggingface(model, folder, tiny_tokenizer())
    return folder


def held_out_loss(model: Decoder) -> float:
    """Nats per token on documents that nobody has trained on."""
    source = make_source("held out", 1234, 200)
    order = DataOrder(MixtureSchedule((Phase("all", 150, {"held out": 1.0}),)), {"held out": source}, T)
    batch = order.batch(0, 150)
    with torch.no_grad():
        hidden = model(batch.input_ids, batch.positions, batch.document_ids)
        return plain_cross_entropy(hidden, model.output_weight, batch.labels, reduction="mean").item()
