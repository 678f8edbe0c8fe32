"""Filling the places that duplicates left: the next-ranked documents of the domain cut that duplicate nothing
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from curation.semantic_duplicates import find_duplicates

# Embedding a few more than are missing at once costs little; most of them are no duplicates.
AT_ONCE = 2


class KeptVectors:
    """Embeddings, float32 [n, dim], of all documents kept so far, in every source."""

    def __init__(self, vectors: np.ndarray, threshold: float) -> None:
        self.vectors, self.threshold = vectors, threshold

    def accept(self, candidates: np.ndarray, limit: int) -> list[int]:
        """The first `limit` rows of `candidates`, in order, that duplicate neither a kept row nor each
        other.
        """
        stacked = np.concatenate((self.vectors, candidates)) if len(self.vectors) else candidates
        first = len(stacked) - len(candidates)
        # Rows kept so far are no duplicates of each other, so whatever is found is a candidate.
        found = {row for row, _, _ in find_duplicates(stacked, self.threshold)}
        accepted = [row for row in range(len(candidates)) if first + row not in found][:limit]
        self.vectors = np.concatenate((stacked[:first], candidates[accepted]))
        return accepted


def top_up(
    ranked: pl.DataFrame,
    missing: int,
    texts: Callable[[Sequence[str]], list[str]],
    embed: Callable[[Sequence[str]], np.ndarray],
    kept: KeptVectors,
) -> pl.DataFrame:
    """The first `missing` rows of `ranked` (fewer, if it ends) that duplicate nothing kept; `kept` grows by
    them.

    ranked : rows that fell at the domain cut, best first
    texts  : of given ids
    """
    chosen: list[str] = []
    ids = ranked["id"].to_list()
    start = 0
    while len(chosen) < missing and start < len(ids):
        batch = ids[start : start + AT_ONCE * (missing - len(chosen))]
        start += len(batch)
        vectors = embed(texts(batch))
        chosen += [batch[row] for row in kept.accept(vectors, missing - len(chosen))]
    return ranked.filter(pl.col("id").is_in(chosen))
