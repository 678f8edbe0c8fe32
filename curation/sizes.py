"""How large documents are, as score tables like any other: tokens where there is a tokenizer, else bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from curation.documents import Document
from curation.errors import DataError
from curation.score_tables import model_fingerprint

AT_ONCE = 256


@dataclass(frozen=True)
class ByteCount:
    """Scorer of the UTF-8 bytes of each document; column `bytes`."""

    name: str = "bytes"
    columns: tuple[str, ...] = ("bytes",)

    def fingerprint(self) -> dict[str, Any]:
        return {"counts": "UTF-8 bytes"}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        return {"bytes": np.array([len(d.text.encode()) for d in documents], dtype=np.int64)}


@dataclass(frozen=True)
class TokenCount:
    """Scorer of the tokens of each document, without special ones; column `tokens`.

    tokenizer : folder of a fast tokenizer (`tokenizer.json`)
    """

    tokenizer: str
    name: str = "tokens"
    columns: tuple[str, ...] = ("tokens",)

    def fingerprint(self) -> dict[str, Any]:
        return {"tokenizer": model_fingerprint(self.tokenizer)}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        tokenizer = _load(self.tokenizer, str(model_fingerprint(self.tokenizer)))
        counts: list[int] = []
        for start in range(0, len(documents), AT_ONCE):
            texts = [document.text for document in documents[start : start + AT_ONCE]]
            counts += [len(row) for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return {"tokens": np.array(counts, dtype=np.int64)}


@lru_cache(maxsize=2)
def _load(folder: str, stamp: str) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    except Exception as error:  # the library raises bare exceptions
        raise DataError(
            f"The tokenizer cannot be loaded: {str(error).splitlines()[0].rstrip('.')}",
            where=folder,
            remedy="Give a folder with a `tokenizer.json`",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
