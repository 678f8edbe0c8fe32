"""Semantic deduplication: of documents that say the same, the first in a stated order is kept.

Two rules. `greedy` drops a document whose cosine to a *kept* earlier one reaches the threshold. `semdedup` is
SemDeDup's (Abbas et al. 2023, arXiv 2303.09540): the cosine to *any* earlier one counts, dropped or not, so a
chain of near-duplicates loses all but its first link.

Up to `EXACT_DOCUMENTS` every pair is compared; beyond, only pairs inside a cluster of spherical k-means, as
SemDeDup does, which misses pairs that the clusters part. Cosines are products of float32 matrices; pairs near
the threshold are decided by the same product in float64, so the result does not depend on how rows were
blocked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value, replacing
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.progress import progress

Rule = Literal["greedy", "semdedup"]
EXACT_DOCUMENTS = 200_000
BLOCK = 1024
STRIPE = 8192
BAND = 1e-4
"""Float32 products of unit vectors err by less; pairs this near to the threshold are computed again."""
CLUSTER_SEED = 1234

DUPLICATE_SCHEMA = pa.schema(
    [
        pa.field("dropped", pa.string(), nullable=False),
        pa.field("kept_instead", pa.string(), nullable=False),
        pa.field("cosine", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Duplicate:
    """A dropped document, the kept one that it duplicates, and their cosine.

    Under `semdedup` the earlier document that it is most like may itself have been dropped: then the kept one
    at
    the end of the chain is named, and the cosine may be below the threshold. That is the price of this rule.
    """

    dropped: str
    kept_instead: str
    cosine: float


def keep_order(
    documents: Sequence[Document],
    priority: Mapping[str, int] | None = None,
    scores: Mapping[str, float] | None = None,
) -> list[int]:
    """Indices of `documents` by (priority of the source, score from high to low, id).

    priority : smaller is kept first; sources without one come last
    scores   : by id; documents without one come after those with one
    """
    last = math.inf
    ranks, values = priority or {}, scores or {}
    return sorted(
        range(len(documents)),
        key=lambda i: (
            ranks.get(documents[i].source, last),
            -values.get(documents[i].id, -last),
            documents[i].id,
            documents[i].source,
        ),
    )


def find_duplicates(
    vectors: np.ndarray, threshold: float, *, rule: Rule = "greedy", exact_documents: int = EXACT_DOCUMENTS
) -> list[tuple[int, int, float]]:
    """(dropped, kept instead, cosine) for rows of `vectors` [n, dim], which stand in keep-order.

    vectors   : rows of length 1, or 0 for texts in which the embedder sees nothing; those are never dropped
    threshold : least cosine of a duplicate, in (0, 1]

    >>> find_duplicates(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32), 0.9)
    [(2, 0, 1.0)]
    """
    if not 0 < threshold <= 1:
        raise RecipeError(
            f"The threshold is {threshold}", remedy="Give a cosine above 0 and at most 1, such as 0.9"
        )
    if rule not in ("greedy", "semdedup"):
        raise RecipeError(f"There is no rule `{rule}`", remedy="Choose greedy or semdedup")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise DataError("An embedding is not finite", remedy="Check the embedding model")
    found: list[tuple[int, int, float]] = []
    with progress("deduplicating", total=len(vectors), unit="documents") as task:
        for members in _clusters(vectors, exact_documents):
            inside = _within(vectors[members], threshold, rule, task.advance)
            found += [(int(members[j]), int(members[i]), cosine) for j, i, cosine in inside]
    return sorted(found)


def deduplicate(
    documents: Sequence[Document],
    vectors: np.ndarray,
    threshold: float,
    *,
    rule: Rule = "greedy",
    priority: Mapping[str, int] | None = None,
    scores: Mapping[str, float] | None = None,
) -> tuple[list[Document], list[Duplicate]]:
    """The kept documents, in keep-order, and every dropped one with the one that it duplicates.

    The result does not depend on the order of `documents`. vectors : [len(documents), dim], in their order.
    """
    if len(documents) != len(vectors):
        raise DataError(f"There are {len(documents)} documents but {len(vectors)} embeddings")
    order = keep_order(documents, priority, scores)
    ordered = [documents[i] for i in order]
    pairs = find_duplicates(vectors[order], threshold, rule=rule)
    dropped = {j for j, _, _ in pairs}
    duplicates = [Duplicate(ordered[j].id, ordered[i].id, cosine) for j, i, cosine in pairs]
    return [d for j, d in enumerate(ordered) if j not in dropped], duplicates


def write_duplicates(path: Path | str, duplicates: Sequence[Duplicate]) -> None:
    """Write the table `dropped, kept_instead, cosine`, atomically."""
    columns = {name: [getattr(d, name) for d in duplicates] for name in DUPLICATE_SCHEMA.names}
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=DUPLICATE_SCHEMA), temporary, compression="zstd")


def _within(
    vectors: np.ndarray, threshold: float, rule: Rule, advance: Callable[[float], None]
) -> list[tuple[int, int, float]]:
    """Duplicates among rows that are all compared with each other."""
    kept = np.ones(len(vectors), dtype=bool)
    found = []
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        others = np.arange(start + len(block))
        if rule == "greedy":
            others = others[kept[: len(others)]]
        for j, earlier in _near(block, start, vectors, others, threshold):
            if rule == "greedy":
                earlier = earlier[kept[earlier]]
            if not len(earlier):
                continue
            # Each row's sum by itself: the same number whatever else is compared.
            cosines = (vectors[earlier].astype(np.float64) * vectors[j].astype(np.float64)).sum(axis=1)
            best = int(np.argmax(cosines))
            # Unit vectors of float32 have a length of 1 to seven digits: a copy must reach a threshold of 1.
            if cosines[best] >= threshold - 1e-6:
                kept[j] = False
                found.append((j, int(earlier[best]), round(float(min(cosines[best], 1.0)), 6)))
        advance(len(block))
    return found


def _near(
    block: np.ndarray, start: int, vectors: np.ndarray, others: np.ndarray, threshold: float
) -> Iterator[tuple[int, np.ndarray]]:
    """(row, those of the rows `others` before it that may reach the threshold), for rows that have any.

    `block` holds the rows `start`, `start` + 1, ... Products are made in stripes, so that memory does not
    grow
    with the number of documents.
    """
    stripes = [others[first : first + STRIPE] for first in range(0, len(others), STRIPE)]
    hits = [np.nonzero(block @ vectors[stripe].T >= threshold - BAND) for stripe in stripes]
    rows = np.concatenate([found[0] for found in hits]) + start
    columns = np.concatenate([stripe[found[1]] for stripe, found in zip(stripes, hits, strict=True)])
    earlier = columns < rows
    rows, columns = rows[earlier], columns[earlier]
    order = np.argsort(rows, kind="stable")
    names, firsts = np.unique(rows[order], return_index=True)
    for name, group in zip(names, np.split(columns[order], firsts[1:]), strict=len(names) > 0):
        yield int(name), group


def _clusters(vectors: np.ndarray, exact_documents: int) -> list[np.ndarray]:
    """Row numbers of each cluster, rising; one cluster when all pairs can be compared."""
    if len(vectors) <= exact_documents:
        return [np.arange(len(vectors))]
    import faiss

    means = faiss.Kmeans(
        vectors.shape[1],
        round(math.sqrt(len(vectors))),
        niter=20,
        seed=CLUSTER_SEED,
        spherical=True,
        max_points_per_centroid=256,
    )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # other numbers of threads give other sums, and so other clusters
    try:
        means.train(vectors)
        _, nearest = means.index.search(vectors, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    labels = nearest[:, 0]
    by_label = np.argsort(labels, kind="stable")
    return np.split(by_label, np.flatnonzero(np.diff(labels[by_label])) + 1)


@dataclass(frozen=True)
class DeduplicationReport:
    """What `deduplicate_files` did."""

    read: int
    broken: int
    kept: int
    dropped: int
    out: str
    table: str


def deduplicate_files(
    files: Sequence[Path | str],
    threshold: float,
    out: Path | str,
    *,
    embedder: str | None = None,
    rule: Rule = "greedy",
    broken_tolerance: float = 0.01,
) -> DeduplicationReport:
    """Deduplicate documents of user files into `out`; of duplicates, the one in the earlier file, then the
    smaller id.

    embedder : sentence-transformers folder or id; without one, latent semantic analysis of these very texts,
               whose folder `<out>.embedder` stays beside `out`
    The table `dropped, kept_instead, cosine` is written to `<out>.duplicates.parquet`.
    """
    from curation.embedding import embed, train_lsa_embedder
    from curation.rater_tokenizer import train_rater_tokenizer
    from curation.readers import read_files
    from curation.writers import write_file

    out = Path(out)
    documents, counts = read_files(files, broken_tolerance=broken_tolerance)
    documents = _with_own_ids(documents)
    texts = [document.text for document in documents]
    if embedder is None:
        folder = out.with_name(f"{out.name}.embedder")
        tokenizer = train_rater_tokenizer(sorted(set(texts)), folder / "tokenizer")
        embedder = str(train_lsa_embedder(texts, tokenizer, folder / "model", dim=128))
    places: dict[str, int] = {}
    for document in documents:
        places.setdefault(document.source, len(places))
    kept, duplicates = deduplicate(documents, embed(texts, embedder), threshold, rule=rule, priority=places)
    write_file(out, kept)
    table = out.with_name(f"{out.name}.duplicates.parquet")
    write_duplicates(table, duplicates)
    return DeduplicationReport(
        len(documents), counts.broken, len(kept), len(duplicates), str(out), str(table)
    )


def _with_own_ids(documents: Sequence[Document]) -> list[Document]:
    """Refuse one id for two texts: the table could not say which of them was dropped."""
    seen: dict[str, str] = {}
    for document in documents:
        digest = hash_value([document.source, document.text])
        if seen.setdefault(document.id, digest) != digest:
            raise DataError(
                f"Two documents have the id `{document.id}`",
                remedy="Give each document its own id, or leave ids out",
            )
    return list({document.id: document for document in documents}.values())
