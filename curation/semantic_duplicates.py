"""Which rows of a matrix of unit vectors duplicate an earlier one, exactly, or inside clusters beyond a size.

Two rules. `greedy` drops a row whose cosine to a *kept* earlier one reaches the threshold. `semdedup` is SemDeDup's
(Abbas et al. 2023, arXiv 2303.09540): the cosine to *any* earlier one counts, dropped or not, so a chain of
semantic duplicates loses all but its first link. SemDeDup orders a cluster by distance to its centre; here the order is
that of the rows.

Up to `EXACT_DOCUMENTS` rows every pair is compared. Beyond, two rows are compared when they have one of their
`probes` nearest clusters in common (SemDeDup: 1); what that misses is estimated and reported, see `clusters`.

Rows are taken in blocks, in order: a block is compared with the earlier rows, stripe by stripe and side by side in
`workers` threads, and then with itself, row by row. The result is the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curation.batches import one_thread
from curation.clusters import PROBES, Recall, estimate_recall, nearest_clusters
from curation.errors import DataError, RecipeError
from curation.progress import progress
from curation.similarity_search import STRIPE, TOLERANCE, RoughVectors, candidates, cosines, threads

Rule = Literal["greedy", "semdedup"]
EXACT_DOCUMENTS = 200_000
BLOCK = 1024
"""Most rows of one cluster (or of all, without clusters) that a block holds."""
BLOCK_ROWS = 16_384

Pair = tuple[int, int, float]


@dataclass(frozen=True)
class NearDuplicates:
    """`found`: (dropped, kept instead, cosine), by dropped row. `recall`: None when all pairs were compared."""

    found: list[Pair]
    recall: Recall | None


def find_duplicates(vectors: np.ndarray, threshold: float, **settings: Any) -> list[Pair]:
    """`semantic_duplicates` without the estimate of its recall.

    >>> find_duplicates(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32), 0.9)
    [(2, 0, 1.0)]
    """
    return semantic_duplicates(vectors, threshold, **settings, recall_sample=0).found


def semantic_duplicates(
    vectors: np.ndarray,
    threshold: float,
    *,
    rule: Rule = "greedy",
    exact_documents: int = EXACT_DOCUMENTS,
    probes: int = PROBES,
    workers: int = 1,
    recall_sample: int = 2000,
) -> NearDuplicates:
    """Duplicates among the rows of `vectors` [n, dim], which stand in keep-order.

    vectors   : rows of length 1, or 0 for texts in which the embedder sees nothing; those are never dropped. A
                memory-mapped file is read in pieces
    threshold : least cosine of a duplicate, in (0, 1]
    probes    : nearest clusters of a row that are searched, beyond `exact_documents`; more find more and cost more
    workers   : threads
    recall_sample : kept rows that are compared with all others to estimate what clusters missed
    """
    _check(vectors, threshold, rule, probes)
    with one_thread():
        rough = RoughVectors(vectors)
        if len(vectors) <= exact_documents:
            near = np.zeros((len(vectors), 1), dtype=np.int32)
        else:
            near = nearest_clusters(vectors, probes)
        found = _Search(rough, threshold, rule, near, workers).run()
        recall = None
        if len(vectors) > exact_documents and recall_sample:
            dropped = np.array([j for j, _, _ in found], dtype=np.int64)
            recall = estimate_recall(rough, threshold, dropped, near.shape[1], recall_sample)
    return NearDuplicates(sorted(_to_kept(found, vectors) if rule == "semdedup" else found), recall)


def rows_near_others(
    vectors: np.ndarray,
    threshold: float,
    *,
    exact_documents: int = EXACT_DOCUMENTS,
    probes: int = PROBES,
    workers: int = 1,
) -> np.ndarray:
    """Which rows may have a cosine of `threshold` or more to another one, boolean [n]; a few of them have not."""
    _check(vectors, 1.0, "greedy", probes)
    with one_thread():
        near = np.zeros((len(vectors), 1), dtype=np.int32)
        if len(vectors) > exact_documents:
            near = nearest_clusters(vectors, probes)
        return _Search(RoughVectors(vectors), threshold, "greedy", near, workers).touched()


class _Search:
    """One pass over the rows. `kept` says which rows later ones are compared with."""

    def __init__(
        self, vectors: RoughVectors, threshold: float, rule: Rule, near: np.ndarray, workers: int
    ) -> None:
        self.vectors, self.threshold, self.rule, self.workers = vectors, threshold, rule, workers
        self.kept = np.ones(len(near), dtype=bool)
        self.found: list[Pair] = []
        if rule == "semdedup":
            self._drop_copies()
        rows = np.repeat(np.arange(len(near)), near.shape[1])
        order = np.lexsort((rows, near.ravel()))
        labels = near.ravel()[order]
        self.members = np.split(rows[order], np.flatnonzero(np.diff(labels)) + 1)

    def run(self) -> list[Pair]:
        """All duplicates, with the nearest of the rows that they were compared with."""
        with threads(self.workers) as pool:
            for start, end, places, after in self._blocks("deduplicating"):
                self._block(start, end, places, after, map if pool is None else pool.map)
        return self.found

    def touched(self) -> np.ndarray:
        """Rows with a candidate, earlier or later."""
        found = np.zeros(len(self.kept), dtype=bool)
        with threads(self.workers) as pool:
            map_: Callable[..., Any] = map if pool is None else pool.map
            for _, _, places, after in self._blocks("comparing"):
                groups = [g[a:b] for g, a, b in zip(self.members, places, after, strict=True)]
                for rows, others in map_(self._seen, self._stripes(places, after)):
                    found[rows] = found[others] = True
                for rows, others in map_(self._inside, groups):
                    found[rows] = found[others] = True
        return found

    def _blocks(self, what: str) -> Iterator[tuple[int, int, np.ndarray, list[int]]]:
        """(first row, end, how many members of each cluster come before it, and before the end)."""
        rows, start = len(self.kept), 0
        places = np.zeros(len(self.members), dtype=np.int64)
        with progress(what, total=rows, unit="documents") as task:
            while start < rows:
                end = self._end(start, places)
                after = [int(np.searchsorted(group, end)) for group in self.members]
                yield start, end, places, after
                places[:] = after
                task.advance(end - start)
                start = end

    def _end(self, start: int, places: np.ndarray) -> int:
        """Where the block from `start` ends, so that no cluster has more than `BLOCK` rows in it."""
        end = min(start + BLOCK_ROWS, len(self.kept))
        for group, place in zip(self.members, places, strict=True):
            if place + BLOCK < len(group):
                end = min(end, int(group[place + BLOCK]))
        return end

    def _block(
        self, start: int, end: int, places: np.ndarray, after: list[int], map_: Callable[..., Any]
    ) -> None:
        cosine, other = np.full(end - start, -1.0), np.full(end - start, -1, dtype=np.int64)
        inside: list[tuple[np.ndarray, np.ndarray]] = []
        for rows, others, values in map_(self._against, self._stripes(places, after)):
            place = rows - start
            better = (values > cosine[place]) | ((values == cosine[place]) & (others < other[place]))
            cosine[place[better]], other[place[better]] = values[better], others[better]
        groups = [g[a:b] for g, a, b in zip(self.members, places, after, strict=True) if b - a > 1]
        groups = [rows[self.kept[rows]] for rows in groups]
        for rows, others in map_(self._inside, groups):
            inside.append((rows, others))
        pairs = _by_row(inside)
        for row in sorted(set(pairs) | set((np.flatnonzero(other >= 0) + start).tolist())):
            self._decide(row, pairs.get(row), float(cosine[row - start]), int(other[row - start]))

    def _stripes(self, places: np.ndarray, after: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows of the block, earlier rows) that share a cluster."""
        for group, first, last in zip(self.members, places, after, strict=True):
            rows, earlier = group[first:last], group[:first]
            rows, earlier = rows[self.kept[rows]], earlier[self.kept[earlier]]
            if len(rows):
                for begin in range(0, len(earlier), STRIPE):
                    yield rows, earlier[begin : begin + STRIPE]

    def _against(self, work: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, nearest, cosine) for rows with a neighbour among earlier ones."""
        rows, others = candidates(self.vectors, *work, self.threshold)
        values = cosines(self.vectors.exact, rows, others)
        enough = values >= self.threshold - TOLERANCE
        rows, others, values = rows[enough], others[enough], values[enough]
        order = np.lexsort((others, -values, rows))
        names, firsts = np.unique(rows[order], return_index=True)
        return names, others[order][firsts], values[order][firsts]

    def _seen(self, work: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        rows, others = candidates(self.vectors, *work, self.threshold)
        return np.unique(rows), np.unique(others)

    def _inside(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        later, earlier = candidates(self.vectors, rows, rows, self.threshold)
        right = earlier < later
        return later[right], earlier[right]

    def _decide(self, row: int, earlier: np.ndarray | None, cosine: float, other: int) -> None:
        """Whether `row` falls: to `other` of an earlier block, or to one of the candidates of its own."""
        if earlier is not None:
            if self.rule == "greedy":
                earlier = earlier[self.kept[earlier]]
            if len(earlier):
                values = cosines(self.vectors.exact, np.full(len(earlier), row), earlier)
                best = int(np.argmax(values))
                if values[best] >= self.threshold - TOLERANCE and values[best] > cosine:
                    cosine, other = float(values[best]), int(earlier[best])
        if other >= 0:
            self.found.append((row, other, round(cosine, 6)))
            if self.rule == "greedy":
                self.kept[row] = False

    def _drop_copies(self) -> None:
        """Rows with the bytes of an earlier one fall to it; later rows need not be compared with both."""
        first: dict[bytes, int] = {}
        for row, vector in enumerate(self.vectors.exact):
            length = float((vector.astype(np.float64) ** 2).sum())
            if length < self.threshold - TOLERANCE:
                continue
            earlier = first.setdefault(vector.tobytes(), row)
            if earlier != row:
                self.found.append((row, earlier, round(min(length, 1.0), 6)))
                self.kept[row] = False


def _by_row(inside: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, np.ndarray]:
    """Candidates by row, each once and rising."""
    if not inside:
        return {}
    pairs = np.unique(np.stack([np.concatenate(side) for side in zip(*inside, strict=True)], axis=1), axis=0)
    names, firsts = np.unique(pairs[:, 0], return_index=True)
    groups = np.split(pairs[:, 1], firsts[1:]) if len(names) else []
    return {int(name): group for name, group in zip(names, groups, strict=True)}


def _to_kept(found: list[Pair], vectors: np.ndarray) -> list[Pair]:
    """Name the kept row at the end of each chain instead of an earlier one that was itself dropped."""
    nearest = {j: i for j, i, _ in found}
    ends = []
    for j, i, cosine in sorted(found):
        end = i
        while end in nearest:
            end = nearest[end]
        if end != i:
            cosine = round(float(cosines(vectors, np.array([end]), np.array([j]))[0]), 6)
            nearest[j] = end  # so that chains stay short
        ends.append((j, end, cosine))
    return ends


def _check(vectors: np.ndarray, threshold: float, rule: str, probes: int) -> None:
    if not 0 < threshold <= 1:
        raise RecipeError(
            f"The threshold is {threshold}", remedy="Give a cosine above 0 and at most 1, such as 0.9"
        )
    if rule not in ("greedy", "semdedup"):
        raise RecipeError(f"There is no rule `{rule}`", remedy="Choose greedy or semdedup")
    if probes < 1:
        raise RecipeError(f"{probes} clusters cannot be searched", remedy="Search at least 1")
    for start in range(0, len(vectors), BLOCK_ROWS):
        if not np.isfinite(vectors[start : start + BLOCK_ROWS]).all():
            raise DataError("An embedding is not finite", remedy="Check the embedding model")
