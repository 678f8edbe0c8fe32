"""What a scorer is: a model with its settings that gives each document some numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from curation.documents import Document

ColumnKind = Literal["float32", "bool", "int64", "string"]
_COLUMN_KINDS: dict[str, ColumnKind] = {
    "truncated": "bool",
    "bounded": "bool",
    "tokens": "int64",
    "bytes": "int64",
    "language": "string",
}


def column_kind(name: str) -> ColumnKind:
    """What a score column of this name holds, whoever writes it."""
    return _COLUMN_KINDS.get(name, "float32")


class Scorer(Protocol):
    """A model with its settings. It must pickle, and load its model only when `score` is first called.

    name    : file name of its tables; scorers of one run have different names
    columns : the columns that `score` returns: float32, or what `column_kind` says of the name
    """

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able: everything that the scores depend on besides the texts."""
        ...

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        """Arrays [n] in the order of `documents`, finite."""
        ...
