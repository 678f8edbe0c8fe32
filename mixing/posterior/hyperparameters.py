"""Plausible hyperparameters: modes of their posterior, Laplace's approximation, and draws by importance.

Candidates are all epsilons and, where there is influence, models with a learned scale and models in which the
scale is exactly 0. They are weighed by their evidence in Laplace's approximation with equal priors, so influence
counts only as far as it explains the runs better than if it were worthless (a spike and slab prior).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mixing.posterior.drawing import whole_shares
from mixing.posterior.model import Problem, negative_log_posterior
from mixing.posterior.posterior import Component, make_component

GIVEN_UP = 6.0
"""Candidates whose first fit is this much less likely (nats) are not pursued."""
CANDIDATES = 64
FIRST_STEPS = 25
STEPS = 120


@dataclass(frozen=True)
class Mode:
    """A mode: theta, which hyperparameters are free, minus the log density there, and the curvature's
    eigenvalues and vectors among the free ones; evidence: log, of the model."""

    problem: Problem
    theta: np.ndarray
    free: np.ndarray
    value: float
    values: np.ndarray
    vectors: np.ndarray
    evidence: float


def plausible(
    problems: list[Problem], components: int, seed: np.random.SeedSequence
) -> tuple[tuple[Component, ...], float]:
    """Components of all candidates in proportion to their evidence, and the probability that influence is
    worthless. `components` 1: the best mode alone."""
    first = []
    for problem in problems:
        everything = np.ones(problem.layout.size, dtype=bool)
        first.append((problem, everything, *_mode(problem, everything, FIRST_STEPS)))
        if "scale" in problem.layout.slots:
            without = everything.copy()
            without[problem.layout.slots["scale"]] = False
            first.append((problem, without, *_mode(problem, without, FIRST_STEPS)))
    least = min(value for *_, value in first)
    modes = [
        _laplace(problem, free, *_mode(problem, free, STEPS, start))
        for problem, free, start, value in first
        if value < least + GIVEN_UP
    ]
    evidence = np.array([mode.evidence for mode in modes])
    shares = np.exp(evidence - evidence.max())
    shares /= shares.sum()
    worthless = float(sum(share for share, mode in zip(shares, modes, strict=True) if not mode.free.all()))
    if components <= 1:
        best = modes[int(np.argmax(evidence))]
        return (make_component(best.problem, best.theta, 1.0),), worthless
    found = []
    counts = whole_shares(shares, components)
    for mode, count, own in zip(modes, counts, seed.spawn(len(modes)), strict=True):
        if count:
            found += [
                make_component(mode.problem, theta, weight * count / components)
                for theta, weight in _draws(mode, int(count), own)
            ]
    return tuple(found), worthless


def _mode(
    problem: Problem, free: np.ndarray, steps: int, start: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Hyperparameters of greatest posterior density, and minus its logarithm; those not free are 0."""
    starts = [start] if start is not None else _starts(problem)
    bounds = [
        (mean - 6.0, mean + 6.0) if f else (0.0, 0.0)
        for mean, f in zip(problem.layout.mean, free, strict=True)
    ]
    best, least = starts[0], np.inf
    for theta in starts:
        found = minimize(
            negative_log_posterior, np.where(free, theta, 0.0), args=(problem,), jac=True, method="L-BFGS-B",
            bounds=bounds, options={"maxiter": steps},
        )  # fmt: skip
        if found.fun < least:
            best, least = found.x, float(found.fun)
    return best, least


def _starts(problem: Problem) -> list[np.ndarray]:
    """The prior's mean, and the same with little signal and much noise."""
    layout = problem.layout
    first, calm = layout.mean.copy(), layout.mean.copy()
    calm[layout.slots["noise"]] = -0.2
    calm[layout.slots["signal"]] = -1.0
    calm[layout.slots["trend"]] = -1.0
    for theta in (first, calm):
        for name, value in (("loading", 0.3), ("noise_loading", 0.1), ("scale", 0.5)):
            if name in layout.slots:
                theta[layout.slots[name]] = value
    return [first, calm]


def _laplace(problem: Problem, free: np.ndarray, theta: np.ndarray, value: float) -> Mode:
    """The curvature by differences of the gradient, made positive, and the evidence that follows."""
    step, which = 1e-3, np.flatnonzero(free)
    slope = negative_log_posterior(theta, problem)[1]
    unit = step * np.eye(len(theta))[which]
    curvature = (
        np.stack([negative_log_posterior(theta + e, problem)[1] - slope for e in unit])[:, which] / step
    )
    precision = problem.layout.precision[np.ix_(which, which)]
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    values = np.maximum(values, 0.3 * np.linalg.eigvalsh(problem.layout.precision).min())
    evidence = -value + 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * np.log(values).sum()
    return Mode(problem, theta, free, value, values, vectors, float(evidence))


def _draws(mode: Mode, components: int, seed: np.random.SeedSequence) -> list[tuple[np.ndarray, float]]:
    """Hyperparameters and their weights: Laplace's normal around the mode, corrected by importance.

    Importance ratios are cut at the square root of their number times their mean (Ionides 2008), then
    `components` of CANDIDATES draws are chosen in proportion, systematically.
    """
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((CANDIDATES, len(mode.values)))
    candidates = np.tile(mode.theta, (CANDIDATES, 1))
    candidates[:, mode.free] += (normal / np.sqrt(mode.values)) @ mode.vectors.T
    log_ratio = np.array([mode.value - negative_log_posterior(t, mode.problem)[0] for t in candidates])
    log_ratio += 0.5 * np.square(normal).sum(axis=1)
    ratio = np.exp(log_ratio - log_ratio.max())
    ratio = np.minimum(ratio, ratio.mean() * np.sqrt(CANDIDATES))
    edges = np.cumsum(ratio) / ratio.sum()
    picks = np.searchsorted(edges, (np.arange(components) + rng.random()) / components)
    chosen, counts = np.unique(np.minimum(picks, CANDIDATES - 1), return_counts=True)
    return [(candidates[i], float(k) / components) for i, k in zip(chosen, counts, strict=True)]
