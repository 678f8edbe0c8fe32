"""A regression head on a frozen encoder, in the manner of FineWeb-Edu's classifier.

FineWeb-Edu (huggingface/cosmopedia, `train_edu_bert.py`): encoder and embeddings frozen, pooler and head trained
for 20 epochs on squared error with AdamW at 3e-4 (linear to zero, no weight decay), 256 texts a step, the epoch
with the best macro F1 kept. We differ in that the epoch is chosen on a validation part and the report made on
another one; that the encoder runs once, not 20 times (without dropout its output never changes); that the output
begins at the mean label; and that tables far below FineWeb-Edu's 450,000 texts take smaller steps.
"""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.atomic import hash_value, replacing_folder
from curation.batches import one_thread, quiet_loading
from curation.classifiers.annotated import Annotated, positive_label, split_annotated
from curation.classifiers.evaluation import best_threshold
from curation.classifiers.frozen_encoder import Head, check_head, features, load_frozen
from curation.classifiers.record import write_record
from curation.progress import progress
from curation.score_tables import model_fingerprint


@dataclass(frozen=True)
class RegressionSettings:
    """FineWeb-Edu's; `max_tokens` less where the encoder has fewer positions.

    batch : texts a step; None is 256, or less (at least 16) so that an epoch has 64 steps
    """

    max_tokens: int = 512
    epochs: int = 20
    batch: int | None = None
    learning_rate: float = 3e-4
    seed: int = 0


DEFAULTS = RegressionSettings()


def train_regression(
    examples: Sequence[Annotated],
    encoder: str,
    out: Path | str,
    settings: RegressionSettings = DEFAULTS,
    *,
    positive_from: float | None = None,
    unsafe_weights: bool = False,
) -> dict[str, Any]:
    """Train the head, write `out` (a sequence-classification folder of transformers) and return its record.

    encoder : folder or hub id of an encoder of transformers
    Labels from 0 to 1 are learnt as they are, and so are grades. Embeddings are kept beside `out` until it is
    whole. Raises DataError for encoders that cannot be loaded and tables that are too small.
    """
    split = split_annotated(examples, settings.seed)
    positive_from = positive_label(examples, positive_from)
    cache = Path(out).with_name(f".{Path(out).name}.embeddings")
    identity = hash_value(model_fingerprint(encoder))
    with one_thread():
        tokenizer, model = load_frozen(encoder, settings.seed, unsafe_weights=unsafe_weights)
        positions = getattr(model.config, "max_position_embeddings", None) or settings.max_tokens
        tokens = min(settings.max_tokens, positions - _reserved(model))
        check_head(tokenizer, model, [e.text for e in split.train[:4]], tokens, encoder)
        vectors = {
            name: features(tokenizer, model, [e.text for e in part], tokens, cache, identity)
            for name, part in vars(split).items()
        }
        with Head(model) as head:
            epoch = _train(head, vectors, split.train, split.validation, positive_from, settings)
            with torch.inference_mode():
                scores = [head(vectors[name]).double().numpy() for name in ("validation", "held_out")]
        labels = [e.label for e in examples]
        bounded = min(labels) >= 0 and max(labels) <= 1
        with replacing_folder(out) as folder:
            tokenizer.model_max_length = tokens
            with quiet_loading():
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            record = write_record(
                folder,
                kind="regression",
                examples=examples,
                split=split,
                positive_from=positive_from,
                settings=RegressionSettings(**{**vars(settings), "max_tokens": tokens}),
                scores=(scores[0], scores[1]),
                probabilities=np.clip(scores[1], 0, 1) if bounded else None,
                packages=("torch", "transformers"),
                extra={"best_epoch": epoch, "encoder": model_fingerprint(encoder)},
            )
    shutil.rmtree(cache, ignore_errors=True)
    return record


def _reserved(model: Any) -> int:
    """Positions that no token takes: RoBERTa counts from the padding token's id + 1."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def _train(
    head: Head,
    vectors: dict[str, torch.Tensor],
    train: Sequence[Annotated],
    validation: Sequence[Annotated],
    positive_from: float,
    settings: RegressionSettings,
) -> int:
    """AdamW on squared error; the head ends as it was after the epoch with the best validation F1, whose number
    (from 1) is returned."""
    labels = torch.tensor([e.label for e in train], dtype=torch.float32)
    truth = np.array([e.label for e in validation])
    batch = settings.batch or max(16, min(256, len(train) // 64))
    steps = settings.epochs * -(-len(train) // batch)
    head.begin_at(float(labels.mean()))
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    best: tuple[float, int, list[torch.Tensor]] = (-1.0, 0, [])
    with progress("training the head", total=settings.epochs, unit="epochs") as task:
        for epoch in range(1, settings.epochs + 1):
            order = random.Random(f"{settings.seed} {epoch}").sample(range(len(train)), len(train))
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                (head(vectors["train"][rows]) - labels[rows]).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
            with torch.inference_mode():
                said = head(vectors["validation"]).double().numpy()
            quality = _quality(said, truth, positive_from)
            if quality > best[0]:
                best = (quality, epoch, [copy.deepcopy(p.data) for p in head.parameters()])
            task.advance(1)
    for parameter, value in zip(head.parameters(), best[2], strict=True):
        parameter.data.copy_(value)
    return best[1]


def _quality(said: np.ndarray, truth: np.ndarray, positive_from: float) -> float:
    """F1 of the better side at the best threshold, less the mean squared error where that is equal."""
    positive = truth >= positive_from
    kept = said >= best_threshold(said, positive)
    f1 = [
        2 * float((k & p).sum()) / max(1.0, float(k.sum() + p.sum()))
        for k, p in ((kept, positive), (~kept, ~positive))
    ]
    return float(np.mean(f1)) - 1e-6 * float(np.square(said - truth).mean())
