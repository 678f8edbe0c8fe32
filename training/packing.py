"""One source as an endless stream of tokens, cut into sequences without losing one.

Sources are packed one by one and mixed afterwards, sequence by sequence: that is what makes the weights of a
mixture count tokens, whatever the length of a source's documents.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from training.tokens import TokenSource

IGNORED_LABEL = -100
KEPT_EPOCHS = 2  # a sequence may cross the border of two epochs

Piece = tuple[int, int, int]  # document, first token, token after the last


class SourceStream:
    """The documents of `source` in an order of their own in every epoch, end to end, in sequences of T.

    Epoch e is all documents in a permutation that depends on (seed, name, e) alone, so two mixtures with one
    seed read a source in the same order, whatever their weights. Sequence k is the stream's tokens
    [k T, (k + 1) T); it may cross documents and the border between epochs. Nothing is cropped or padded.
    """

    def __init__(self, name: str, source: TokenSource, seed: int, sequence_tokens: int) -> None:
        self.name, self.source, self.seed, self.sequence_tokens = name, source, seed, sequence_tokens
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def epoch_of(self, sequence: int) -> int:
        """The epoch, from 0, in which a sequence begins."""
        return sequence * self.sequence_tokens // self.source.total_tokens

    def pieces(self, sequence: int) -> tuple[Piece, ...]:
        """The documents, and the tokens of them, that the source's sequence `sequence` is made of."""
        total = self.source.total_tokens
        epoch, position = divmod(sequence * self.sequence_tokens, total)
        missing = self.sequence_tokens
        found: list[Piece] = []
        while missing:
            documents, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, position, side="right"))
            while missing and place < len(documents):
                document = int(documents[place])
                length = int(self.source.offsets[document + 1] - self.source.offsets[document])
                start = length - (int(ends[place]) - position)
                stop = min(length, start + missing)
                found.append((document, start, stop))
                missing -= stop - start
                position += stop - start
                place += 1
            epoch, position = epoch + 1, 0
        return tuple(found)

    def fill(
        self, sequence: int, tokens: np.ndarray, labels: np.ndarray, positions: np.ndarray, pieces: np.ndarray
    ) -> None:
        """Write one sequence into four int64 rows [T]; `pieces` gets the number of the piece in its row."""
        at = 0
        for number, (document, start, stop) in enumerate(self.pieces(sequence)):
            end = at + stop - start
            low, high = self.source.offsets[document] + start, self.source.offsets[document] + stop
            tokens[at:end] = self.source.tokens[low:high]
            labels[at : end - 1] = tokens[at + 1 : end]
            # The label of the last token is read from beyond the cut, so that no token is left untrained.
            is_last = high == self.source.offsets[document + 1]
            labels[end - 1] = IGNORED_LABEL if is_last else self.source.tokens[high]
            positions[at:end] = np.arange(end - at)
            pieces[at:end] = number
            at = end

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents in this epoch's order, and where in the epoch each of them ends."""
        if epoch not in self._epochs:
            documents = seeded_permutation(len(self.source.ids), self.seed, "documents", self.name, epoch)
            ends = np.cumsum(np.diff(self.source.offsets)[documents])
            while len(self._epochs) >= KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = documents, ends
        return self._epochs[epoch]


def seeded_permutation(count: int, *parts: int | str) -> np.ndarray:
    """A random order of 0 ... count - 1, int64, that depends on `parts` alone.

    The numbers are sorted by their splitmix64 hashes. NumPy's own permutations may change between its
    versions; an order that runs resume from, and papers are written about, must not.

    >>> seeded_permutation(8, 1, "documents").tolist()
    [6, 3, 5, 1, 4, 7, 0, 2]
    """
    digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).digest()
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(int.from_bytes(digest[:8], "big"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    # splitmix64 is one-to-one, so no two hashes are equal and any sort gives this order; the default is the fastest.
    return np.argsort(x ^ (x >> np.uint64(31)))
