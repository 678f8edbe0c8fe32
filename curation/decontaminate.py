"""Decontamination: which documents hold text of a benchmark, which items are contaminated, and how to be rid of them.

The rule and the normalisation are those of `curation.overlap_index`. An item is *touched* when any of its runs of 13
words occurs in the corpus, and *half known* when at least half of them do, in whatever documents. Only the items
are held in memory; the corpus is a stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing
from curation.benchmark import read_benchmarks
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.overlap_index import (
    SHORTEST_REFERENCE,
    WORDS,
    Overlap,
    ReferenceIndex,
    overlaps,
    words_of,
)
from curation.progress import progress
from curation.readers import extension_of, read_file
from curation.records import ReadCounts
from curation.writers import write_file

__all__ = ["Overlap", "ReferenceIndex", "decontaminate", "overlaps", "words_of"]

Remove = Literal["any", "half", "none"]
HALF = 0.5

OVERLAP_SCHEMA = pa.schema(
    [
        pa.field("document", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("ngram", pa.string(), nullable=False),
    ]
)
ITEM_SCHEMA = pa.schema(
    [
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class BenchmarkOverlap:
    """How much of a benchmark a corpus holds.

    items     : searched for; `too_short` more were not
    any_match : items of which some run of words occurs in the corpus
    half_match : items of which at least half do
    """

    benchmark: str
    items: int
    too_short: int
    any_match: int
    half_match: int

    @property
    def any_share(self) -> float:
        """Of the items that were searched for."""
        return self.any_match / self.items if self.items else 0.0

    @property
    def half_share(self) -> float:
        """Of the items that were searched for."""
        return self.half_match / self.items if self.items else 0.0


@dataclass(frozen=True)
class DecontaminationReport:
    """What `decontaminate` did: documents read, kept, dropped, broken and empty; items, and those too short.

    overlapping : documents that share any run of words with an item, whether or not they were dropped
    """

    read: int
    kept: int
    dropped: int
    broken: int
    empty: int
    overlapping: int
    references: int
    references_too_short: int
    benchmarks: tuple[BenchmarkOverlap, ...]
    overlaps_table: str
    items_table: str


def decontaminate(
    files: Sequence[Path | str],
    against: Sequence[Path | str],
    out: Path | str,
    *,
    fields: Sequence[str] = ("text",),
    remove: Remove = "any",
    words: int = WORDS,
    shortest: int = SHORTEST_REFERENCE,
    broken_tolerance: float = 0.01,
) -> DecontaminationReport:
    """Search the documents of `files` for the items of the benchmarks `against`, and write what is clean to `out`.

    against : local files or datasets of the hub, see `benchmark.read_benchmarks`; of `fields` each uses those
              that it has
    out     : .parquet or .jsonl, .jsonl.gz, .jsonl.zst
    remove  : `any`: documents that share any run of words are left out; `half`: those that hold at least half of an
              item's runs; `none`: nothing is, and `out` is not written
    words, shortest : see `overlap_index.ReferenceIndex`

    Beside `out`, `<name>.overlaps.parquet` has a row for each document and item that share words (`document,
    benchmark, item, share, ngram`), and `<name>.items.parquet` one for each item that is touched, with the share of
    its runs that the corpus holds and the number of documents. Raises DataError and RecipeError as `read_file`,
    `read_benchmarks` and `ReferenceIndex`, and when no item is long enough to be searched for.
    """
    out = Path(out)
    extension = extension_of(out)
    if remove not in get_args(Remove):
        raise RecipeError(f"`{remove}` does not say what to remove", remedy="Choose any, half or none")
    items = read_benchmarks(against, fields)
    index = ReferenceIndex(items, words=words, shortest=shortest)
    if not len(index):
        raise DataError(
            f"Each of the {len(items)} items has fewer than {shortest} words",
            where=", ".join(map(str, against)),
            remedy="Give whole questions, or a smaller `shortest` (common phrases will then be found)",
        )
    search = _Search(index, remove)
    clean = search.clean(files, broken_tolerance)
    kept = sum(1 for _ in clean) if remove == "none" else write_file(out, clean)
    stem = out.name[: -len(extension)]
    overlaps_table, items_table = (out.with_name(f"{stem}.{name}.parquet") for name in ("overlaps", "items"))
    _write_overlaps(overlaps_table, search.found)
    _write_items(items_table, search)
    return DecontaminationReport(
        read=search.read,
        kept=kept,
        dropped=search.dropped,
        broken=search.broken,
        empty=search.empty,
        overlapping=search.overlapping,
        references=len(items),
        references_too_short=len(index.too_short),
        benchmarks=_summary(items, index),
        overlaps_table=str(overlaps_table),
        items_table=str(items_table),
    )


def _summary(items: Sequence[Document], index: ReferenceIndex) -> tuple[BenchmarkOverlap, ...]:
    every = Counter(item.source for item in items)
    shares: dict[str, list[float]] = {name: [] for name in every}
    for source, _, share in index.item_shares():
        shares[source].append(share)
    return tuple(
        BenchmarkOverlap(
            name,
            len(found),
            every[name] - len(found),
            sum(share > 0 for share in found),
            sum(share >= HALF for share in found),
        )
        for name, found in shares.items()
    )


@dataclass
class _Search:
    """Passes clean documents on, and remembers what it saw."""

    index: ReferenceIndex
    remove: Remove
    read: int = 0
    broken: int = 0
    empty: int = 0
    dropped: int = 0
    overlapping: int = 0
    found: list[Overlap] = field(default_factory=list)

    def clean(self, files: Sequence[Path | str], broken_tolerance: float) -> Iterator[Document]:
        least = {"any": 0.0, "half": HALF, "none": float("inf")}[self.remove]
        with progress("decontaminating", total=len(files), unit="files") as task:
            for file in files:
                counts = ReadCounts()
                for document in counts.documents(read_file(file)):
                    hits = self.index.overlaps(document)
                    self.found += hits
                    self.overlapping += bool(hits)
                    bad = any(hit.share >= least for hit in hits)
                    self.dropped += bad
                    if not bad:
                        yield document
                counts.check(str(file), broken_tolerance, option=None)
                self.read += counts.read
                self.broken += counts.broken
                self.empty += counts.empty
                task.advance()


def _write_overlaps(path: Path, found: Sequence[Overlap]) -> None:
    columns = {
        "document": [overlap.document_id for overlap in found],
        "benchmark": [overlap.benchmark for overlap in found],
        "item": [overlap.reference_id for overlap in found],
        "share": [overlap.share for overlap in found],
        "ngram": [overlap.ngram for overlap in found],
    }
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=OVERLAP_SCHEMA), temporary, compression="zstd")


def _write_items(path: Path, search: _Search) -> None:
    documents = Counter((hit.benchmark, hit.reference_id) for hit in search.found)
    rows = [
        {"benchmark": source, "item": name, "share": share, "documents": documents[source, name]}
        for source, name, share in search.index.item_shares()
        if share > 0
    ]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=ITEM_SCHEMA), temporary, compression="zstd")
