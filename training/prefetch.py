"""Batches that are ready when a GPU wants them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch

from training.order import Batch

Make = Callable[[int, int], Batch]


class BatchesAhead:
    """`make(first, count)`, with the batch after it made meanwhile by a thread, in pinned memory.

    While a GPU computes, its process mostly waits, so the next batch costs nothing, and its copy to the device
    overlaps with the last kernels. On a CPU both would want the same core: there, batches are made when asked
    for. Which batch comes does not depend on it: one that was not foreseen is made on the spot.

    stride : sequences from the first of a batch to the first of the next one
    """

    def __init__(self, make: Make, stride: int, device: torch.device) -> None:
        self._make, self._stride = make, stride
        self._pin = device.type == "cuda"
        self._pool = ThreadPoolExecutor(1, "batches") if device.type != "cpu" else None
        self._next: tuple[tuple[int, int], Future[Batch]] | None = None

    def __call__(self, first: int, count: int) -> Batch:
        """The batch of `count` sequences from `first`; errors in making it are raised here."""
        if self._pool is None:
            return self._make(first, count)
        foreseen, self._next = self._next, None
        if foreseen is not None and foreseen[0] != (first, count):
            foreseen[1].exception()  # `make` need not bear two threads
            foreseen = None
        batch = self._ready(first, count) if foreseen is None else foreseen[1].result()
        wanted = (first + self._stride, count)
        # Beyond the end of the schedule there is no batch; its error waits with it, and nobody asks.
        self._next = wanted, self._pool.submit(self._ready, *wanted)
        return batch

    def close(self) -> None:
        """Make no more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _ready(self, first: int, count: int) -> Batch:
        batch = self._make(first, count)
        if not self._pin:
            return batch
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
        pinned: dict[str, Any] = {
            name: value.pin_memory() for name, value in tensors.items() if torch.is_tensor(value)
        }
        return replace(batch, **pinned)
