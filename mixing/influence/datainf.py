"""DataInf (arXiv 2310.00902): the inverse curvature of each layer in closed form.

For a layer with gradients g_1 ... g_n of n training documents and damping lambda,

    H^-1 v  ~  1/n sum_i (g_i g_i' + lambda I)^-1 v
            =  1/(n lambda) sum_i [ v - (v.g_i) / (lambda + |g_i|^2) g_i ],

the mean of the inverses in place of the inverse of the mean; lambda = 0.1 (n d)^-1 sum_i |g_i|^2 with d the
number of the layer's entries (AutoMixer's and DataInf's own choice). Two passes over the documents, one
gradient alive at a time, shared by all probes. Example, one layer of one entry, g = 2, lambda = 1, v = 10:
10 - 20 / 5 * 2 = 2 = 10 / (4 + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from curation.errors import DataError
from mixing.influence.adapters import LossAdapter, scoring
from mixing.influence.documents import BatchPlan, Tokenized
from mixing.influence.explicit import document_gradients
from mixing.influence.scorers import Vectors

DATAINF_DAMPING = 0.1


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
        curvature, context=context, windows="first", reduction="mean", batch_tokens=1, device=adapter.device
    )
    names = sorted({n for vectors in gradients.values() for n in vectors})
    entries: dict[str, int] = {}
    for name in names:
        entries[layer(name)] = entries.get(layer(name), 0) + next(
            vectors[name].numel() for vectors in gradients.values() if name in vectors
        )
    with scoring(adapter):
        norms, count = dict.fromkeys(entries, 0.0), 0
        for gradient in document_gradients(adapter, plan, names):
            for key, value in _by_layer(gradient, gradient, layer).items():
                norms[key] += value
            count += 1
        if count == 0 or not any(norms.values()):
            raise DataError(
                "The documents for the curvature have no gradient",
                where="datainf",
                remedy="Give other documents",
            )
        lambdas = {key: damping * norms[key] / (count * entries[key]) for key in entries}
        result = {probe: {n: v.clone() for n, v in vectors.items()} for probe, vectors in gradients.items()}
        for gradient in document_gradients(adapter, plan, names):
            squares = _by_layer(gradient, gradient, layer)
            for probe, vectors in gradients.items():
                for key, product in _by_layer(gradient, vectors, layer).items():
                    factor = product / (count * (lambdas[key] + squares[key])) if squares[key] else 0.0
                    for name in gradient:
                        if layer(name) == key and name in vectors:
                            result[probe][name].sub_(gradient[name], alpha=factor)
    for vectors in result.values():
        for name in vectors:
            # A layer that no document reaches has no curvature at all; it keeps the plain gradient's
            # direction.
            vectors[name] /= lambdas[layer(name)] or 1.0
    return result, 6.0 * plan.read_tokens


def _by_layer(left: Vectors, right: Vectors, layer: Callable[[str], str]) -> dict[str, float]:
    """Inner products, summed over the parameters of each layer."""
    sums: dict[str, float] = {}
    for name in left:
        if name in right:
            value = float((left[name].double() * right[name].double()).sum())
            sums[layer(name)] = sums.get(layer(name), 0.0) + value
    return sums
