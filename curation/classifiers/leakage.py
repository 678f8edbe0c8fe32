"""Texts of the held-out part that nearly stand in the training part as well."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

WORDS = 5
SKETCH = 32
NEAR = 0.8


def leaked(train: Sequence[str], held_out: Sequence[str]) -> list[int]:
    """Indices of the held-out texts whose runs of five words overlap those of a training text, Jaccard >= 0.8.

    Candidates are found by the 32 smallest hashes of a text's runs (two texts of Jaccard .8 share none of them
    with a chance of about 1e-20) and then compared exactly. A text of under five words is one run.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(train):
        for key in _sketch(text):
            holders[key].append(index)
    found = []
    for index, text in enumerate(held_out):
        own = _runs(text)
        shared = Counter(holder for key in sorted(own)[:SKETCH] for holder in holders.get(key, ()))
        if any(_jaccard(own, _runs(train[holder])) >= NEAR for holder, _ in shared.most_common(5)):
            found.append(index)
    return found


def _runs(text: str) -> set[int]:
    words = text.casefold().split()
    count = max(1, len(words) - WORDS + 1)
    return {zlib.crc32(" ".join(words[start : start + WORDS]).encode()) for start in range(count)}


def _sketch(text: str) -> list[int]:
    return sorted(_runs(text))[:SKETCH]


def _jaccard(first: set[int], second: set[int]) -> float:
    return len(first & second) / len(first | second)
