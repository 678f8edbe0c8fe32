"""DoReMi (Xie et al., 2023, arXiv 2305.10429, Algorithm 1): domain weights by group distributionally robust training.

    lambda_j = mean over the tokens of source j in the batch of max(loss_proxy - loss_reference, 0)
    log a_j += eta lambda_j,   a = softmax(log a),   a = (1 - c) a + c / m
    the proxy's loss: sum_j a_j (mean loss of the tokens of source j) / sum of a_j over the sources in the batch
    weights: the mean of a over all updates

As in the released script a source that a batch lacks keeps its last lambda. Where we differ: the script adds up
weighted token losses and divides by the sum of the weights; here each source's mean counts by its weight, as the
paper writes it. No probe is asked: the weights serve whatever the sources themselves hold.

Everything is numpy in float64; what trains and calls it hands in losses in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from curation.errors import DataError, RecipeError

ONE_HOT = 0.9
DRIFT = 0.05
ETA = 1.0
SMOOTHING = 1e-3


@dataclass(frozen=True)
class DomainWeights:
    """Where the weights stand after `updates` updates.

    current [m] = a; total [m] = sum of a over the updates; excess [m] = each source's last lambda
    """

    current: np.ndarray
    total: np.ndarray
    excess: np.ndarray
    updates: int = 0

    @property
    def average(self) -> np.ndarray:
        """The result: the time average of a; the start before any update."""
        return self.total / self.updates if self.updates else self.current


def start_weights(sources: int) -> DomainWeights:
    """Uniform weights before the first update."""
    if sources < 1:
        raise RecipeError("DoReMi needs a source", where="sources", remedy="Name one or more")
    return DomainWeights(np.full(sources, 1 / sources), np.zeros(sources), np.zeros(sources))


def excess_losses(
    proxy: np.ndarray, reference: np.ndarray, source: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """lambda [m]: mean clipped excess of each source's tokens, and its `last` [m] where it has none.

    proxy, reference : losses of the batch's tokens [n], nats; source : the number of each token's source [n]
    Example: tokens of source 0 with (3, 1) against (1, 2): (2 + 0) / 2 = 1. Raises DataError for losses that are
    not finite.
    """
    if not (np.all(np.isfinite(proxy)) and np.all(np.isfinite(reference))):
        raise DataError(
            "A loss of the proxy or of the reference model is not finite",
            where="DoReMi",
            remedy="Lower the learning rate, or train the reference model again",
        )
    clipped = np.maximum(proxy.astype(np.float64) - reference.astype(np.float64), 0.0)
    counts = np.bincount(source, minlength=len(last))
    sums = np.bincount(source, weights=clipped, minlength=len(last))
    return np.where(counts > 0, sums / np.maximum(counts, 1), last)


def update_weights(
    weights: DomainWeights, excess: np.ndarray, *, eta: float = ETA, smoothing: float = SMOOTHING
) -> DomainWeights:
    """One update of a by lambda [m].

    Example: a = (1/2, 1/2), lambda = (log 3, 0), eta = 1, c = 0: a = (3/4, 1/4).
    """
    if not eta > 0 or not 0 <= smoothing <= 1:
        raise RecipeError(
            f"DoReMi cannot use eta {eta:g} and smoothing {smoothing:g}",
            where="eta, smoothing",
            remedy="Give a positive eta, and a smoothing from 0 to 1",
        )
    with np.errstate(divide="ignore"):
        logs = np.log(weights.current) + eta * excess
    raised = np.exp(logs - logs.max())
    current = (1 - smoothing) * raised / raised.sum() + smoothing / len(raised)
    return replace(
        weights,
        current=current,
        total=weights.total + current,
        excess=np.asarray(excess, dtype=np.float64),
        updates=weights.updates + 1,
    )


def token_weights(current: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Weight [n] of each token's loss in the proxy's loss; they sum to 1.

    Example: a = (3/4, 1/4), two tokens of source 0 and one of source 1: (3/8, 3/8, 1/4).
    """
    counts = np.bincount(source, minlength=len(current))
    present = current * (counts > 0)
    if present.sum() <= 0:
        raise DataError("The batch holds no token of a source with weight", where="DoReMi")
    return (present / present.sum() / np.maximum(counts, 1))[source]


def stability(history: np.ndarray, sources: Sequence[str]) -> tuple[str, ...]:
    """Sentences about the course of a [updates, m]: what makes the average a number not to be trusted."""
    average = history.mean(axis=0)
    notes = []
    top = int(np.argmax(average))
    if average[top] > ONE_HOT and len(sources) > 1:
        notes.append(
            f"Nearly all weight ({average[top]:.2f}) went to {sources[top]}: try a smaller eta, larger batches that "
            "hold every source, or a reference mixture by size"
        )
    half = len(history) // 2
    if half:
        moved = float(np.abs(history[:half].mean(axis=0) - history[half:].mean(axis=0)).sum() / 2)
        if moved > DRIFT:
            notes.append(
                f"The weights still move: the averages of the two halves differ in {moved:.0%} of the tokens; "
                "train longer, or repeat with the found weights as reference"
            )
    return tuple(notes)
