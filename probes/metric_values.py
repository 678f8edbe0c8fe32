"""Metrics of a task from the records of its questions, as quotients of sums, so that any part can be scored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from probes.choice_scores import NORMALIZATIONS

CONTINUOUS = ("correct_prob", "norm_correct_prob", "margin")
LOWER_IS_BETTER = ("bits_per_byte", "truncated", "no_answer")
NEITHER_IS_BETTER = ("mean_tokens",)


def rows_by_question(records: pa.Table, form: str) -> dict[str, dict[str, Any]]:
    """The record of each question in one form; the samples of a generation task are averaged."""
    if form != "generation":
        return {row["id"]: row for row in records.to_pylist() if row["form"] == form}
    samples: dict[str, list[dict[str, Any]]] = {}
    columns = [
        name for name in ("id", "correct", "truncated", "answer", "tokens") if name in records.schema.names
    ]
    for row in records.select(columns).to_pylist():
        samples.setdefault(row["id"], []).append(row)
    return {
        name: {
            "accuracy": _mean([row["correct"] for row in rows]),
            "truncated": _mean([row["truncated"] for row in rows]),
            "no_answer": _mean([row["answer"] is None for row in rows]),
            "mean_tokens": _mean([row["tokens"] for row in rows]),
        }
        for name, rows in samples.items()
    }


def metric_values(rows: list[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By metric: numerators and denominators [questions], whose sums' quotient is the metric."""
    if "bytes" in rows[0]:
        size = np.array([row["bytes"] for row in rows], dtype=np.float64)
        return {"bits_per_byte": (np.array([row["nats"] for row in rows]) / math.log(2), size)}
    one = np.ones(len(rows))
    if "accuracy" in rows[0]:
        return {name: (np.array([row[name] for row in rows]), one) for name in rows[0]}
    right = {
        f"accuracy_{n}": np.array([row[f"picked_{n}"] == row["gold"] for row in rows], dtype=np.float64)
        for n in NORMALIZATIONS
    }
    smooth = {n: np.array([row[n] for row in rows]) for n in CONTINUOUS}
    return {name: (values, one) for name, values in (right | smooth).items()}


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
