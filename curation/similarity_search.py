"""All pairs of unit vectors whose cosine may reach a threshold: a rough product finds them, float64 decides.

The rough product is bfloat16 where the processor has instructions for it and float32 elsewhere. Its error is
bounded, not guessed: |x.y - x'.y'| <= |x - x'| |y| + |x'| |y - y'| by Cauchy and Schwarz, with the lengths |x - x'|
of the rounding errors computed for the rows at hand, plus the rounding of sums and results. Pairs below the
threshold by more than that are passed over; all others are computed in float64, each as one row's own sum. So what
is found depends neither on the machine nor on how the work was divided.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from curation.precision import fast_bfloat16

STRIPE = 2048
"""Columns of one rough product: a tile of it stays in the cache until it is searched."""
_PAIRS_AT_ONCE = 4096
TOLERANCE = 1e-6
"""Unit vectors of float32 have a length of 1 to seven digits: a copy must reach a threshold of 1."""


class RoughVectors:
    """`vectors`, float32 [n, dim], rounded for the search, and how far a product of two may be off (`band`).

    rough : bfloat16 or float32; by default what the machine multiplies fastest
    """

    def __init__(self, vectors: np.ndarray, *, rough: torch.dtype | None = None) -> None:
        self.exact = vectors
        self.dtype = rough or (torch.bfloat16 if fast_bfloat16() else torch.float32)
        self.rows = torch.empty(vectors.shape, dtype=self.dtype)
        error = 0.0
        for start in range(0, len(vectors), STRIPE):  # in pieces: `vectors` may be a file larger than memory
            piece = torch.from_numpy(np.array(vectors[start : start + STRIPE], dtype=np.float32))
            rounded = piece.to(self.dtype)
            self.rows[start : start + STRIPE] = rounded
            if len(piece):
                error = max(error, float((piece - rounded.float()).norm(dim=1).max()))
        sums = vectors.shape[1] * 2.0**-23 if vectors.ndim == 2 else 0.0
        result = 2.0**-8 if self.dtype == torch.bfloat16 else 0.0
        self.band = 2.01 * error + 2 * sums + result + TOLERANCE


def candidates(
    vectors: RoughVectors,
    rows: np.ndarray,
    others: np.ndarray,
    threshold: float,
    map_: Callable[..., Any] = map,
) -> tuple[np.ndarray, np.ndarray]:
    """(row, other) of every pair that may reach `threshold`, as row numbers of `vectors`.

    rows, others : row numbers, rising; runs without gaps are not copied
    map_         : of a thread pool; stripes of `others` are searched side by side
    """
    left = _take(vectors.rows, rows)
    least = threshold - vectors.band
    stripes = [others[first : first + STRIPE] for first in range(0, len(others), STRIPE)]
    found = list(map_(lambda stripe: _hits(left, _take(vectors.rows, stripe), least), stripes))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([rows[near] for near, _ in found]),
        np.concatenate([stripe[far] for stripe, (_, far) in zip(stripes, found, strict=True)]),
    )


def cosines(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products in float64 of the rows `first` and `second`, in bounded memory, at most 1."""
    out = np.empty(len(first), dtype=np.float64)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        piece = slice(start, start + _PAIRS_AT_ONCE)
        products = vectors[first[piece]].astype(np.float64) * vectors[second[piece]].astype(np.float64)
        out[piece] = products.sum(axis=1)
    return np.minimum(out, 1.0)


def threads(workers: int) -> AbstractContextManager[Any]:
    """A pool of `workers` threads whose products use one thread each, or None for one worker."""
    if workers <= 1:
        return nullcontext()
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def _take(rows: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    if len(index) and index[-1] - index[0] + 1 == len(index):
        return rows[int(index[0]) : int(index[-1]) + 1]
    return rows[torch.from_numpy(index)]


def _hits(left: torch.Tensor, right: torch.Tensor, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Places where the product reaches `least`, row by row."""
    with torch.inference_mode():
        product = left @ right.T
    if product.dtype == torch.bfloat16:
        # As whole numbers, bfloat16 values above 0 have their own order, and numpy searches them 40 times as fast.
        values = product.view(torch.int16).numpy()
        limit: Any = _bits_not_above(least)
        if least <= 0:
            return np.nonzero(product.float().numpy() >= least)  # type: ignore[return-value]
    else:
        values, limit = product.numpy(), least
    some = np.flatnonzero(values.max(axis=1) >= limit)
    near, far = np.nonzero(values[some] >= limit)
    return some[near], far


def _bits_not_above(value: float) -> int:
    """The bits of the largest bfloat16 that is not above `value`, which is positive."""
    return int(np.float32(value).view(np.int32)) >> 16 if value > 0 else 0
