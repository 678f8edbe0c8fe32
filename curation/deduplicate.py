"""Semantic deduplication: of documents that say the same, the first in a stated order is kept.

`semantic_duplicates` finds them among embeddings; here is what concerns documents: their order, the table of who
duplicates whom, and files of users.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value, replacing
from curation.documents import Document
from curation.errors import DataError
from curation.precision import Precision
from curation.semantic_duplicates import EXACT_DOCUMENTS, PROBES, Rule, semantic_duplicates

ROWS_AT_ONCE = 8192
MAPPED_DOCUMENTS = 100_000
"""From this number on, `deduplicate_files` keeps embeddings in a file, where a killed pass continues."""

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


def deduplicate(
    documents: Sequence[Document],
    vectors: np.ndarray,
    threshold: float,
    *,
    rule: Rule = "greedy",
    priority: Mapping[str, int] | None = None,
    scores: Mapping[str, float] | None = None,
    exact_documents: int = EXACT_DOCUMENTS,
    probes: int = PROBES,
    workers: int = 1,
    notes: list[str] | None = None,
) -> tuple[list[Document], list[Duplicate]]:
    """The kept documents, in keep-order, and every dropped one with the one that it duplicates.

    The result does not depend on the order of `documents`, nor on the number of `workers` (threads).
    vectors : [len(documents), dim], in their order;  the other settings are those of `semantic_duplicates`
    notes   : gets the sentence on what was missed when there are more than `exact_documents`
    """
    if len(documents) != len(vectors):
        raise DataError(f"There are {len(documents)} documents but {len(vectors)} embeddings")
    order = keep_order(documents, priority, scores)
    ordered = [documents[i] for i in order]
    result = semantic_duplicates(
        _in_order(vectors, order),
        threshold,
        rule=rule,
        exact_documents=exact_documents,
        probes=probes,
        workers=workers,
    )
    pairs = result.found
    if result.recall is not None and notes is not None:
        notes.append(result.recall.sentence())
    dropped = {j for j, _, _ in pairs}
    duplicates = [Duplicate(ordered[j].id, ordered[i].id, cosine) for j, i, cosine in pairs]
    return [d for j, d in enumerate(ordered) if j not in dropped], duplicates


def _in_order(vectors: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The rows in keep-order; those of a memory-mapped file in a file that is gone when it is closed."""
    if not isinstance(vectors, np.memmap):
        return vectors[list(order)]
    with tempfile.TemporaryFile(dir=Path(str(vectors.filename)).parent) as handle:
        for start in range(0, len(order), ROWS_AT_ONCE):
            handle.write(np.ascontiguousarray(vectors[order[start : start + ROWS_AT_ONCE]]).tobytes())
        handle.flush()
        if not len(order):
            return vectors[:0]
        return np.memmap(handle, dtype=vectors.dtype, mode="r", shape=vectors.shape)


def write_duplicates(path: Path | str, duplicates: Sequence[Duplicate]) -> None:
    """Write the table `dropped, kept_instead, cosine`, atomically."""
    columns = {name: [getattr(d, name) for d in duplicates] for name in DUPLICATE_SCHEMA.names}
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=DUPLICATE_SCHEMA), temporary, compression="zstd")


@dataclass(frozen=True)
class DeduplicationReport:
    """What `deduplicate_files` did."""

    read: int
    broken: int
    kept: int
    dropped: int
    out: str
    table: str
    notes: tuple[str, ...] = ()


def deduplicate_files(
    files: Sequence[Path | str],
    threshold: float,
    out: Path | str,
    *,
    embedder: str | None = None,
    rule: Rule = "greedy",
    broken_tolerance: float = 0.01,
    precision: Precision | Literal["int8"] = "float32",
    workers: int = 1,
) -> DeduplicationReport:
    """Deduplicate documents of user files into `out`; of duplicates, the one in the earlier file, then the
    smaller id.

    embedder : sentence-transformers folder or id; without one, latent semantic analysis of these very texts,
               whose folder `<out>.embedder` stays beside `out`
    precision : of the embedder; after a bfloat16 or int8 pass, documents with a near neighbour are embedded in float32
    workers  : threads that compare
    The table `dropped, kept_instead, cosine` is written to `<out>.duplicates.parquet`. Embeddings of
    `MAPPED_DOCUMENTS` or more are kept in `<out>.vectors` until the end, float32.
    """
    from curation.embedding import train_lsa_embedder
    from curation.embedding_file import embed_to_file
    from curation.embedding_recheck import embed_near
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
    notes: list[str] = []
    stored = out.with_name(f"{out.name}.vectors")
    if len(texts) >= MAPPED_DOCUMENTS:
        vectors = embed_to_file(texts, embedder, stored)
    else:
        vectors, report = embed_near(
            texts, embedder, threshold, precision=precision, search={"workers": workers}
        )
        notes += [report.sentence()] if report else []
    kept, duplicates = deduplicate(
        documents, vectors, threshold, rule=rule, priority=places, workers=workers, notes=notes
    )
    write_file(out, kept)
    table = out.with_name(f"{out.name}.duplicates.parquet")
    write_duplicates(table, duplicates)
    shutil.rmtree(stored, ignore_errors=True)
    return DeduplicationReport(
        len(documents), counts.broken, len(kept), len(duplicates), str(out), str(table), tuple(notes)
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
