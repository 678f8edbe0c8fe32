"""Some documents of a tokenized source as a source of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from curation.atomic import hash_value
from training.tokens import ShardedTokens, TokenSource


class ChosenIds(Sequence[str]):
    """The ids of chosen documents of a source."""

    def __init__(self, ids: Sequence[str], chosen: np.ndarray) -> None:
        self._ids, self._chosen = ids, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self._ids[int(at)] for at in self._chosen[key]]
        return self._ids[int(self._chosen[key])]


def choose_documents(source: TokenSource, chosen: np.ndarray) -> TokenSource:
    """A source of the documents with these indices, in the order of the source; their tokens are held in memory."""
    chosen = np.sort(np.asarray(chosen, dtype=np.int64))
    lengths = np.diff(source.offsets)[chosen]
    parts = [np.asarray(source.document(int(at))) for at in chosen]
    return replace(
        source,
        tokens=ShardedTokens([np.concatenate(parts)]),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        ids=ChosenIds(source.ids, chosen),
        text_bytes=source.text_bytes[chosen],
        hash=hash_value([source.hash, hash_value(chosen.tolist())]),
    )
