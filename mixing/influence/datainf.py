"""DataInf (arXiv 2310.00902): the inverse curvature of each layer in closed form.

For a layer with gradients g_1 ... g_n of n training documents and damping lambda,

    H^-1 v  ~  1/n sum_i (g_i g_i' + lambda I)^-1 v
            =  1/(n lambda) sum_i [ v - (v.g_i) / (lambda + |g_i|^2) g_i ],

the mean of the inverses in place of the inverse of the mean; lambda = 0.1 (n d)^-1 sum_i |g_i|^2 with d the
number of the layer's entries (AutoMixer's and DataInf's own choice). Two passes over the documents, shared by
all probes; no gradient of a whole document is made where the model's layers are known
(mixing.influence.layer_gradients). Example, one layer of one entry, g = 2, lambda = 1, v = 10:
10 - 20 / 5 * 2 = 2 = 10 / (4 + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from curation.errors import DataError
from mixing.influence.adapters import LossAdapter, scoring
from mixing.influence.documents import BatchPlan, Tokenized
from mixing.influence.explicit import document_gradients
from mixing.influence.layer_gradients import LayerGradients, factors_cost_less
from mixing.influence.scorers import UnknownLayerError, Vectors

DATAINF_DAMPING = 0.1
BATCH_TOKENS = 256  # a batch of long documents is one document: what is kept of a pass stays small
SMALLEST = 1e-300  # in place of a zero that is divided by: the products over it are zeros, too


def datainf_directions(
    adapter: LossAdapter,
    gradients: Mapping[str, Vectors],
    curvature: Sequence[Tokenized],
    *,
    damping: float = DATAINF_DAMPING,
    context: int = 1024,
    layer: Callable[[str], str] = str,
) -> tuple[dict[str, Vectors], float]:
    """H^-1 v for every probe gradient v, and the cost in tokens times forward passes.

    layer : the layer that a parameter belongs to; by default each parameter is a layer of its own, as in
            DataInf
    """
    plan = BatchPlan(
        curvature,
        context=context,
        windows="first",
        reduction="mean",
        batch_tokens=BATCH_TOKENS,
        device=adapter.device,
    )
    names = sorted({n for vectors in gradients.values() for n in vectors})
    entries: dict[str, int] = {}
    for name in names:
        entries[layer(name)] = entries.get(layer(name), 0) + next(
            vectors[name].numel() for vectors in gradients.values() if name in vectors
        )
    with scoring(adapter):
        source: Gradients = _Whole(adapter, plan, gradients)
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if _short(plan, gradients):
            try:
                source = _Factors(adapter, plan, gradients)
                found = source.measure()
            except UnknownLayerError:
                source = _Whole(adapter, plan, gradients)
        found = found or source.measure()
        norms: dict[str, float] = dict.fromkeys(entries, 0.0)
        squares: dict[str, np.ndarray] = {}
        products: dict[str, np.ndarray] = {}
        for name, (square, product) in found.items():
            key = layer(name)
            squares[key] = squares.get(key, 0.0) + square
            products[key] = products.get(key, 0.0) + product
            norms[key] += float(square.sum())
        count = int((plan.counts > 0).sum())
        if count == 0 or not any(norms.values()):
            raise DataError(
                "The documents for the curvature have no gradient",
                where="datainf",
                remedy="Give other documents",
            )
        lambdas = {key: damping * norms[key] / (count * entries[key]) for key in entries}
        result = {probe: {n: v.clone() for n, v in vectors.items()} for probe, vectors in gradients.items()}
        factors = {
            key: products[key] / np.maximum(count * (lambdas[key] + squares[key]), SMALLEST)[:, None]
            for key in squares
        }
        source.subtract(result, {name: factors[layer(name)] for name in found})
    for vectors in result.values():
        for name in vectors:
            # A layer that no document reaches has no curvature at all; it keeps the plain gradient's
            # direction.
            vectors[name] /= lambdas[layer(name)] or 1.0
    return result, source.forwards * plan.read_tokens


def _short(plan: BatchPlan, gradients: Mapping[str, Vectors]) -> bool:
    """Whether documents are so short that for most entries factors cost less than gradients made by autograd."""
    tokens = plan.targets / max(len(plan.documents), 1)
    matrices = {n: v for vectors in gradients.values() for n, v in vectors.items() if v.dim() == 2}
    by_factors = [v.numel() for v in matrices.values() if factors_cost_less(tokens, len(gradients), v)]
    return 2 * sum(by_factors) > sum(v.numel() for v in matrices.values())


class Gradients(Protocol):
    """Two passes over n documents: squares [n] and products with k probes [n, k] of each parameter, and
    result[k] -= sum_i factors[i, k] gradient_i. `forwards` is what both cost."""

    forwards: float

    def measure(self) -> dict[str, tuple[np.ndarray, np.ndarray]]: ...

    def subtract(self, result: Mapping[str, Vectors], factors: Mapping[str, np.ndarray]) -> None: ...


class _Factors:
    """By the factors of each layer's gradients (mixing.influence.layer_gradients)."""

    forwards = 6.0  # of long documents: twice a forward, half a backward and one product of a matrix's size

    def __init__(self, adapter: LossAdapter, plan: BatchPlan, gradients: Mapping[str, Vectors]) -> None:
        self.plan, self.gradients, self.own = plan, list(gradients.values()), adapter.named()
        self.names = sorted({n for vectors in self.gradients for n in vectors})
        self.layers = LayerGradients(adapter, self.names)

    def measure(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        count, probes = len(self.plan.documents), len(self.gradients)
        found = {name: (np.zeros(count), np.zeros((count, probes))) for name in self.names}
        for batch in self.plan:
            for name, part in self.layers.visit(batch).items():
                square, product = part.measure([v.get(name) for v in self.gradients], self.own[name])
                rows = list(batch.documents)
                found[name][0][rows], found[name][1][rows] = square.cpu().numpy(), product.cpu().numpy()
        return found

    def subtract(self, result: Mapping[str, Vectors], factors: Mapping[str, np.ndarray]) -> None:
        for batch in self.plan:
            for name, part in self.layers.visit(batch).items():
                weights = torch.from_numpy(factors[name][list(batch.documents)])
                part.subtract([v.get(name) for v in result.values()], weights.to(self.own[name].device))


class _Whole:
    """By the gradients themselves, one document at a time: for long documents, and it asks nothing of the model."""

    forwards = 6.0

    def __init__(self, adapter: LossAdapter, plan: BatchPlan, gradients: Mapping[str, Vectors]) -> None:
        self.adapter, self.plan, self.gradients = adapter, plan, list(gradients.values())
        self.names = sorted({n for vectors in self.gradients for n in vectors})

    def _each(self) -> Iterator[tuple[int, Vectors]]:
        order = [at for batch in self.plan for at in batch.documents]
        return zip(order, document_gradients(self.adapter, self.plan, self.names), strict=True)

    def measure(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        count, probes = len(self.plan.documents), len(self.gradients)
        found = {name: (np.zeros(count), np.zeros((count, probes))) for name in self.names}
        for at, gradient in self._each():
            for name, g in gradient.items():
                flat = g.flatten().to(torch.promote_types(g.dtype, torch.float32))
                found[name][0][at] = float(torch.dot(flat, flat))
                for k, vectors in enumerate(self.gradients):
                    if name in vectors:
                        found[name][1][at, k] = float(torch.dot(flat, vectors[name].to(flat).flatten()))
        return found

    def subtract(self, result: Mapping[str, Vectors], factors: Mapping[str, np.ndarray]) -> None:
        for at, gradient in self._each():
            for k, vectors in enumerate(result.values()):
                for name in gradient.keys() & vectors.keys():
                    vectors[name].sub_(gradient[name], alpha=float(factors[name][at, k]))
