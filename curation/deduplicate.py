"""Semantic deduplication: of documents that say the same, within and across corpora, the first in keep-order
stays.

Two rules over cosines of embeddings:
    greedy   a document is dropped when its cosine to a document that was KEPT before it is above the
             threshold
    semdedup a document is dropped when its cosine to ANY document before it is above the threshold (Abbas et
             al. 2023, arXiv 2303.09540, with threshold 1 - eps): also when that one was itself dropped, so a
             chain of
             near neighbours loses all but its first

Up to `exact_limit` documents all pairs are compared; beyond it, only pairs inside a cluster of faiss's
spherical k-means, as in SemDeDup, which misses pairs across the borders of clusters. Products are computed in
blocks in float32; a pair within 1e-4 of the threshold is computed again in float64, so the verdicts do not
depend on the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from curation.errors import DataError, RecipeError

Rule = Literal["greedy", "semdedup"]
EXACT_LIMIT = 200_000
BLOCK = 1024
STRIPE = 8192
# Float32 sums of some hundred products are off by less than this.
BAND = 1e-4


@dataclass(frozen=True)
class Duplicate:
    """Row `dropped` says what row `kept_instead` says; `cosine` is theirs.

    With the rule `semdedup`, `kept_instead` is the kept document at the end of the chain of nearest
    neighbours, and
    `cosine` may be below the threshold: the price of that rule, made visible.
    """

    dropped: int
    kept_instead: int
    cosine: float


def keep_order(
    ids: Sequence[str], sources: Sequence[str], scores: Sequence[float], priority: Sequence[str]
) -> list[int]:
    """Positions sorted by (place of the source in `priority`, score descending, id); others' sources come
    last.
    """
    places = {source: place for place, source in enumerate(priority)}
    last = len(places)
    return sorted(
        range(len(ids)), key=lambda i: (places.get(sources[i], last), sources[i], -scores[i], ids[i])
    )


def find_duplicates(
    vectors: np.ndarray,
    threshold: float,
    *,
    rule: Rule = "greedy",
    exact_limit: int = EXACT_LIMIT,
    seed: int = 0,
) -> list[Duplicate]:
    """Duplicates among `vectors`, float32 [n, dim] with rows of length 1 (or 0), given in keep-order.

    Raises RecipeError for a threshold outside (0, 1], DataError for vectors that are not finite.
    """
    if not 0 < threshold <= 1:
        raise RecipeError(
            f"The deduplication threshold is {threshold}",
            remedy="Give a cosine above 0 and at most 1; 0.9 to 0.97 is usual",
        )
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise DataError("Some embeddings are not finite", remedy="Check the embedder")
    search = _greedy if rule == "greedy" else _one_shot
    if len(vectors) <= exact_limit:
        return search(vectors, threshold)
    found = []
    for members in clusters(vectors, seed):
        for pair in search(vectors[members], threshold):
            found.append(Duplicate(int(members[pair.dropped]), int(members[pair.kept_instead]), pair.cosine))
    return sorted(found, key=lambda pair: pair.dropped)


def clusters(vectors: np.ndarray, seed: int) -> list[np.ndarray]:
    """Row numbers, ascending, of each of about sqrt(n) clusters of faiss's spherical k-means (one thread,
    seeded).
    """
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        count = max(1, round(len(vectors) ** 0.5))
        means = faiss.Kmeans(
            vectors.shape[1], count, niter=20, seed=seed + 1, spherical=True, min_points_per_centroid=1
        )
        means.train(vectors)
        _, nearest = means.index.search(vectors, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    order = np.argsort(nearest[:, 0], kind="stable")
    starts = np.flatnonzero(np.diff(nearest[order, 0])) + 1
    return [part for part in np.split(order, starts) if len(part)]


def duplicates_of_kept(
    candidates: np.ndarray, kept: np.ndarray, threshold: float
) -> list[tuple[int, float] | None]:
    """For each candidate row, the most similar row of `kept` if its cosine is above the threshold, else
    None.
    """
    best: list[tuple[int, float] | None] = [None] * len(candidates)
    for first in range(0, len(candidates), BLOCK):
        block = candidates[first : first + BLOCK]
        for row, hits in enumerate(_hits(block, kept, threshold)):
            best[first + row] = _nearest(block[row], kept, hits, threshold)
    return best


def duplicates_table(
    duplicates: Sequence[Duplicate], ids: Sequence[str], order: Sequence[int] | None = None
) -> pl.DataFrame:
    """`dropped, kept_instead, cosine` with ids in place of rows; `order` maps rows to positions in `ids`."""
    position = list(order) if order is not None else list(range(len(ids)))
    rows: dict[str, list[Any]] = {
        "dropped": [ids[position[pair.dropped]] for pair in duplicates],
        "kept_instead": [ids[position[pair.kept_instead]] for pair in duplicates],
        "cosine": [pair.cosine for pair in duplicates],
    }
    schema = {"dropped": pl.String, "kept_instead": pl.String, "cosine": pl.Float32}
    return pl.DataFrame(rows, schema=schema).sort("dropped")


def _greedy(vectors: np.ndarray, threshold: float) -> list[Duplicate]:
    kept = np.empty_like(vectors)
    rows = np.empty(len(vectors), dtype=np.int64)
    size = 0
    found: list[Duplicate] = []
    for first in range(0, len(vectors), BLOCK):
        block = vectors[first : first + BLOCK]
        inside = _hits(block, block, threshold)
        fresh: set[int] = set()
        for row, hits in enumerate(_hits(block, kept[:size], threshold)):
            near = [i for i in inside[row] if i in fresh]
            best = _nearest(block[row], kept[:size], hits, threshold)
            other = _nearest(block[row], block, near, threshold)
            if best is not None and (other is None or best[1] >= other[1]):
                found.append(Duplicate(first + row, int(rows[best[0]]), best[1]))
            elif other is not None:
                found.append(Duplicate(first + row, first + other[0], other[1]))
            else:
                fresh.add(row)
        new = np.array(sorted(fresh), dtype=np.int64)
        kept[size : size + len(new)] = block[new]
        rows[size : size + len(new)] = new + first
        size += len(new)
    return found


def _one_shot(vectors: np.ndarray, threshold: float) -> list[Duplicate]:
    parent: dict[int, int] = {}
    for first in range(0, len(vectors), BLOCK):
        block = vectors[first : first + BLOCK]
        best = _maxima(block, vectors[: first + len(block)], first)
        for row, (nearest, cosine) in enumerate(best):
            if abs(cosine - threshold) <= BAND:
                earlier = vectors[: first + row]
                near = np.flatnonzero(earlier @ block[row] > threshold - 2 * BAND)
                exact = _nearest(block[row], earlier, near.tolist(), threshold)
                if exact is not None:
                    parent[first + row] = exact[0]
            elif cosine > threshold:
                parent[first + row] = nearest
    found = []
    for row, ancestor in parent.items():
        while ancestor in parent:
            ancestor = parent[ancestor]
        found.append(Duplicate(row, ancestor, _cosine(vectors[row], vectors[ancestor])))
    return found


def _hits(block: np.ndarray, others: np.ndarray, threshold: float) -> list[list[int]]:
    """For each row of `block`, the rows of `others` whose float32 cosine may be above the threshold."""
    hits: list[list[int]] = [[] for _ in range(len(block))]
    for first in range(0, len(others), STRIPE):
        products = block @ others[first : first + STRIPE].T
        for row, column in zip(*np.nonzero(products > threshold - BAND), strict=True):
            hits[row].append(first + int(column))
    return hits


def _maxima(block: np.ndarray, others: np.ndarray, offset: int) -> list[tuple[int, float]]:
    """For each row of `block` (row `offset` + i of all), the earlier row with the largest float32 cosine."""
    best = np.full(len(block), -np.inf, dtype=np.float32)
    where = np.zeros(len(block), dtype=np.int64)
    for first in range(0, len(others), STRIPE):
        products = block @ others[first : first + STRIPE].T
        columns = np.arange(first, first + products.shape[1])
        products[columns[None, :] >= (offset + np.arange(len(block)))[:, None]] = -np.inf
        top = products.argmax(axis=1)
        value = products[np.arange(len(block)), top]
        better = value > best
        best[better], where[better] = value[better], columns[top[better]]
    return [(int(index), float(value)) for index, value in zip(where, best, strict=True)]


def _nearest(
    vector: np.ndarray, others: np.ndarray, rows: Sequence[int], threshold: float
) -> tuple[int, float] | None:
    """The row with the largest float64 cosine above the threshold, the first of equals; None if there is
    none.
    """
    best: tuple[int, float] | None = None
    for row in rows:
        cosine = _cosine(vector, others[row])
        if cosine > threshold and (best is None or cosine > best[1]):
            best = (row, cosine)
    return best


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float((first.astype(np.float64) * second.astype(np.float64)).sum())
