"""Decontamination: which documents share runs of words with reference texts, such as a benchmark's questions.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): texts are compared as lower-case words without
punctuation, and a document is contaminated when it shares a run of 13 words with a reference. A reference of
8 to 12 words must occur whole; a shorter one cannot be told from common phrases and is not searched for.
Where we differ: GPT-3 cut 200 characters around a hit out of the document, here the document is dropped, and
the share of the reference that was found says how bad it is.

The references' n-grams are held as sorted 64-bit hashes (8 bytes, and 8 for the place), and every hit is
compared word by word, so a hash collision is never reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.progress import progress
from curation.readers import extension_of, read_file, read_files
from curation.records import ReadCounts
from curation.writers import write_file

WORDS = 13
SHORTEST_REFERENCE = 8

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

OVERLAP_SCHEMA = pa.schema(
    [
        pa.field("document", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("ngram", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Overlap:
    """A document that shares words with a reference.

    share : of the reference's n-grams, how many the document holds, above 0 to 1
    ngram : the first shared run of words, as compared (lower case, without punctuation)
    """

    document_id: str
    reference_id: str
    share: float
    ngram: str


@dataclass(frozen=True)
class DecontaminationReport:
    """What `decontaminate` did: documents read, kept, dropped and broken; references; and those too short."""

    read: int
    kept: int
    dropped: int
    broken: int
    empty: int
    references: int
    references_too_short: int


def overlaps(
    documents: Iterable[Document],
    against: Iterable[Document],
    *,
    words: int = WORDS,
    least_share: float = 0.0,
) -> list[Overlap]:
    """All pairs of a document and a reference that share a run of `words` words, in the documents' order.

    least_share : leave out pairs that share less of the reference; 0 is GPT-3's rule. Texts made from a few
                  templates share runs without one being a copy of the other.

    Memory is that of the references; the documents may be a stream. Raises RecipeError for `words` below 8.
    """
    index = ReferenceIndex(against, words=words, least_share=least_share)
    return [overlap for document in documents for overlap in index.overlaps(document)]


def words_of(text: str) -> list[str]:
    """The words that are compared: runs of letters, digits and `_`, without regard to case.

    A script without spaces between words, such as Chinese, gives whole phrases; runs of 13 of these are rare,
    so for such text this finds only long copies.

    >>> words_of("Don't panic: it's 42!")
    ['don', 't', 'panic', 'it', 's', '42']
    """
    return _WORD.findall(text.casefold())


class ReferenceIndex:
    """The runs of words of reference texts, to look documents up in.

    too_short : ids of the references of fewer than 8 words, which are not searched for
    """

    def __init__(
        self, references: Iterable[Document], *, words: int = WORDS, least_share: float = 0.0
    ) -> None:
        if words < SHORTEST_REFERENCE:
            raise RecipeError(
                f"Runs of {words} words are shared by texts that have nothing to do with each other",
                where="words",
                remedy=f"Choose at least {SHORTEST_REFERENCE}; 13 is usual",
            )
        self.too_short: list[str] = []
        self._least_share = least_share
        self._ids: list[str] = []
        self._texts: list[np.ndarray] = []
        # A number for each word of a reference, from 1; equal numbers are equal words.
        self._numbers: dict[str, int] = {}
        for reference in references:
            found = words_of(reference.text)
            if len(found) < SHORTEST_REFERENCE:
                self.too_short.append(reference.id)
                continue
            self._ids.append(reference.id)
            numbers = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in found]
            self._texts.append(np.array(numbers, np.uint32))
        sizes = sorted({min(len(text), words) for text in self._texts})
        self._tables = {size: _table(self._texts, size, words) for size in sizes}

    def overlaps(self, document: Document) -> list[Overlap]:
        """The references that this document shares words with, in the references' order."""
        found = words_of(document.text)
        # Words that no reference has are 0, and no run that holds one can match.
        text = np.fromiter((self._numbers.get(word, 0) for word in found), np.uint32, len(found))
        shared: dict[int, set[int]] = {}
        first: dict[int, str] = {}
        for size, table in self._tables.items():
            for at, reference, start in self._matches(text, table, size):
                shared.setdefault(reference, set()).add(start)
                first.setdefault(reference, " ".join(found[at : at + size]))
        result = []
        for reference in sorted(shared):
            runs = len(self._texts[reference]) - len(first[reference].split(" ")) + 1
            share = len(shared[reference]) / runs
            if share >= self._least_share:
                result.append(Overlap(document.id, self._ids[reference], share, first[reference]))
        return result

    def _matches(self, text: np.ndarray, table: _Table, size: int) -> Iterator[tuple[int, int, int]]:
        """Place in the document, number of the reference, and place in it, of each shared run of words."""
        hashes, known = _run_hashes(text, size)
        # Each different run once: a document that repeats itself does not search again and again.
        values, places = np.unique(hashes[known], return_index=True)
        positions = np.flatnonzero(known)[places]
        left = np.searchsorted(table.hashes, values, "left")
        right = np.searchsorted(table.hashes, values, "right")
        hits = np.flatnonzero(right > left)
        for hit in sorted(hits.tolist(), key=lambda hit: int(positions[hit])):
            at = int(positions[hit])
            run = text[at : at + size]
            for entry in range(int(left[hit]), int(right[hit])):
                reference, start = int(table.references[entry]), int(table.starts[entry])
                if np.array_equal(self._texts[reference][start : start + size], run):
                    yield at, reference, start


@dataclass(frozen=True)
class _Table:
    """Runs of one size: sorted hashes, and beside each whose run it is and where it starts."""

    hashes: np.ndarray
    references: np.ndarray
    starts: np.ndarray


def _table(texts: Sequence[np.ndarray], size: int, words: int) -> _Table:
    """The runs of those texts that are searched for by runs of `size` words."""
    chosen = [number for number, text in enumerate(texts) if min(len(text), words) == size]
    hashes = np.concatenate([_run_hashes(texts[number], size)[0] for number in chosen])
    counts = [len(texts[number]) - size + 1 for number in chosen]
    order = np.argsort(hashes, kind="stable")
    references = np.repeat(np.array(chosen, np.int32), counts)
    starts = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return _Table(hashes[order], references[order], starts[order])


def _run_hashes(text: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hashes of the runs of `size` numbers, and which of the runs hold no 0."""
    runs = max(len(text) - size + 1, 0)
    hashes = np.zeros(runs, np.uint64)
    known = np.ones(runs, bool)
    for offset in range(size if runs else 0):
        part = text[offset : offset + runs]
        known &= part > 0
        hashes = (hashes ^ part) * _FACTOR  # wraps at 2**64, as a hash may
        hashes ^= hashes >> np.uint64(29)
    return hashes, known


def decontaminate(
    files: Sequence[Path | str],
    against: Sequence[Path | str],
    out: Path | str,
    *,
    words: int = WORDS,
    least_share: float = 0.0,
    broken_tolerance: float = 0.01,
) -> DecontaminationReport:
    """Write the documents of `files` that share no run of words with those of `against` to `out`.

    `out` may be .parquet or .jsonl, .jsonl.gz, .jsonl.zst. Beside it, `<name>.overlaps.parquet` has a row for
    each overlap: `document, reference, share, ngram`. Raises DataError and RecipeError as `read_file` and
    `overlaps`, and when no reference is long enough to be searched for.
    """
    out = Path(out)
    extension = extension_of(out)
    references, _ = read_files(against, broken_tolerance=broken_tolerance)
    index = ReferenceIndex(references, words=words, least_share=least_share)
    if len(index.too_short) == len(references):
        raise DataError(
            f"Each of the {len(references)} references has fewer than {SHORTEST_REFERENCE} words",
            where=", ".join(map(str, against)),
            remedy="Give references that hold whole questions",
        )
    search = _Search(index)
    kept = write_file(out, search.clean(files, broken_tolerance))
    _write_overlaps(out.with_name(out.name[: -len(extension)] + ".overlaps.parquet"), search.found)
    return DecontaminationReport(
        read=search.read,
        kept=kept,
        dropped=search.dropped,
        broken=search.broken,
        empty=search.empty,
        references=len(references),
        references_too_short=len(index.too_short),
    )


@dataclass
class _Search:
    """Passes clean documents on, and remembers what it saw."""

    index: ReferenceIndex
    read: int = 0
    broken: int = 0
    empty: int = 0
    dropped: int = 0
    found: list[Overlap] = field(default_factory=list)

    def clean(self, files: Sequence[Path | str], broken_tolerance: float) -> Iterator[Document]:
        with progress("decontaminating", total=len(files), unit="files") as task:
            for file in files:
                counts = ReadCounts()
                for document in counts.documents(read_file(file)):
                    overlaps = self.index.overlaps(document)
                    self.found += overlaps
                    self.dropped += bool(overlaps)
                    if not overlaps:
                        yield document
                counts.check(str(file), broken_tolerance)
                self.read += counts.read
                self.broken += counts.broken
                self.empty += counts.empty
                task.advance()


def _write_overlaps(path: Path, found: Sequence[Overlap]) -> None:
    columns = {
        "document": [overlap.document_id for overlap in found],
        "reference": [overlap.reference_id for overlap in found],
        "share": [overlap.share for overlap in found],
        "ngram": [overlap.ngram for overlap in found],
    }
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=OVERLAP_SCHEMA), temporary, compression="zstd")
