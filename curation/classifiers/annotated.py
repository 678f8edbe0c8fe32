"""Annotated texts: read from a table or distilled from a judge, and split so that equal texts stay together."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curation.atomic import hash_value
from curation.documents import Document
from curation.errors import DataError
from curation.readers import read_file
from curation.records import ReadCounts

SHARES = {"train": 0.8, "validation": 0.1, "held_out": 0.1}
LEAST_EXAMPLES = 30


@dataclass(frozen=True)
class Annotated:
    """A text with its label: 0 or 1, a probability between them, or a grade such as 0 to 5.

    group : texts of one group stay on one side of the split: the origin, or else the text itself but for case
            and white space
    """

    id: str
    text: str
    label: float
    group: str


@dataclass(frozen=True)
class Split:
    """Three disjoint parts: `train` for the weights, `validation` for choices, `held_out` for the report."""

    train: list[Annotated]
    validation: list[Annotated]
    held_out: list[Annotated]


def read_annotated(
    paths: Iterable[Path | str], *, text_column: str = "text", label_column: str = "label"
) -> list[Annotated]:
    """Read annotated texts from .jsonl(.gz, .zst) or .parquet files; labels are numbers or truth values.

    Raises DataError when a label is no number, too many records are broken, or no record has a label; records
    whose label is null are left out.
    """
    examples: list[Annotated] = []
    for path in paths:
        counts = ReadCounts()
        for document in counts.documents(read_file(path, text_field=text_column)):
            label = _label((document.meta or {}).get(label_column), label_column, document.id, str(path))
            if label is not None:
                examples.append(_annotated(document, label))
        counts.check(str(path), 0.01, option="--text-column (text_column=)")
    if not examples:
        raise DataError(
            f"No record has a label in the column `{label_column}`",
            where=", ".join(map(str, paths)),
            remedy="Name the column with --label-column; labels are numbers, such as 0 and 1, or 0 to 5",
        )
    return examples


def distilled(
    documents: Iterable[Document], scores: pl.DataFrame, column: str = "p1_calibrated"
) -> list[Annotated]:
    """The documents with a judge's score as their label; those that the table lacks are left out.

    scores : `id` and `column`, as `score_source` returns it; Ask-LLM's calibrated P("1") unless said otherwise
    """
    if column not in scores.columns or "id" not in scores.columns:
        raise DataError(
            f"The score table has no columns `id` and `{column}` but {', '.join(scores.columns)}",
            remedy="Name the column that holds the scores",
        )
    label = dict(zip(scores["id"].to_list(), scores[column].to_list(), strict=True))
    found = [_annotated(d, float(label[d.id])) for d in documents if label.get(d.id) is not None]
    if not found:
        raise DataError(
            "The score table has none of the documents",
            remedy="Score these very files: ids must be the same",
        )
    return found


def split_annotated(examples: Sequence[Annotated], seed: int) -> Split:
    """80, 10 and 10 % of the groups by the hash of their names; the order of `examples` is irrelevant.

    Of equal ids the first counts. Raises DataError when a part is empty, or there are fewer than
    `LEAST_EXAMPLES`.
    """
    parts: dict[str, list[tuple[int, Annotated]]] = {name: [] for name in SHARES}
    for example in {e.id: e for e in reversed(examples)}.values():
        point = _digest(f"classifier\0{seed}\0{example.group}") / 2**64
        part = "train" if point < 0.8 else "validation" if point < 0.9 else "held_out"
        # A table sorted by its labels would train on one class after the other.
        parts[part].append((_digest(f"order\0{seed}\0{example.id}"), example))
    ordered = {
        name: [e for _, e in sorted(part, key=lambda p: (p[0], p[1].id))] for name, part in parts.items()
    }
    total = sum(map(len, ordered.values()))
    if total < LEAST_EXAMPLES or not all(ordered.values()):
        sizes = ", ".join(f"{name} {len(part)}" for name, part in ordered.items())
        raise DataError(
            f"{total} annotated texts are too few to train a classifier and to measure it ({sizes})",
            remedy=f"Annotate more; below some hundred the report says little, below {LEAST_EXAMPLES} nothing",
        )
    return Split(**ordered)


def table_facts(examples: Sequence[Annotated]) -> dict[str, Any]:
    """What `classifier.json` says of the table: its hash, size and labels; equal for any order of the rows."""
    labels = [e.label for e in examples]
    counts = Counter(round(label, 1) for label in labels)
    return {
        "sha256": hash_value(sorted(hash_value([e.id, e.text, e.label]) for e in examples)),
        "examples": len(examples),
        "labels": {f"{label:g}": counts[label] for label in sorted(counts)},
        "mean_label": round(math.fsum(labels) / len(labels), 6),
    }


def positive_label(examples: Sequence[Annotated], positive_from: float | None) -> float:
    """The label from which on a text counts as good: as given, else 0.5 for labels up to 1, else 3.

    3 is FineWeb-Edu's; grades whose highest is 3 or less are split in the middle of their range.
    """
    labels = [e.label for e in examples]
    low, high = min(labels), max(labels)
    if positive_from is None:
        positive_from = 0.5 if low >= 0 and high <= 1 else 3.0 if low < 3 < high else (low + high) / 2
    if low >= positive_from or high < positive_from:
        raise DataError(
            f"All labels are on one side of {positive_from:g}: they go from {low:g} to {high:g}",
            remedy="Annotate good and bad texts, or choose another --positive-from",
        )
    return positive_from


def _annotated(document: Document, label: float) -> Annotated:
    origin = (document.meta or {}).get("origin")
    normal = " ".join(document.text.split()).casefold()
    group = origin if isinstance(origin, str) and origin else hash_value(normal)
    return Annotated(document.id, document.text, label, group)


def _label(value: Any, column: str, name: str, path: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise DataError(
        f"The label of the record {name} is {value!r:.60}, not a number",
        where=f"{path}, column {column}",
        remedy="Write 0 and 1 for bad and good, or grades such as 0 to 5",
    )


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
