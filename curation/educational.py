"""The educational score: the FineWeb-Edu classifier, or any regression classifier of that shape.

`HuggingFaceFW/fineweb-edu-classifier` is a BertForSequenceClassification with one output that was trained on
0 to 5 points of an additive rubric for grade-school material. We keep its raw output; Hugging Face's own script
runs in bfloat16, whose spacing at 4 is 1/32, and so moves documents across a threshold of 4. A pass of ours in
bfloat16 or int8 is a first look: `recheck.decide` scores what lies near a cut again in float32, and verdicts are
float32's.

Rules, applied to the score table afterwards:
    raw > X           the raw score is above X. `raw > 4` is the default: the paper's "scores above 4", read
                      literally.
    int_score >= K    int(round(clip(score, 0, 5))) >= K with Python's rounding of halves to even, as the
                      published `int_score`; `int_score >= 4` passes every raw score from 3.5 on, because 3.5
                      rounds to 4.
    top X             the best ceil(X n) of the source. For code, proofs and tables, which an English rubric
                      for school pages rarely passes, and for classifiers whose scale is not FineWeb-Edu's.
    all               no educational filter for this source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import polars as pl
import regex
import torch

from curation.batches import (
    check_vocabulary,
    check_weights,
    head_tokens,
    length_sorted_batches,
    one_thread,
    padded,
    quiet_loading,
)
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.int8 import fast_int8, to_int8
from curation.memory import keep_freed_memory
from curation.packed_encoder import ROUNDING
from curation.precision import Precision, resolve_precision, to_bfloat16
from curation.score_tables import model_fingerprint, top_share

DEFAULT_RULE = "raw > 4"
FEW = 0.01

_FORMS = regex.compile(r"(?P<all>all)|(?P<kind>raw\s*>|int_score\s*>=|top)\s*(?P<value>-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class EducationalRule:
    """Which scores pass; see the module's text. `value` is the threshold, or the share for `top`."""

    kind: Literal["raw", "int_score", "top", "all"]
    value: float

    def __str__(self) -> str:
        operator = {"raw": "raw >", "int_score": "int_score >=", "top": "top"}.get(self.kind)
        return "all" if operator is None else f"{operator} {self.value:g}"


def parse_rule(text: str) -> EducationalRule:
    """Read a rule as the recipe writes it; RecipeError if it is none of the four forms.

    >>> parse_rule("int_score >= 4")
    EducationalRule(kind='int_score', value=4.0)
    """
    match = _FORMS.fullmatch(text.strip())
    if match is None:
        raise RecipeError(
            f"`{text}` is not an educational rule",
            remedy="Write `raw > 4`, `int_score >= 4`, `top 0.1` (the best tenth of the source) or `all`",
        )
    if match["all"]:
        return EducationalRule("all", 0.0)
    value = float(match["value"])
    if match["kind"].startswith("top"):
        if not 0 < value <= 1:
            raise RecipeError(
                f"`{text}` keeps no share of the source", remedy="Give a share such as `top 0.1`"
            )
        return EducationalRule("top", value)
    return EducationalRule("raw" if match["kind"].startswith("raw") else "int_score", value)


def int_score(scores: np.ndarray) -> np.ndarray:
    """The published integer score: clipped to 0..5, halves to even (2.5 is 2, 3.5 and 4.5 are 4). Shape
    kept.
    """
    return np.rint(np.clip(scores, 0, 5)).astype(np.int64)


def passing(scores: pl.DataFrame, rule: EducationalRule) -> pl.DataFrame:
    """The rows of one source's table (`id, educational_score`) that pass `rule`, sorted by id."""
    column = scores["educational_score"].to_numpy()
    if rule.kind == "raw":
        return scores.filter(pl.Series(column > rule.value)).sort("id")
    if rule.kind == "int_score":
        return scores.filter(pl.Series(int_score(column) >= rule.value)).sort("id")
    if rule.kind == "top" and scores.height:
        return top_share(scores, "educational_score", rule.value).sort("id")
    return scores.sort("id")


def few_passed(source: str, passed: int, read: int, rule: EducationalRule) -> str | None:
    """A sentence for the user when under 1 % of a source passes, else None."""
    if not read or passed >= FEW * read:
        return None
    return (
        f"Only {passed} of the {read} documents of {source} pass the educational rule `{rule}`. The rubric "
        f"is for English school pages; code, proofs and tables rarely pass it. Give {source} a rule of its "
        f"own, such as `top 0.1` or `all`."
    )


@dataclass(frozen=True)
class EducationalClassifier:
    """The scorer (see score_tables.Scorer) of an educational classifier; column `educational_score`.

    model        : folder or hub id of an AutoModelForSequenceClassification with one label
    max_tokens   : only the head of a document is seen, as published: 512 tokens or what the model can take
    batch_tokens : padded tokens per forward pass; a CPU is fastest where these fit its cache, a GPU wants more
    reuse        : name of a `meta` field that already holds the score (FineWeb-Edu's `score`); such documents
                   are not scored again
    device       : where torch computes
    unsafe_weights : also load pickled weights, which can run code of whoever made them
    precision    : float32, bfloat16, `auto` (bfloat16 where the processor has instructions for it), or int8: linear
                   layers in 8 bits where the processor has instructions for that (see `int8`), else as `auto`. The
                   table of such a pass has a second column, `educational_bits`: 8 or 16, or 32 for scores that
                   were reused. Decide on such a table with `recheck.decide` only
    """

    model: str
    max_tokens: int = 512
    batch_tokens: int = 2048
    reuse: str | None = None
    device: str = "cpu"
    unsafe_weights: bool = False
    precision: Precision | Literal["int8"] = "float32"
    name: str = "educational"

    @property
    def resolved(self) -> Literal["float32", "bfloat16", "int8"]:
        """The format that `precision` means on this machine."""
        if self.precision != "int8":
            return resolve_precision(self.precision, self.device)
        return "int8" if fast_int8(self.device) else resolve_precision("auto", self.device)

    @property
    def bits(self) -> int:
        """Width of the model's numbers on this machine: 8, 16 or 32."""
        return {"int8": 8, "bfloat16": 16, "float32": 32}[self.resolved]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("educational_score",) if self.bits == 32 else ("educational_score", "educational_bits")

    def in_float32(self) -> EducationalClassifier:
        """The same classifier in float32, whose table stands beside this one's."""
        return replace(self, precision="float32", name=f"{self.name}_float32")

    def fingerprint(self) -> dict[str, Any]:
        """Model, truncation and reuse; the batch size and device only move last bits, but are settings
        too.
        """
        settings: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "batch_tokens": self.batch_tokens,
            "device": self.device,
        }
        if self.bits < 32:
            settings["rounding"] = ROUNDING
        return {
            "model": model_fingerprint(self.model),
            "precision": self.resolved,
            "reuse": self.reuse,
            **settings,
        }

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """Raw outputs, float32 [n], and the bits that they were computed with where those are not always 32."""
        scores = np.full(len(documents), np.nan, dtype=np.float32)
        for index, document in enumerate(documents):
            value = (document.meta or {}).get(self.reuse) if self.reuse else None
            if isinstance(value, int | float) and math.isfinite(value):
                scores[index] = value
        todo = np.flatnonzero(np.isnan(scores))
        if len(todo):
            with one_thread(), torch.inference_mode():
                scores[todo] = self._classify([documents[int(i)].text for i in todo])
        if self.bits == 32:
            return {"educational_score": scores}
        bits = np.full(len(documents), 32, dtype=np.float32)
        bits[todo] = self.bits
        return {"educational_score": scores, "educational_bits": bits}

    def _classify(self, texts: list[str]) -> np.ndarray:
        stamp = str(model_fingerprint(self.model))
        tokenizer, model = _load(self.model, self.device, self.unsafe_weights, self.bits, stamp)
        positions = getattr(model.config, "max_position_embeddings", None) or self.max_tokens
        rows = head_tokens(tokenizer, texts, min(self.max_tokens, positions), special=True)
        rows = [row or [tokenizer.pad_token_id] for row in rows]
        scores = np.empty(len(texts), dtype=np.float32)
        for batch in length_sorted_batches([len(row) for row in rows], self.batch_tokens):
            ids, mask = padded([rows[i] for i in batch], tokenizer.pad_token_id, "right")
            logits = model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
            scores[batch] = logits.squeeze(-1).float().cpu().numpy()
        return scores


@lru_cache(maxsize=3)
def _load(folder: str, device: str, unsafe_weights: bool, bits: int, stamp: str) -> tuple[Any, Any]:
    """Tokenizer and model, once per process, precision and state of the folder (`stamp`)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            weights = None if unsafe_weights else True
            both: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=weights, output_loading_info=True
            )
            model, loaded = both
    except (OSError, ValueError) as error:
        raise DataError(
            f"The educational classifier cannot be loaded: {str(error).splitlines()[0].rstrip('.')}",
            where=folder,
            remedy="Give a sequence classifier with safetensors weights and its tokenizer",
        ) from error
    check_vocabulary(tokenizer, folder)
    whole = "Give a whole sequence classifier, not an encoder alone"
    check_weights(loaded["missing_keys"], folder, "classifier", whole)
    if model.config.num_labels != 1:
        raise DataError(
            f"An educational classifier has one output, but this model has {model.config.num_labels}",
            where=folder,
            remedy="Give a regression classifier such as HuggingFaceFW/fineweb-edu-classifier",
        )
    if tokenizer.pad_token_id is None:
        raise DataError(
            "The tokenizer has no padding token", where=folder, remedy="Set one and save it again"
        )
    model = model.to(device).eval()
    if device == "cpu":
        keep_freed_memory()
    narrowed = {8: to_int8, 16: to_bfloat16}
    return tokenizer, narrowed[bits](model) if bits in narrowed else model
