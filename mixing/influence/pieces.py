"""A document's tokens as pieces of text with their values, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8: a byte-level tokenizer may cut it into as many tokens."""


def text_pieces(tokenizer: Any, ids: Sequence[int] | np.ndarray, values: np.ndarray) -> list[list[Any]]:
    """[[text, value], ...]: the text of each token beside its value; joined, the text of all of them.

    tokenizer : of transformers; values float [tokens]
    Tokens that are parts of one character are one piece with the sum of their values. Bytes that are no
    character are U+FFFD, as the tokenizer shows them.
    """
    pieces: list[list[Any]] = []
    held: list[int] = []
    total = 0.0
    for token, value in zip(ids, values, strict=True):
        held.append(int(token))
        total += float(value)
        text = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(held) < LONGEST_CHARACTER:
            continue
        pieces.append([text, total])
        held, total = [], 0.0
    if held:
        text = tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        pieces.append([text, total])
    return pieces
