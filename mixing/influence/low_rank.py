"""Directions of low rank, chosen so that the values, not the matrices, lose little.

What a low rank costs a value is g' (V - V~) x, so what matters of V is what inputs x and output gradients g of real
tokens see of it. With their second moments A = E[x x'] and S = E[g g'], measured on the pilot's documents, and
treated as independent (as K-FAC does), E[(g' V x)^2] = |S^(1/2) V A^(1/2)|^2: the best rank-r approximation in
that measure is the singular value decomposition of the weighted matrix, turned back. Of the two sides of a matrix
the shorter gets its whole second moment, the longer its diagonal, so that the cost is a decomposition of the
shorter side. The directions of several probes share both bases (one after the other: the shorter side's from all
directions, then the longer side's from what is left).

The ranks of all matrices come from one number, the share of the expected square that may be lost: the next basis
vector goes to the matrix where it saves most for what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixing.influence.contraction import Contraction

# Second moments of few documents leave directions of the space unseen: this share of the mean is added to all.
UNSEEN = 1e-3
# A matrix whose low rank costs more than this share of the whole product is left whole.
WORTHWHILE = 0.5


@dataclass
class Moments:
    """Second moments of one matrix's inputs and output gradients: [I, I] or [I] (diagonal), [O, O] or [O]."""

    inputs: Tensor
    outputs: Tensor
    tokens: int


class MomentSums:
    """Gathers `Moments` of each matrix; its `add` is what a pass calls with (name, x [N, I], g [N, O])."""

    def __init__(self) -> None:
        self.found: dict[str, Moments] = {}

    def add(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """One batch of tokens of one matrix."""
        x, gradient = x.float(), gradient.float()
        outward = gradient.shape[-1] <= x.shape[-1]
        inputs = x.square().sum(0) if outward and gradient.shape[-1] < x.shape[-1] else x.T @ x
        outputs = gradient.T @ gradient if outward else gradient.square().sum(0)
        if name not in self.found:
            self.found[name] = Moments(inputs, outputs, len(x))
            return
        entry = self.found[name]
        entry.inputs += inputs
        entry.outputs += outputs
        entry.tokens += len(x)


@dataclass(frozen=True)
class Weighted:
    """The directions of one matrix, weighted by its second moments and rotated to the shorter side's basis.

    columns : [k, longer, shorter], singular directions of the shorter side in falling order
    energy  : expected square of each of them, over the directions' own totals [shorter]
    back    : [shorter, shorter], rows turn the shorter side back;  scale : [longer], divided out of the longer side
    across  : whether the shorter side is the inputs
    """

    whole: Tensor
    columns: Tensor
    energy: Tensor
    onto: Tensor
    scale: Tensor
    across: bool

    def contraction(self, rank: int, lost: float) -> Contraction:
        """Both bases for `rank` of the shorter side; the longer side's drops the share `lost` of what is left."""
        k, rows = self.columns.shape[:2]
        if rank == 0:
            empty = self.whole.new_zeros(1, self.whole.shape[2]), self.whole.new_zeros(self.whole.shape[1], 1)
            return Contraction(right=empty[0], left=empty[1], core=self.whole.new_zeros(k, 1, 1))
        part = self.columns[:, :, :rank]
        inner = self.onto[:rank]  # [r, shorter]: turns the shorter side's vectors into r numbers
        if k == 1:
            outer, core = part[0], None
        else:
            joint = part.permute(1, 0, 2).reshape(rows, k * rank)
            values, vectors = torch.linalg.eigh(joint.T @ joint)
            kept = values.clamp(min=0).flip(0).cumsum(0)
            size = int((kept < (1.0 - lost) * kept[-1]).sum()) + 1
            basis = joint @ vectors[:, -size:] / values[-size:].clamp(min=1e-300).sqrt()
            outer, core = basis, torch.einsum("os,kor->ksr", basis, part)
        outer = outer / self.scale[:, None]
        if self.across:
            right, left = inner, outer
        else:
            right, left = outer.T, inner.T
            core = None if core is None else core.transpose(1, 2)
        like = self.whole
        made = Contraction(
            None,
            right.to(like.dtype).contiguous(),
            left.to(like.dtype).contiguous(),
            None if core is None else core.to(like.dtype).contiguous(),
        )
        return made if made.products <= WORTHWHILE * like.numel() else Contraction(whole=like)


def weigh_directions(directions: Tensor, moments: Moments, totals: Tensor) -> Weighted:
    """`directions` [k, O, I] seen through `moments`; `totals` [k] are the expected squares of whole directions."""
    across = directions.shape[2] <= directions.shape[1]
    turned = directions.double() if across else directions.double().transpose(1, 2)  # [k, longer, shorter]
    short, long = (moments.inputs, moments.outputs) if across else (moments.outputs, moments.inputs)
    short, long = short.double() / moments.tokens, long.double() / moments.tokens
    long = long.diagonal() if long.dim() == 2 else long
    long = (long + UNSEEN * long.mean().clamp(min=1e-300)).sqrt()
    values, vectors = torch.linalg.eigh(short)
    values = (values.clamp(min=0) + UNSEEN * values.clamp(min=0).mean().clamp(min=1e-300)).sqrt()
    weighted = (turned * long[:, None]) @ (vectors * values)
    shares = (weighted / totals.clamp(min=1e-300).sqrt()[:, None, None]).flatten(0, 1)
    energy, basis = torch.linalg.eigh(shares.T @ shares)
    basis = basis.flip(1)
    return Weighted(
        directions,
        weighted @ basis,
        energy.clamp(min=0).flip(0),
        ((vectors / values) @ basis).T,
        long,
        across,
    )


def expected_squares(directions: Mapping[str, Tensor], moments: Mapping[str, Moments]) -> Tensor:
    """Expected squares of <g, V x>, summed over the matrices: [k]."""
    total = torch.zeros(next(iter(directions.values())).shape[0], dtype=torch.float64)
    for name, vectors in directions.items():
        seen = moments[name]
        x, g = (m.double() / seen.tokens for m in (seen.inputs, seen.outputs))
        right = vectors.double() * x if x.dim() == 1 else vectors.double() @ x
        left = right * g[:, None] if g.dim() == 1 else g @ right
        total += (left * vectors.double()).sum((1, 2)).cpu()
    return total


class LowRank:
    """The directions of all matrices, ready to be cut at any share of the expected square."""

    def __init__(self, directions: Mapping[str, Tensor], moments: Mapping[str, Moments]) -> None:
        totals = expected_squares(directions, moments)
        self.weighted = {
            name: weigh_directions(vectors, moments[name], totals.to(vectors.device))
            for name, vectors in directions.items()
        }

    def contractions(self, lost: float) -> dict[str, Contraction]:
        """A contraction for each matrix that together lose at most the share `lost` of the expected square."""
        names, energies, costs = [], [], []
        for name, weighted in self.weighted.items():
            names += [name] * len(weighted.energy)
            energies.append(weighted.energy.cpu())
            costs.append(torch.full_like(energies[-1], float(sum(weighted.whole.shape[1:]))))
        energy, cost = torch.cat(energies), torch.cat(costs)
        order = (energy / cost).argsort(descending=True, stable=True)
        kept = energy[order].cumsum(0)
        count = int((kept < (1.0 - lost) * kept[-1]).sum()) + 1
        ranks = dict.fromkeys(self.weighted, 0)
        for at in order[:count].tolist():
            ranks[names[at]] += 1
        return {name: weighted.contraction(ranks[name], lost) for name, weighted in self.weighted.items()}
