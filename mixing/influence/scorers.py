"""What the engines share: a scorer gives the derivative of each row's loss along each direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from curation.errors import DataError
from mixing.influence.adapters import LossAdapter
from mixing.influence.documents import BatchPlan, RowBatch

Vectors = dict[str, Tensor]  # parameter name -> a tensor of its shape; a missing name means zeros


class Scorer(Protocol):
    """`rows` gives float64 [S, k]: the weighted derivative of each piece of a batch along each of k directions.

    packs : whether a row may hold several pieces
    """

    name: str
    packs: bool

    def rows(self, batch: RowBatch) -> Tensor: ...

    @property
    def forwards(self) -> float:
        """What one token costs, in forward passes."""
        ...


class UnknownLayerError(Exception):
    """An engine that needs to know each layer has met one that it does not."""


def score_plan(scorer: Scorer, plan: BatchPlan, directions: int, advance=None) -> np.ndarray:
    """Derivatives of every document of `plan` along each direction, float64 [n, k], in their order."""
    total = np.zeros((len(plan.documents), directions))
    for batch in plan:
        values = scorer.rows(batch).cpu().numpy()
        for at, document in enumerate(batch.documents):
            if not np.isfinite(values[at]).all():
                found = plan.documents[document]
                raise DataError(
                    f"The loss of document {found.id!r} or its derivative is not finite",
                    where=f"source {found.source}",
                    remedy="Look at the checkpoint: its training may have diverged",
                )
            total[document] += values[at]
        if advance is not None:
            advance(batch.tokens)
    return total


def weigh(tokens: Tensor, batch: RowBatch) -> Tensor:
    """Token values [B, T] (0 on padding) to weighted sums of the pieces, float64 [S]."""
    return batch.by_document(tokens)


def named_for(adapter: LossAdapter, vectors: Vectors) -> Vectors:
    """`vectors` under the names that the parameters have inside the adapter, in their precision."""
    own = adapter.named()
    return {f"model.{n}": v.to(device=own[n].device, dtype=own[n].dtype) for n, v in vectors.items()}


def norm(vectors: Vectors) -> float:
    """Euclidean length over all parameters, summed in float64."""
    return float(sum(v.double().square().sum().item() for v in vectors.values())) ** 0.5


def dot(left: Vectors, right: Vectors) -> float:
    """Inner product over the names that both have, summed in float64."""
    return float(sum((left[n].double() * right[n].double()).sum().item() for n in left if n in right))


def scaled(vectors: Vectors, factor: float) -> Vectors:
    """Every tensor times `factor`."""
    return {name: vector * factor for name, vector in vectors.items()}


def check_directions(directions: Sequence[Vectors]) -> None:
    """DataError when a direction is zero or not finite: every benefit along it would be."""
    for vectors in directions:
        length = norm(vectors)
        if not np.isfinite(length) or length == 0.0:
            raise DataError(
                "A probe direction is zero or not finite"
                if length == 0.0
                else "A probe direction is not finite",
                remedy="Look at the probe set and at the checkpoint's loss on it",
            )
