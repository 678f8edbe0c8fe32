"""One backward pass per document and a dot product: the slow exact way that asks nothing of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mixing.influence.adapters import LossAdapter
from mixing.influence.documents import BatchPlan, RowBatch
from mixing.influence.scorers import Vectors, dot, weigh


class Explicit:
    """Each piece's own gradient, made, multiplied with every direction, and dropped."""

    name = "explicit"
    packs = True

    def __init__(self, adapter: LossAdapter, directions: Sequence[Vectors]) -> None:
        self.adapter, self.directions = adapter, list(directions)
        self.names = sorted({name for vectors in directions for name in vectors})

    @property
    def forwards(self) -> float:
        return 3.0

    def rows(self, batch: RowBatch) -> Tensor:
        values = torch.zeros(len(batch.documents), len(self.directions), dtype=torch.float64)
        for at in range(len(batch.documents)):
            _, gradient = weighted_gradient(self.adapter, single_row(batch, at), self.names)
            for k, direction in enumerate(self.directions):
                values[at, k] = dot(gradient, direction)
        return values


def single_row(batch: RowBatch, at: int) -> RowBatch:
    """Piece `at` alone, without padding and neighbours."""
    if batch.segments is None:
        mine = (torch.arange(len(batch.labels), device=batch.labels.device) == at)[:, None] & (
            batch.labels >= 0
        )
    else:
        mine = batch.segments == at
    return RowBatch(
        batch.input_ids[mine][None],
        batch.labels[mine][None],
        batch.positions[mine][None],
        batch.weights[at : at + 1],
        batch.documents[at : at + 1],
    )


def weighted_gradient(adapter: LossAdapter, batch: RowBatch, names: Sequence[str]) -> tuple[float, Vectors]:
    """The weighted loss of all rows of `batch` and its gradient with respect to the named parameters."""
    own = adapter.named()
    wanted = [own[name] for name in names]
    before = [p.requires_grad for p in wanted]
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            loss = weigh(adapter(batch), batch).sum()
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        for parameter, flag in zip(wanted, before, strict=True):
            parameter.requires_grad_(flag)
    return float(loss.detach()), {
        n: g.detach() for n, g in zip(names, gradients, strict=True) if g is not None
    }


def document_gradients(adapter: LossAdapter, plan: BatchPlan, names: Sequence[str]) -> Iterator[Vectors]:
    """The gradient of each document of `plan`, one at a time; meant for documents of one row each."""
    for batch in plan:
        for at in range(len(batch.documents)):
            yield weighted_gradient(adapter, single_row(batch, at), names)[1]
