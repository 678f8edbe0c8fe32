"""Packed rows read document by document: for models, and lengths, that cannot take a mask of tokens x tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

LONG_ROW = 1024  # tokens beyond which a CPU reads the documents of a packed row one by one
Span = tuple[int, int, int]  # row, first token, token after the last


def by_documents(read: Callable[[Tensor, Tensor], Tensor], input_ids: Tensor, document_ids: Tensor) -> Tensor:
    """Hidden states [B, T, D] of packed rows, each document read in a row of its own; 0 for padding.

    read         : (ids [N, L], lengths [N]) -> hidden states [N, L, D]; rows are padded on the right with 0
    document_ids : int64 [B, T], the tokens of a document stand together; negative is padding

    Documents are read in the order of their lengths, as many at a time as the packed rows have tokens, so that
    neither padding nor memory grows beyond that of the rows.
    """
    spans = sorted(document_spans(document_ids), key=lambda span: (span[2] - span[1], span))
    most = max(input_ids.numel(), 1)
    hidden, rows, columns = [], [], []
    group: list[Span] = []
    for at, span in enumerate(spans):
        group.append(span)
        following = spans[at + 1][2] - spans[at + 1][1] if at + 1 < len(spans) else most
        if (len(group) + 1) * following <= most:
            continue
        lengths = torch.tensor([stop - start for _, start, stop in group])
        ids = input_ids.new_zeros(len(group), int(lengths.max()))
        for place, (row, start, stop) in enumerate(group):
            ids[place, : stop - start] = input_ids[row, start:stop]
            rows.append(torch.full((stop - start,), row))
            columns.append(torch.arange(start, stop))
        found = read(ids, lengths.to(ids.device))
        hidden += [found[place, :length] for place, length in enumerate(lengths.tolist())]
        group = []
    if not hidden:
        raise ValueError("the rows hold no document")
    values = torch.cat(hidden)
    places = torch.cat(rows).to(values.device), torch.cat(columns).to(values.device)
    return values.new_zeros(*input_ids.shape, values.shape[-1]).index_put(places, values)


def document_spans(document_ids: Tensor) -> list[Span]:
    """Where the documents of packed rows [B, T] lie.

    >>> document_spans(torch.tensor([[0, 0, 1, -1], [4, 4, 4, 4]]))
    [(0, 0, 2), (0, 2, 3), (1, 0, 4)]
    """
    spans: list[Span] = []
    for row, ids in enumerate(document_ids.cpu()):
        ends = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), len(ids)]
        spans += [(row, start, stop) for start, stop in pairwise(ends) if ids[start] >= 0]
    return spans
