"""What a step of a run reads, listed without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from curation.errors import RecipeError
from training.order import DataOrder

SNIPPET_TOKENS = 48


def list_step(
    order: DataOrder,
    step: int,
    batch_sequences: int,
    *,
    ranks: int = 1,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> list[dict[str, Any]]:
    """The sequences that update `step`, from 0, reads, as `DataOrder.describe` gives them, with their rank.

    ranks  : of a run on several processes, rank r of R reads the r-th of R equal stretches of the batch
    decode : from token ids to text; gives every document the `text` with which its piece begins
    Raises RecipeError for a step that the schedule does not have, and ranks that do not divide the batch.
    """
    if ranks < 1 or batch_sequences % ranks:
        raise RecipeError(
            f"{ranks} ranks cannot share a batch of {batch_sequences} sequences evenly",
            where="ranks",
            remedy="Choose a number of ranks that divides the batch",
        )
    first = step * batch_sequences
    if step < 0 or first + batch_sequences > order.sequences:
        last = order.sequences // batch_sequences - 1
        raise RecipeError(f"The training has no step {step}", where="step", remedy=f"Its last step is {last}")
    rows = []
    for index in range(first, first + batch_sequences):
        row = order.describe(index)
        row = {"index": index, "rank": (index - first) * ranks // batch_sequences} | row
        if decode is not None:
            tokens = order.sources[row["source"]].tokens
            for document, begin in zip(row["documents"], _starts(order, index), strict=True):
                stop = begin + min(document["tokens"], SNIPPET_TOKENS)
                document["text"] = decode(tokens[begin:stop].tolist())
        rows.append(row)
    return rows


def _starts(order: DataOrder, index: int) -> list[int]:
    """Where in its source each piece of a sequence begins."""
    window = order.window(index)
    offsets = order.sources[window.source].offsets
    return [int(offsets[document]) + start for document, start, _ in window.pieces]
