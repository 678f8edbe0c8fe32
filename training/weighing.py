"""Losses whose tokens do not count alike: a weigher looks at a batch before each update and weighs its tokens.

What it learns on the way (DoReMi's domain weights) it puts into the update's row of the log, and finds there again
when a killed run continues. The log holds every row up to a checkpoint, so that needs no file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from training.model import Decoder
from training.order import Batch


class BatchWeigher(Protocol):
    """Weighs the tokens of batches, one after another."""

    def describe(self) -> Mapping[str, Any]:
        """All that the weights depend on beside model and data, for JSON; a run is not continued with another."""
        ...

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Stand where the rows of the log, those of all updates so far, leave it."""
        ...

    def weigh(self, model: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Weights [B, T] of the tokens, which sum to 1 and are 0 without a label, and columns of the log's row."""
        ...
