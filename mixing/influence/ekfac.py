"""EK-FAC (arXiv 1806.03884, 2308.03296): inverse curvature in the eigenbasis of each layer's inputs and
gradients.

For a linear layer with inputs a and output gradients delta (one pair for each token, labels drawn from the
model),

    A = E[a a'] = Q_A . Q_A',   S = E[delta delta'] = Q_S . Q_S',   L_ij = E[(Q_S' delta)_i^2 (Q_A' a)_j^2],
    H^-1 V = Q_S [ (Q_S' V Q_A) / (L + damping) ] Q_A',   damping = 0.1 mean(L).

Matrices over the vocabulary (embedding, output weight) keep the vocabulary's own axis: its eigenvectors
would cost more than all else. A tied one adds up what it sees at both ends. Parameters that are not a
linear layer's matrix or an embedding get the diagonal of the same curvature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.errors import DataError
from mixing.influence.adapters import DecoderAdapter, LossAdapter, scoring
from mixing.influence.documents import BatchPlan, RowBatch, Tokenized
from mixing.influence.explicit import weighted_gradient
from mixing.influence.scorers import Vectors

EKFAC_DAMPING = 0.1
VOCABULARY_SIDE = "vocabulary"


@dataclass
class Curvature:
    """What is gathered about one parameter: covariances of both sides, their eigenvectors, second moments."""

    left: Tensor | None = None  # covariance, then eigenvectors, of output gradients [O, O]; None: own axis
    right: Tensor | None = None  # the same of inputs [I, I]
    moments: Tensor | None = None  # L, of the parameter's shape

    def solve(self, vector: Tensor, damping: float) -> Tensor:
        """(curvature + damping * its mean)^-1 vector; a parameter without curvature keeps its vector."""
        if self.moments is None or not self.moments.any():
            return vector
        turned = vector.double()
        turned = turned if self.left is None else self.left.T @ turned
        turned = turned if self.right is None else turned @ self.right
        turned = turned / (self.moments + damping * self.moments.mean())
        turned = turned if self.left is None else self.left @ turned
        return (turned if self.right is None else turned @ self.right.T).to(vector)


def ekfac_directions(
    adapter: LossAdapter,
    gradients: Mapping[str, Vectors],
    curvature: Sequence[Tokenized],
    *,
    damping: float = EKFAC_DAMPING,
    context: int = 1024,
    seed: int = 0,
) -> tuple[dict[str, Vectors], float]:
    """H^-1 v for every probe gradient v, and the cost in tokens times forward passes.

    seed : of the labels that are drawn from the model (the true Fisher, not the empirical one)
    """
    names = sorted({n for vectors in gradients.values() for n in vectors})
    plan = BatchPlan(
        curvature, context=context, windows="first", reduction="sum", batch_tokens=1, device=adapter.device
    )
    if plan.targets == 0:
        raise DataError(
            "The documents for the curvature are empty", where="ekfac", remedy="Give other documents"
        )
    layers, wide = _matrices(adapter, names), adapter.matrix_names()
    found = {name: Curvature() for name in names}
    rest = [name for name in names if name not in layers.values() and name not in _head_names(adapter)]
    with scoring(adapter):
        for batch in _drawn(adapter, plan, seed):
            _visit(adapter, layers, batch, lambda *seen: _add_covariance(found, wide, *seen))
        for name in set(names) - set(rest):
            found[name].left, found[name].right = _basis(found[name].left), _basis(found[name].right)
        for batch in _drawn(adapter, plan, seed):
            _visit(adapter, layers, batch, lambda *seen: _add_moments(found, adapter, *seen))
            if rest:
                _, own = weighted_gradient(adapter, batch, rest)
                for name, gradient in own.items():
                    _accumulate(found[name], gradient.double().square())
    for entry in found.values():
        if entry.moments is not None:
            entry.moments /= plan.targets
    solved = {
        probe: {name: found[name].solve(v, damping) for name, v in vectors.items()}
        for probe, vectors in gradients.items()
    }
    return solved, (8.0 + (3.0 if rest else 0.0)) * plan.read_tokens


# name, kind of layer, inputs [N, I] or token ids [N], output gradients [N, O]
Seen = Callable[[str, str, Tensor, Tensor], None]


def _matrices(adapter: LossAdapter, names: Sequence[str]) -> dict[nn.Module, str]:
    """Linear layers and embeddings whose weight is chosen."""
    by_id = {id(p): n for n, p in adapter.named().items() if n in names}
    return {
        layer: by_id[id(layer.weight)]
        for layer in adapter.model.modules()
        if type(layer) in (nn.Linear, nn.Embedding) and id(layer.weight) in by_id
    }


def _head_names(adapter: LossAdapter) -> tuple[str, ...]:
    """The output weight of our decoder, which no layer of its own applies."""
    return (adapter.model.output_weight_name,) if isinstance(adapter, DecoderAdapter) else ()


def _drawn(adapter: LossAdapter, plan: BatchPlan, seed: int) -> Iterator[RowBatch]:
    """The rows of `plan`, one at a time, with labels drawn from the model; the same ones each time."""
    generator = torch.Generator().manual_seed(seed)
    for batch in plan:
        with torch.no_grad():
            chances = adapter.logits(batch)[0].float().softmax(-1).cpu()
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
        yield replace(batch, labels=labels[None].to(batch.labels.device))


def _visit(adapter: LossAdapter, layers: Mapping[nn.Module, str], batch: RowBatch, see: Seen) -> None:
    """One backward pass of the summed loss; `see` gets inputs and output gradients of each matrix."""

    def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_(True)
        kind = VOCABULARY_SIDE if isinstance(layer, nn.Embedding) else "linear"
        x = args[0].detach()
        x = x.flatten() if kind == VOCABULARY_SIDE else x.flatten(0, -2)
        output.register_hook(lambda g: see(layers[layer], kind, x, g.detach().flatten(0, -2)))

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with torch.enable_grad():
            if isinstance(adapter, DecoderAdapter):
                hidden = adapter.hidden(batch)
                h, weight = hidden.detach().flatten(0, 1), adapter.model.output_weight.detach()
                slope = F.linear(h, weight).softmax(-1)
                slope[torch.arange(len(h), device=h.device), batch.labels.flatten()] -= 1.0
                see(adapter.model.output_weight_name, "linear", h, slope)
                hidden.backward((slope @ weight).view_as(hidden))
            else:
                adapter(batch).sum().backward()
    finally:
        for handle in handles:
            handle.remove()


def _add_covariance(
    found: dict[str, Curvature], wide: Sequence[str], name: str, kind: str, x: Tensor, g: Tensor
) -> None:
    if name not in found:
        return
    entry, x, g = found[name], x if kind == VOCABULARY_SIDE else x.double(), g.double()
    if kind == VOCABULARY_SIDE:  # rows are tokens: the basis is that of the gradients
        entry.right = g.T @ g if entry.right is None else entry.right + g.T @ g
        return
    entry.right = x.T @ x if entry.right is None else entry.right + x.T @ x
    if name not in wide:
        entry.left = g.T @ g if entry.left is None else entry.left + g.T @ g


def _basis(covariance: Tensor | None) -> Tensor | None:
    return None if covariance is None else torch.linalg.eigh(covariance)[1]


def _add_moments(
    found: dict[str, Curvature], adapter: LossAdapter, name: str, kind: str, x: Tensor, g: Tensor
) -> None:
    if name not in found:
        return
    entry, g = found[name], g.double()
    if kind == VOCABULARY_SIDE:
        turned = g if entry.right is None else g @ entry.right
        size = (adapter.named()[name].shape[0], turned.shape[-1])
        _accumulate(entry, turned.new_zeros(size).index_add_(0, x, turned.square()))
        return
    x = x.double() if entry.right is None else x.double() @ entry.right
    g = g if entry.left is None else g @ entry.left
    _accumulate(entry, g.square().T @ x.square())


def _accumulate(entry: Curvature, part: Tensor) -> None:
    entry.moments = part if entry.moments is None else entry.moments + part
