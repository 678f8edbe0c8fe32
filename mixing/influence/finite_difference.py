"""Directional derivatives from differences of losses: forward passes only, one extra copy of the weights.

benefit = [L(theta + h u) - L(theta - h u)] / 2h times |v|, with u = v / |v| (Mirrored influence, arXiv
2402.08922, is the one-sided form along a whole optimiser step). The error is of order h^2 (central) or h
(one-sided) plus the rounding of the losses over h, so it needs float32 or better. Differences are taken
token by token and summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from mixing.influence.adapters import DecoderAdapter, LossAdapter
from mixing.influence.decoder_forward import DecoderLosses, unknown
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import Vectors, named_for, norm, weigh

Side = Literal["central", "one"]
# Lengths of the step in parameter space that are tried, the likeliest first.
STEPS: dict[torch.dtype, tuple[float, ...]] = {
    torch.float64: (1e-4, 1e-3, 1e-5),
    torch.float32: (1e-2, 3e-3, 3e-2, 1e-3),
}


class FiniteDifference:
    """2 F for each direction (central), or 1 F and another for all together (one-sided).

    The moved weights are made once: one copy of the moved parameters for each step away from the checkpoint, of our
    decoder ready for `DecoderLosses`.
    """

    def __init__(
        self, adapter: LossAdapter, directions: Sequence[Vectors], step: float, side: Side = "central"
    ) -> None:
        self.adapter, self.step, self.side, self.packs = adapter, step, side, adapter.packs
        self.name = "finite_difference" if side == "central" else "finite_difference_one_sided"
        self.lengths = [norm(vectors) for vectors in directions]
        tangents = [named_for(adapter, vectors) for vectors in directions]
        own = dict(adapter.named_parameters())
        ways = (step, -step) if side == "central" else (step,)
        with torch.no_grad():
            self._moved = [
                [
                    self._losses({n: torch.add(own[n], v, alpha=way / length) for n, v in t.items()})
                    for way in ways
                ]
                for t, length in zip(tangents, self.lengths, strict=True)
            ]
            self._here = self._losses({}) if side == "one" else None

    def _losses(self, moved: Vectors) -> Callable[[RowBatch], Tensor]:
        """Nats of each target with some parameters (named as in the adapter) in the place of the model's."""
        if not isinstance(self.adapter, DecoderAdapter) or unknown(self.adapter.model):
            return lambda batch: functional_call(self.adapter, moved, (batch,))
        own = {n: moved.get(f"model.{n}", p.detach()) for n, p in self.adapter.named().items()}
        return DecoderLosses(self.adapter.model, own)

    @property
    def forwards(self) -> float:
        return 2.0 * len(self.lengths) if self.side == "central" else 1.0 + len(self.lengths)

    @torch.no_grad()
    def token_derivatives(self, batch: RowBatch, direction: int, base: Tensor | None) -> Tensor:
        """Derivative of each target's own loss [B, T], float64; `base` are the losses at the checkpoint, one-sided."""
        losses = [moved(batch).double() for moved in self._moved[direction]]
        if self.side == "central":
            ahead, behind = losses
            return (ahead - behind) * (self.lengths[direction] / (2 * self.step))
        assert base is not None
        return (losses[0] - base.double()) * (self.lengths[direction] / self.step)

    @torch.no_grad()
    def rows(self, batch: RowBatch) -> Tensor:
        base = None if self._here is None else self._here(batch)
        parts = [weigh(self.token_derivatives(batch, k, base), batch) for k in range(len(self.lengths))]
        return torch.stack(parts, -1)
