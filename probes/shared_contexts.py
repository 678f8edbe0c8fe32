"""Continuations of one context, scored with the context run once and its keys and values shared among them.

Contexts that begin alike, such as the questions of a few-shot task with their examples, share the run of that beginning
in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.losses import linear_cross_entropy
from training.model import Decoder, KVCache


@dataclass(frozen=True)
class SharedContext:
    """Token ids [n] of a context, the ids of each continuation (one token or more), and their numbers."""

    context: np.ndarray
    continuations: tuple[np.ndarray, ...]
    numbers: tuple[int, ...]

    @property
    def tail(self) -> int:
        """Most tokens that are fed after the context; the last of a continuation never is."""
        return max(len(ids) for ids in self.continuations) - 1


def score_shared(
    model: Decoder,
    groups: Sequence[SharedContext],
    batch_tokens: int,
    nats: np.ndarray,
    beginning: np.ndarray | None = None,
) -> None:
    """Add the nats of every continuation to `nats` at its number.

    beginning : token ids that all contexts begin with, and that no context ends within; they are run once for all
    """
    begun = None
    if beginning is not None and len(beginning):
        begun = model.new_cache(1, len(beginning), _cache_dtype(model))
        device = model.output_weight.device
        for piece in torch.from_numpy(beginning).to(device)[None].split(max(batch_tokens, 1), dim=1):
            model(piece, cache=begun)
    for batch in _batches(sorted(groups, key=lambda g: -len(g.context)), batch_tokens):
        _score_batch(model, batch, nats, begun)


def _cache_dtype(model: Decoder) -> torch.dtype:
    """Under autocast, keys and values are made in its precision."""
    kind = model.output_weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.output_weight.dtype


def _batches(groups: Sequence[SharedContext], batch_tokens: int) -> Iterator[list[SharedContext]]:
    """Contexts of like length; cells of the cache, after it has been copied for each continuation, are bounded."""
    batch: list[SharedContext] = []
    rows = tail = 0
    for group in groups:
        rows, tail = rows + len(group.continuations), max(tail, group.tail)
        if batch and rows * (len(batch[0].context) + tail) > batch_tokens:
            yield batch
            batch, rows, tail = [], len(group.continuations), group.tail
        batch.append(group)
    if batch:
        yield batch


def _score_batch(model: Decoder, batch: list[SharedContext], nats: np.ndarray, begun: KVCache | None) -> None:
    device = model.output_weight.device
    before = 0 if begun is None else begun.used
    lengths = torch.tensor([len(group.context) for group in batch], device=device)
    tails = [ids[:-1] for group in batch for ids in group.continuations]
    width, tail = len(batch[0].context), max(len(ids) for ids in tails)
    cache = model.new_cache(len(batch), width + tail, None if begun is None else begun.keys.dtype)
    if begun is not None:
        cache.keys[:, :, :, :before], cache.values[:, :, :, :before] = begun.keys, begun.values
        cache.advance(before)
    fed = _padded([group.context[before:] for group in batch], width - before).to(device)
    hidden = model(fed, cache=cache)
    last = hidden[torch.arange(len(batch), device=device), lengths - 1 - before]
    cache.truncate(lengths)
    owner = torch.tensor([g for g, group in enumerate(batch) for _ in group.continuations], device=device)
    after = model(_padded(tails, tail).to(device), cache=cache.select(owner)) if tail else None
    rows, labels, numbers = [], [], []
    everyone = [
        (ids, n) for group in batch for ids, n in zip(group.continuations, group.numbers, strict=True)
    ]
    for row, (ids, number) in enumerate(everyone):
        rows.append(last[owner[row]][None])
        if after is not None:
            rows.append(after[row, : len(ids) - 1])
        labels.append(ids)
        numbers.append(np.full(len(ids), number))
    losses = linear_cross_entropy(
        torch.cat(rows),
        model.output_weight,
        torch.from_numpy(np.concatenate(labels)).to(device),
        reduction="none",
    )
    np.add.at(nats, np.concatenate(numbers), losses.to("cpu", torch.float64).numpy())


def _padded(rows: Sequence[np.ndarray], width: int) -> torch.Tensor:
    """int64 [rows, width], zeros on the right, where nothing that counts can see them."""
    padded = np.zeros((len(rows), width), dtype=np.int64)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return torch.from_numpy(padded)
