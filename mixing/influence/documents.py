"""Tokenised documents, the rows they are cut into, and padded batches of rows.

Rows are sorted by length before they are batched, and every piece of a document carries the weight of its
tokens, so that the value of a document depends neither on its neighbours nor on padding nor on order. A row is
one piece of one document, or, packed, several that do not see each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from curation.errors import DataError

IGNORED = -100
Reduction = Literal["mean", "sum"]
Windows = Literal["first", "all"]


class Tokenized(Protocol):
    """Anything with an id, a source and its token ids, first token included (it is read, never predicted)."""

    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def ids(self) -> np.ndarray: ...


@dataclass(frozen=True)
class SampleDocument:
    """A document as token ids. A training sample is `[bos] + tokens + [eos]`, as the trainer stores it."""

    id: str
    source: str
    ids: np.ndarray


@dataclass(frozen=True)
class Row:
    """Targets `start + 1 ... stop - 1` of a document, predicted from its tokens `start ...` on."""

    document: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Targets of the row."""
        return self.stop - self.start - 1


@dataclass(frozen=True)
class RowBatch:
    """Rows padded on the right to one length T; S pieces of documents, one in each row unless they are packed.

    input_ids : int64 [B, T]
    labels    : int64 [B, T], the next token; -100 on padding
    positions : int64 [B, T], counted from the piece's start
    weights   : float64 [S], what the loss of one target of the piece counts in the loss of its document
    documents : index of each piece's document
    segments  : int64 [B, T], the piece that a token belongs to, S on padding; None: row r is piece r
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    weights: Tensor
    documents: tuple[int, ...]
    segments: Tensor | None = None

    def part(self, first: int, last: int) -> RowBatch:
        """Rows first ... last - 1 of a batch that is not packed."""
        return RowBatch(
            self.input_ids[first:last],
            self.labels[first:last],
            self.positions[first:last],
            self.weights[first:last],
            self.documents[first:last],
        )

    def by_document(self, values: Tensor) -> Tensor:
        """Values of tokens [B, T] or [B, T, k], 0 on padding, to weighted sums of the pieces: float64 [S(, k)]."""
        if self.segments is None:
            sums = values.sum(1, dtype=torch.float64)
        else:
            sums = torch.zeros(
                len(self.documents) + 1, *values.shape[2:], dtype=torch.float64, device=values.device
            )
            sums.index_add_(0, self.segments.flatten(), values.flatten(0, 1).double())
            sums = sums[:-1]
        return sums * (self.weights if values.dim() == 2 else self.weights[:, None])

    @property
    def tokens(self) -> int:
        """Tokens read, padding included: what the pass costs."""
        return self.input_ids.numel()


def cut_rows(documents: Sequence[Tokenized], context: int, windows: Windows) -> list[Row]:
    """Rows of at most `context` input tokens.

    windows : "first" keeps the first `context` targets of a document and leaves the rest out; "all" goes on
              with further rows, each of which starts without what came before. Each target is in exactly
              one row.
    """
    rows = []
    for index, document in enumerate(documents):
        length = len(document.ids)
        for start in range(0, length - 1, context):
            rows.append(Row(index, start, min(start + context + 1, length)))
            if windows == "first":
                break
    return rows


def target_counts(documents: Sequence[Tokenized], rows: Sequence[Row]) -> np.ndarray:
    """Scored targets of each document, int64 [n]: the s_x of Eq. 6."""
    counts = np.zeros(len(documents), dtype=np.int64)
    for row in rows:
        counts[row.document] += row.tokens
    return counts


def plan_batches(rows: Sequence[Sequence[Row]], batch_tokens: int) -> list[list[Sequence[Row]]]:
    """Rows of similar length together, at most `batch_tokens` tokens with padding (one row at least)."""
    batches: list[list[Sequence[Row]]] = []
    for row in sorted(rows, key=lambda r: (row_tokens(r), r[0].document, r[0].start)):
        if batches and row_tokens(row) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def row_tokens(row: Sequence[Row]) -> int:
    """Tokens of a row's pieces together."""
    return sum(piece.tokens for piece in row)


def pack_rows(rows: Sequence[Row], context: int) -> list[list[Row]]:
    """Rows of at most `context` tokens made of whole pieces: the longest first, each into the fullest that fits.

    >>> [[r.tokens for r in row] for row in pack_rows([Row(i, 0, n + 1) for i, n in enumerate((3, 7, 2))], 10)]
    [[7, 3], [2]]
    """
    packed: list[list[Row]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), in rising order
    for row in sorted(rows, key=lambda r: (-r.tokens, r.document, r.start)):
        at = bisect_left(room, (row.tokens, -1))
        if at == len(room):
            packed.append([row])
            insort(room, (context - row.tokens, len(packed) - 1))
            continue
        left, index = room.pop(at)
        packed[index].append(row)
        insort(room, (left - row.tokens, index))
    return packed


def make_batch(
    documents: Sequence[Tokenized],
    rows: Sequence[Sequence[Row]],
    weights: Sequence[float],
    device: torch.device,
) -> RowBatch:
    """Pad `rows`, each of one or more pieces, into one batch; `weights` are of one target of each piece."""
    width = max(sum(piece.tokens for piece in row) for row in rows)
    pieces = [piece for row in rows for piece in row]
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    positions = torch.arange(width).repeat(len(rows), 1)
    segments = torch.full((len(rows), width), len(pieces), dtype=torch.int64)
    number = 0
    for at, row in enumerate(rows):
        begin = 0
        for piece in row:
            tokens = torch.as_tensor(
                np.asarray(documents[piece.document].ids[piece.start : piece.stop], dtype=np.int64)
            )
            end = begin + piece.tokens
            ids[at, begin:end], labels[at, begin:end] = tokens[:-1], tokens[1:]
            positions[at, begin:] -= int(positions[at, begin])
            segments[at, begin:end] = number
            begin, number = end, number + 1
    return RowBatch(
        ids.to(device),
        labels.to(device),
        positions.to(device),
        torch.tensor(weights, dtype=torch.float64).to(device),
        tuple(piece.document for piece in pieces),
        segments.to(device) if len(pieces) > len(rows) else None,
    )


class BatchPlan:
    """Documents, their rows and weights; iterate over it to get the batches.

    reduction : "mean" makes the loss of a document the mean over its targets (the natural reading of the
                paper, which multiplies by the token count in Eq. 6), "sum" their sum, "corpus" the share of
                the document in the mean over all targets of all documents.
    pack      : put several pieces into one row, for models that keep them apart (RowBatch.segments)
    """

    def __init__(
        self,
        documents: Sequence[Tokenized],
        *,
        context: int,
        windows: Windows,
        reduction: Literal["mean", "sum", "corpus"],
        batch_tokens: int,
        device: torch.device,
        pack: bool = False,
    ) -> None:
        self.documents, self.device = documents, device
        rows = cut_rows(documents, context, windows)
        self.counts = target_counts(documents, rows)
        self.cut = [
            d.id for d, n in zip(documents, self.counts, strict=True) if n < len(d.ids) - 1
        ]  # documents of which only the first `context` targets count
        total = max(int(self.counts.sum()), 1)
        weight = {"mean": 1.0 / np.maximum(self.counts, 1), "sum": np.ones(len(documents))}
        self._weights = weight.get(reduction, np.full(len(documents), 1.0 / total))
        packed = pack_rows(rows, context) if pack else [[row] for row in rows]
        self._batches = plan_batches(packed, batch_tokens)

    @property
    def targets(self) -> int:
        """Targets of all documents."""
        return int(self.counts.sum())

    @property
    def read_tokens(self) -> int:
        """Tokens of one pass, padding included."""
        return sum(len(batch) * max(row_tokens(row) for row in batch) for batch in self._batches)

    def with_starts(self) -> Iterator[tuple[RowBatch, int]]:
        """The batches of a plan with one row in each, and where in its document the row starts."""
        for rows, batch in zip(self._batches, self, strict=True):
            yield batch, rows[0][0].start

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max((row_tokens(row) for batch in self._batches for row in batch), default=0)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[RowBatch]:
        for rows in self._batches:
            weights = [float(self._weights[piece.document]) for row in rows for piece in row]
            yield make_batch(self.documents, rows, weights, self.device)


def check_vocabulary(documents: Sequence[Tokenized], vocabulary: int) -> None:
    """DataError that names a document whose token ids the model does not have."""
    for document in documents:
        ids = np.asarray(document.ids)
        if len(ids) and (int(ids.max()) >= vocabulary or int(ids.min()) < 0):
            raise DataError(
                f"Document {document.id!r} has token {int(ids.max())}, outside the {vocabulary} of the model",
                where=f"source {document.source}",
                remedy="Tokenise the documents with the tokenizer that the model was trained with",
            )


def spread_over_sources(documents: Sequence[Tokenized], count: int) -> list[int]:
    """Indices of `count` documents, the sources in turn and each source at even spacing; a pure function.

    >>> docs = [SampleDocument(str(i), "ab"[i // 4], np.arange(3)) for i in range(8)]
    >>> spread_over_sources(docs, 4)
    [0, 2, 4, 6]
    """
    groups: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        if len(document.ids) > 1:
            groups.setdefault(document.source, []).append(index)
    share = dict.fromkeys(sorted(groups), 0)
    left = min(count, sum(map(len, groups.values())))
    while left:
        for name in share:
            if left and share[name] < len(groups[name]):
                share[name] += 1
                left -= 1
    chosen = []
    for name, wanted in share.items():
        group = groups[name]
        chosen += [group[at * len(group) // wanted] for at in range(wanted)]
    return sorted(chosen)
