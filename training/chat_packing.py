"""Chats packed into rows, and rows as tensors: a token sees its own chat only, at the positions it would have alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from curation.errors import DataError
from training.chat import RenderedChat
from training.losses import IGNORED
from training.order import Batch
from training.packing import seeded_permutation

OPEN_ROWS = 64  # not yet full, among which a chat looks for its place


def pack_chats(lengths: Sequence[int], row_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Rows of chat indices, of at most `row_tokens` tokens each, for one epoch; every chat stands in exactly
    one.

    The chats come in the epoch's random order and each goes into the fullest open row that still holds it.
    The rows are then shuffled, because fuller ones are closed first.

    >>> pack_chats([6, 5, 4, 3], 10, seed=0, epoch=0)
    [[0], [1], [2, 3]]
    """
    closed: list[list[int]] = []
    rows: list[tuple[int, list[int]]] = []  # free tokens, chats
    for chat in seeded_permutation(len(lengths), seed, "chats", epoch).tolist():
        fitting = [at for at, (free, _) in enumerate(rows) if free >= lengths[chat]]
        if fitting:
            at = min(fitting, key=lambda at: (rows[at][0], at))
            free, chats = rows.pop(at)
        else:
            free, chats = row_tokens, []
        rows.append((free - lengths[chat], [*chats, chat]))
        if len(rows) > OPEN_ROWS:
            fullest = min(range(len(rows)), key=lambda at: (rows[at][0], at))
            closed.append(rows.pop(fullest)[1])
    closed += [chats for _, chats in rows]
    return [closed[at] for at in seeded_permutation(len(closed), seed, "rows", epoch).tolist()]


def chat_batch(chats: Sequence[RenderedChat], rows: Sequence[Sequence[int]], row_tokens: int) -> Batch:
    """Rows of chats as int64 tensors [rows, row_tokens].

    labels hold the next token where the assistant said it and -100 elsewhere; positions restart with each
    chat; document_ids number the chats of a row, -1 is padding (on the right, cut to what the fullest row
    needs).
    """
    used = max((sum(len(chats[index].ids) - 1 for index in row) for row in rows), default=0)
    shape = (len(rows), min(max(used, 1), row_tokens))
    input_ids, positions = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    labels, document_ids = torch.full(shape, IGNORED), torch.full(shape, -1)
    for at, row in enumerate(rows):
        start = 0
        for number, index in enumerate(row):
            chat = chats[index]
            ids, said = torch.tensor(chat.ids), torch.tensor(chat.assistant)
            stop = start + len(ids) - 1
            input_ids[at, start:stop] = ids[:-1]
            labels[at, start:stop] = torch.where(said[1:], ids[1:], IGNORED)
            positions[at, start:stop] = torch.arange(len(ids) - 1)
            document_ids[at, start:stop] = number
            start = stop
    return Batch(input_ids, labels, positions, document_ids)


def check_labels(batch: Batch) -> None:
    """Raise DataError when every label is masked: the loss would be 0 and teach nothing, silently."""
    if bool((batch.labels == IGNORED).all()):
        raise DataError(
            "Every label of this batch is masked, so there is nothing to learn from it",
            where="sft",
            remedy="Check that the chats have assistant turns, and that cut ones keep some of them",
        )
