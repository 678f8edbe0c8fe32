"""The exact reference: forward-mode derivatives of every token's loss (torch.func.jvp)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from mixing.influence.adapters import LossAdapter
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import Vectors, named_for, weigh


class ForwardMode:
    """d/de loss(theta + e v) at e = 0. Nothing is approximated and no layer has to be known; 3 F for one
    direction.

    Attention must be made of plain operations: use it within `adapter.plain_attention()`, as `score` does.
    """

    name = "forward"

    def __init__(self, adapter: LossAdapter, directions: Sequence[Vectors]) -> None:
        self.adapter, self.packs = adapter, adapter.packs
        self.tangents = [named_for(adapter, vectors) for vectors in directions]

    @property
    def forwards(self) -> float:
        return 3.0 * len(self.tangents)

    def token_derivatives(self, batch: RowBatch, direction: int) -> Tensor:
        """Derivative of each target's own loss [B, T]: what a colouring of a document shows."""
        tangents = self.tangents[direction]
        own = dict(self.adapter.named_parameters())
        at = {name: own[name].detach() for name in tangents}

        def losses(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(self.adapter, parameters, (batch,), {"plain": True})

        with torch.no_grad(), self.adapter.plain_attention():
            return jvp(losses, (at,), (tangents,))[1]

    def rows(self, batch: RowBatch) -> Tensor:
        parts = [weigh(self.token_derivatives(batch, k), batch) for k in range(len(self.tangents))]
        return torch.stack(parts, -1)
