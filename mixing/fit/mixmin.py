"""MixMin (Thudi et al., 2025, arXiv 2502.10510): the best convex combination of one model per source.

    F(w) = - sum_x a_x log sum_k w_k p_k(x),   w >= 0, sum w = 1

with p_k(x) the probability that the model of source k gives to probe text x. It is convex; its gradient is
-r(w), r_k = sum_x a_x p_k(x) / sum_j w_j p_j(x), and w . r(w) = A = sum_x a_x. By Jensen's inequality, for
every mixture v

    F(w) - F(v) <= A log(v . r(w) / A),

so that A log(max_v v . r / A) over the allowed mixtures is a bound on what is left to gain: the gap that the
descent stops at. It measures a mixture of models, which is what its authors take for a model of the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from mixing.fit.search import Simplex

GAP = 1e-6
"""In nats per token (or per text): far below what a mixture's training can show."""
MOST_STEPS = 5000
LEAST = 1e-16  # a share from which a source can come back


@dataclass(frozen=True)
class MixMinOptimum:
    """weights [m]; value F(w); the gap that bounds F(w) - min F; how many steps it took."""

    weights: np.ndarray
    value: float
    gap: float
    steps: int


def minimise_mixmin(
    log_probabilities: np.ndarray,
    importance: np.ndarray,
    simplex: Simplex,
    *,
    gap: float = GAP,
    start: np.ndarray | None = None,
) -> MixMinOptimum:
    """Minimise F by exponentiated gradient, projecting onto the limits, until the gap is at most `gap`.

    log_probabilities : nats [n, m], of whole probe texts or of tokens, by model; never above 0 in principle,
                        but any finite numbers do
    importance        : a_x [n], not negative: 1 / (n * tokens of x) makes F nats per token

    w ~ w exp(eta r), with a step that grows by half while F falls and is halved until it does. (The published
    script makes at most 100 steps of size 1, and stops when a step moves F by less than 1e-4.)
    Example: two models that give (1/2, 1/8) and (1/8, 1/2) to two texts: w = (1/2, 1/2), F = -log(5/16).
    """
    # Each row's largest probability is taken out, so that nothing vanishes; F gets it back.
    peak = log_probabilities.max(axis=1, keepdims=True)
    p = np.exp(log_probabilities - peak)
    offset = -float(importance @ peak[:, 0])
    total = float(importance.sum())
    m = p.shape[1]
    w = simplex.project(np.full(m, 1 / m) if start is None else 0.99 * start + 0.01 / m)

    def value(w: np.ndarray) -> float:
        return offset - float(importance @ np.log(np.maximum(p @ w, 1e-300)))

    now, eta = value(w), 1.0 / total
    for step in range(MOST_STEPS):
        r = p.T @ (importance / np.maximum(p @ w, 1e-300))
        left = total * float(np.log(max(_greatest(r, simplex) / total, 1.0)))
        if left <= gap:
            return MixMinOptimum(w, now, left, step)
        for _ in range(60):
            moved = simplex.project_all(np.maximum(w * np.exp(eta * (r - r.max())), LEAST)[None])[0]
            then = value(moved)
            if then <= now:
                break
            eta /= 2
        else:
            return MixMinOptimum(w, now, left, step)
        w, now, eta = moved, then, eta * 1.5
    return MixMinOptimum(w, now, left, MOST_STEPS)


def mixture_loss(log_probabilities: np.ndarray, importance: np.ndarray, weights: np.ndarray) -> float:
    """F(w) of the mixture of models, in the unit of the importance."""
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    return -float(importance @ logsumexp(log_probabilities + logs, axis=1))


def _greatest(r: np.ndarray, simplex: Simplex) -> float:
    """max of v . r over the allowed mixtures: fill the sources up in the order of r."""
    v, left = simplex.low.copy(), 1.0 - float(simplex.low.sum())
    for j in np.argsort(-r, kind="stable"):
        more = min(left, float(simplex.high[j] - v[j]))
        v[j] += more
        left -= more
    return float(v @ r)
