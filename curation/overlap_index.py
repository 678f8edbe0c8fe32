"""Which documents share runs of words with reference texts, such as a benchmark's questions.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): texts are compared as lower-case words without
punctuation, and a document is contaminated when it shares a run of 13 words with a reference. A reference of
8 to 12 words must occur whole; a shorter one cannot be told from common phrases and is not searched for, unless
`shortest` is lowered.
Where we differ: GPT-3 cut 200 characters around a hit out of the document, here the document is dropped, and
the share of the reference that was found says how bad it is.

The references' n-grams are held as sorted 64-bit hashes (8 bytes, and 8 for the place), and every hit is
compared word by word, so a hash collision is never reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curation.documents import Document
from curation.errors import RecipeError

WORDS = 13
SHORTEST_REFERENCE = 8

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """A document that shares words with a reference.

    share : of the reference's n-grams, how many the document holds, above 0 to 1
    ngram : the first shared run of words, as compared (lower case, without punctuation)
    benchmark : the source of the reference
    """

    document_id: str
    reference_id: str
    share: float
    ngram: str
    benchmark: str = ""


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

    shortest  : words of the shortest reference that is searched for; below 8, common phrases will be found
    too_short : ids of the references with fewer
    """

    def __init__(
        self,
        references: Iterable[Document],
        *,
        words: int = WORDS,
        least_share: float = 0.0,
        shortest: int = SHORTEST_REFERENCE,
    ) -> None:
        if words < SHORTEST_REFERENCE:
            raise RecipeError(
                f"Runs of {words} words are shared by texts that have nothing to do with each other",
                where="words",
                remedy=f"Choose at least {SHORTEST_REFERENCE}; 13 is usual",
            )
        if not 1 <= shortest <= words:
            raise RecipeError(
                f"The shortest reference cannot have {shortest} words when runs have {words}",
                where="shortest",
                remedy="Choose 1 to the length of a run; 8 is the default",
            )
        if not 0 <= least_share <= 1:
            raise RecipeError(f"The least share is {least_share}", remedy="Give a share between 0 and 1")
        self.too_short: list[str] = []
        self._least_share, self._words = least_share, words
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._texts: list[np.ndarray] = []
        # A number for each word of a reference, from 1; equal numbers are equal words.
        self._numbers: dict[str, int] = {}
        for reference in references:
            found = words_of(reference.text)
            if len(found) < shortest:
                self.too_short.append(reference.id)
                continue
            self._ids.append(reference.id)
            self._sources.append(reference.source)
            numbers = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in found]
            self._texts.append(np.array(numbers, np.uint32))
        sizes = sorted({min(len(text), words) for text in self._texts})
        self._tables = {size: _table(self._texts, size, words) for size in sizes}
        self.forget()

    def __len__(self) -> int:
        """References that are searched for."""
        return len(self._ids)

    def forget(self) -> None:
        """Forget which runs the documents so far have held."""
        self._seen = [np.zeros(self._runs(number), dtype=bool) for number in range(len(self._ids))]

    def item_shares(self) -> list[tuple[str, str, float]]:
        """Source and id of each reference, and the share of its runs that all documents so far hold together."""
        return [
            (source, name, float(seen.mean()))
            for source, name, seen in zip(self._sources, self._ids, self._seen, strict=True)
        ]

    def _runs(self, reference: int) -> int:
        length = len(self._texts[reference])
        return length - min(length, self._words) + 1

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
            self._seen[reference][list(shared[reference])] = True
            share = len(shared[reference]) / self._runs(reference)
            if share >= self._least_share:
                name, source = self._ids[reference], self._sources[reference]
                result.append(Overlap(document.id, name, share, first[reference], source))
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
