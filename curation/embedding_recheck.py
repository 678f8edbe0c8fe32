"""Embeddings of a bfloat16 or int8 pass that deduplicate as those of float32 would.

A threshold can be crossed only by pairs near it, and only documents with a near neighbour matter at all: those are
embedded again in float32, and everything about them (who falls, for whom, at which cosine) is float32's. How near is
near is measured: the largest difference between the cosines of both formats, over all pairs of a random sample and of
everything embedded twice, times `SAFETY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curation.embedding import embed, resolve_embedding
from curation.precision import Precision
from curation.semantic_duplicates import rows_near_others

SAMPLE = 64
SAFETY = 3.0
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class EmbeddingRecheck:
    """What was measured: `largest` difference of a cosine, over all pairs of the `rechecked` documents."""

    documents: int
    sample: int
    rechecked: int
    largest: float
    band: float
    first: str = "bfloat16"

    def sentence(self) -> str:
        """What a report says about it."""
        return (
            f"{self.documents} documents were embedded in {self.first}, and {self.rechecked} of them in float32 too: a "
            f"random sample of {self.sample} and every document with a neighbour within {self.band:.2g} of the "
            f"threshold, {SAFETY:g} times the largest difference of a cosine ({self.largest:.2g})."
        )


def embed_near(
    texts: Sequence[str],
    model: Path | str,
    threshold: float,
    *,
    precision: Precision | Literal["int8"] = "auto",
    device: str = "cpu",
    sample: int = SAMPLE,
    safety: float = SAFETY,
    search: dict[str, Any] | None = None,
) -> tuple[np.ndarray, EmbeddingRecheck | None]:
    """Embeddings [n, dim] of `texts` for a deduplication at `threshold`; None when all of them are float32.

    search : `exact_documents`, `probes` and `workers` of `semantic_duplicates`
    """
    resolved = resolve_embedding(precision, device)
    if resolved == "float32":
        return embed(texts, model, device=device), None
    first = embed(texts, model, device=device, precision=resolved)
    exact, chosen = first.copy(), np.zeros(len(texts), dtype=bool)
    new = np.zeros(len(texts), dtype=bool)
    new[np.random.default_rng(0).permutation(len(texts))[:sample]] = True
    largest = 0.0
    while new.any():
        exact[new] = embed([texts[i] for i in np.flatnonzero(new).tolist()], model, device=device)
        chosen |= new
        largest = max(largest, largest_difference(first[chosen], exact[chosen]))
        new = rows_near_others(first, threshold - safety * largest, **(search or {})) & ~chosen
    report = EmbeddingRecheck(
        len(texts), min(sample, len(texts)), int(chosen.sum()), largest, safety * largest, resolved
    )
    return exact, report


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Largest |x_i . x_j - y_i . y_j| over all pairs of rows."""
    largest = 0.0
    for start in range(0, len(first), _ROWS_AT_ONCE):
        for other in range(start, len(first), _ROWS_AT_ONCE):
            rows, columns = slice(start, start + _ROWS_AT_ONCE), slice(other, other + _ROWS_AT_ONCE)
            difference = first[rows] @ first[columns].T - second[rows] @ second[columns].T
            largest = max(largest, float(np.abs(difference).max()))
    return largest
