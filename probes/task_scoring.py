"""Scoring the questions of one task with one model: a record for each question, and the metrics over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from curation.documents import Document
from curation.errors import DataError, RecipeError
from probes.choice_scores import ChoiceScores, score_choice, summarize_choices
from probes.continuations import Continuation, encode_pairs, score_continuations
from probes.intervals import bootstrap_bits_per_byte, nats_per_token
from probes.likelihood import score_documents, tokenize_documents
from probes.task_record import Item, Task
from training.checkpoint import STATE
from training.distributed import choose_device
from training.grpo_update import autocast
from training.huggingface import read_generation
from training.model import Decoder
from training.start import load_start, start_tokenizer
from training.text_encoding import Encode, text_encoder

PRECISIONS = ("float32", "bfloat16")
ITEMS_AT_ONCE = 256
Scored = tuple[pa.Table, dict[str, dict[str, float]], dict[str, int]]

CHOICE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("form", pa.string(), nullable=False),
        pa.field("gold", pa.int64(), nullable=False),
        pa.field("nats", pa.list_(pa.float64()), nullable=False),
        pa.field("unconditional_nats", pa.list_(pa.float64()), nullable=False),
        pa.field("tokens", pa.list_(pa.int64()), nullable=False),
        pa.field("characters", pa.list_(pa.int64()), nullable=False),
        pa.field("dropped", pa.int64(), nullable=False),
        *(pa.field(f"picked_{n}", pa.int64()) for n in ("none", "per_token", "per_char", "per_byte", "pmi")),
        *(pa.field(n, pa.float64()) for n in ("correct_prob", "total_prob", "norm_correct_prob", "margin")),
    ]
)
"""A row a question and form; lists have an entry a choice. `dropped`: most context tokens cut for a choice."""

TEXT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("form", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("nats", pa.float64(), nullable=False),
        pa.field("dropped", pa.int64(), nullable=False),
    ]
)
"""A row a gold answer or text: `tokens` scored, `bytes` of their UTF-8 (with the space before an answer), `nats`."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to score: the decoder, its tokenizer, the token before a text, and how it is fed."""

    model: Decoder
    tokenizer: Any
    encode: Encode
    prefix: int
    context: int
    bos: bool
    batch_tokens: int
    precision: str = "float32"
    end_ids: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        context: int | None = None,
        bos: bool = True,
        batch_tokens: int = 8192,
        tokenizer_folder: Path | None = None,
        device: str = "auto",
        precision: str = "float32",
    ) -> Loaded:
        """Load a Hugging Face folder or a checkpoint. DataError without weights, tokenizer, or bos and eos tokens.

        device : "auto", or one of torch's: "cpu", "cuda", "mps", "cuda:1"
        """
        if precision not in PRECISIONS:
            raise RecipeError(
                f"There is no precision {precision!r}",
                where="precision",
                remedy=f"Choose {' or '.join(PRECISIONS)}",
            )
        place = named_device(device)
        try:
            tokenizer = start_tokenizer(folder, tokenizer_folder)
        except DataError as error:
            if tokenizer_folder is not None or not (folder / STATE).exists():
                raise
            raise DataError(
                "A checkpoint has no tokenizer of its own",
                where=str(folder),
                remedy="Give the folder of the one that it was trained with (--tokenizer)",
            ) from error
        prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if prefix is None:
            raise DataError(
                "The tokenizer has neither a bos nor an eos token, so the first token has no context",
                where=str(folder),
                remedy="Set `bos_token` in its tokenizer_config.json",
            )
        model = load_start(folder).to(place).requires_grad_(False)
        if len(tokenizer) > model.config.vocab_size:
            raise DataError(
                f"The tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}",
                where=str(folder),
                remedy="Give the tokenizer that the model was trained with",
            )
        most = model.config.max_positions
        if context is not None and not 1 <= context <= most:
            raise RecipeError(
                f"A context of {context} tokens is not possible: the model has {most} positions",
                where="context",
                remedy=f"Choose 1 to {most}",
            )
        encode = text_encoder(tokenizer)
        eos = read_generation(folder).get("eos_token_id", [])
        ends = tuple(eos) if isinstance(eos, list) else (eos,)
        return cls(model, tokenizer, encode, int(prefix), context or most, bos, batch_tokens, precision, ends)

    def nats(self, pairs: Sequence[Continuation]) -> np.ndarray:
        """Nats [pairs] of continuations."""
        with autocast(self.precision, self.model)():
            return score_continuations(
                self.model, pairs, context=self.context, batch_tokens=self.batch_tokens
            )

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokenized (context, continuation) pairs."""
        return encode_pairs(self.encode, texts, self.prefix, self.bos)


def named_device(device: str) -> torch.device:
    """The device of that name; RecipeError when this machine does not have it."""
    try:
        place = choose_device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise RecipeError(
            f"This machine has no device {device!r}: {str(error).splitlines()[0]}",
            where="device",
            remedy="Choose auto, cpu, cuda or mps",
        ) from error
    return place


def score_task(
    task: Task, form: str, items: Sequence[Item], loaded: Loaded, advance: Callable[[int], None]
) -> Scored:
    """Records, metrics and counts of the items of a task in one form; `advance` is told of questions done."""
    if task.scoring == "choice":
        return _score_choices(form, items, loaded, advance)
    if task.scoring == "gold_bpb":
        return _score_gold(form, items, loaded, advance)
    return _score_texts(form, items, loaded, advance)


def _score_choices(
    form: str, items: Sequence[Item], loaded: Loaded, advance: Callable[[int], None]
) -> Scored:
    rows: list[dict[str, Any]] = []
    scores: list[ChoiceScores] = []
    for part in _parts(items):
        asked = [pair for item in part for pair in _asked(item)]
        free = [(item.unconditional, choice) for item in part for choice in item.choices]
        pairs = loaded.pairs([*asked, *free])
        nats = loaded.nats(pairs)
        at = 0
        for item in part:
            here, there = (
                slice(at, at + len(item.choices)),
                slice(len(asked) + at, len(asked) + at + len(item.choices)),
            )
            at = here.stop
            tokens = [pair.tokens for pair in pairs[here]]
            gold = item.gold_choice or 0
            score = score_choice(nats[here], tokens, item.choice_texts, nats[there], gold)  # type: ignore[arg-type]
            scores.append(score)
            rows.append(
                {
                    "id": item.id,
                    "form": form,
                    "gold": gold,
                    "nats": nats[here].tolist(),
                    "unconditional_nats": nats[there].tolist(),
                    "tokens": tokens,
                    "characters": [len(text) for text in item.choice_texts],
                    "dropped": max(pair.dropped(loaded.context) for pair in pairs[here]),
                    **{f"picked_{name}": picked for name, picked in score.picked.items()},
                    **{
                        n: getattr(score, n)
                        for n in ("correct_prob", "total_prob", "norm_correct_prob", "margin")
                    },
                }
            )
        advance(len(part))
    table = pa.Table.from_pylist(rows, schema=CHOICE_SCHEMA)
    return table, summarize_choices(scores), _counts(rows)


def _asked(item: Item) -> list[tuple[str, str]]:
    contexts = item.contexts or (item.prompt,) * len(item.choices)
    return list(zip(contexts, item.choices, strict=True))


def _score_gold(form: str, items: Sequence[Item], loaded: Loaded, advance: Callable[[int], None]) -> Scored:
    rows: list[dict[str, Any]] = []
    for part in _parts(items):
        pairs = loaded.pairs([(item.prompt, item.gold) for item in part])
        for item, pair, nats in zip(part, pairs, loaded.nats(pairs), strict=True):
            rows.append(
                {
                    "id": item.id,
                    "form": form,
                    "tokens": pair.tokens,
                    "bytes": len(_scored_text(item).encode()),
                    "nats": float(nats),
                    "dropped": pair.dropped(loaded.context),
                }
            )
        advance(len(part))
    return _text_result(rows)


def _scored_text(item: Item) -> str:
    """The gold answer with the spaces that end its prompt: `encode_pairs` scores them with it."""
    return item.prompt[len(item.prompt.rstrip()) :] + item.gold


def _score_texts(form: str, items: Sequence[Item], loaded: Loaded, advance: Callable[[int], None]) -> Scored:
    rows: list[dict[str, Any]] = []
    stride = max(1, loaded.context // 2)
    for part in _parts(items):
        documents = tokenize_documents(
            [Document(id=item.id, text=item.text, source=form) for item in part], loaded.tokenizer
        )
        with autocast(loaded.precision, loaded.model)():
            table = score_documents(
                loaded.model,
                documents,
                context=loaded.context,
                stride=stride,
                batch_tokens=loaded.batch_tokens,
            )
        rows += [
            {
                "id": r["id"],
                "form": form,
                "tokens": r["tokens"],
                "bytes": r["bytes"],
                "nats": r["nats"],
                "dropped": 0,
            }
            for r in table.to_pylist()
        ]
        advance(len(part))
    return _text_result(rows)


def _text_result(rows: list[dict[str, Any]]) -> Scored:
    table = pa.Table.from_pylist(rows, schema=TEXT_SCHEMA)
    bits = bootstrap_bits_per_byte(table, level=0.95)
    metrics = {
        "bits_per_byte": {"value": bits.value, "low": bits.low, "high": bits.high},
        "nats_per_token": {"value": nats_per_token(table)},
    }
    return table, metrics, _counts(rows)


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {"items": len(rows), "items_with_dropped_context": sum(row["dropped"] > 0 for row in rows)}


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Items some at a time: bounds memory, and lets the progress move."""
    for start in range(0, len(items), ITEMS_AT_ONCE):
        yield items[start : start + ITEMS_AT_ONCE]
