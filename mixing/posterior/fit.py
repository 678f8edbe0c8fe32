"""Fit the posterior: hyperparameters of greatest posterior density from several starts, then draws around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from curation.errors import DataError, RecipeError
from mixing.fit.tables import ProxyTable
from mixing.posterior.evidence import Effects, Evidence, Influence, gather
from mixing.posterior.model import Problem, make_problem, negative_log_posterior
from mixing.posterior.posterior import (
    Component,
    Group,
    LossPosterior,
    make_component,
    residual_correlation,
    whole_shares,
)

EPSILONS = (0.003, 0.02, 0.15)
"""Tried smallest shares that matter: from sparse designs to nearly linear effects."""
GIVEN_UP = 6.0
"""Epsilons whose first fit is this much less likely (nats) are not pursued."""
COMPONENTS = 8
CANDIDATES = 64
FIRST_STEPS = 25
STEPS = 120


def fit_posterior(
    table: ProxyTable,
    loo: Effects | None = None,
    influence: Influence | Sequence[Influence] = (),
    *,
    epsilon: float | None = None,
    coupled: bool = False,
    components: int = COMPONENTS,
    seed: int = 0,
) -> LossPosterior:
    """The posterior over each capability's loss from runs, leave-one-out differences and influence.

    table      : runs; absolute losses, lower is better
    loo        : differences to a base mixture, when its runs are not rows of the table themselves
    influence  : benefits of the sources at one mixture or several
    epsilon    : smallest share that matters; None: EPSILONS, in proportion to their evidence
    coupled    : capabilities share a process and noise (cubic in runs times capabilities)
    components : draws of the hyperparameters that are averaged; 1: their mode alone
    The order of rows and sources does not change the result. Raises DataError with fewer than two runs.
    """
    if len(table.run_ids) < 2:
        raise DataError("A posterior needs at least two runs", where="ratios", remedy="Train more mixtures")
    if epsilon is not None and not 0 < epsilon < 1:
        raise RecipeError(f"An epsilon of {epsilon} is not possible", where="epsilon", remedy="Choose 0 to 1")
    records = [influence] if isinstance(influence, Influence) else list(influence)
    evidence = gather(table, loo, records)
    together = coupled
    everything = tuple(range(len(table.metrics)))
    split = [everything] if together else [(c,) for c in everything]
    groups = []
    for place, group in enumerate(split):
        problems = [
            make_problem(_select(evidence, group), value, together)
            for value in (EPSILONS if epsilon is None else (epsilon,))
        ]
        drawn = _components(problems, components, np.random.SeedSequence([seed, 0xF17, place]))
        groups.append(Group(group, drawn))
    correlation = residual_correlation(tuple(groups), evidence)
    return LossPosterior(table.sources, table.metrics, evidence, tuple(groups), correlation)


def _components(
    problems: list[Problem], components: int, seed: np.random.SeedSequence
) -> tuple[Component, ...]:
    """Components of all epsilons, in proportion to their evidence (density at the mode, equal priors)."""
    starts = [_mode(problem, FIRST_STEPS) for problem in problems]
    least = min(value for _, value in starts)
    near = [i for i, (_, value) in enumerate(starts) if value < least + GIVEN_UP]
    modes = {i: _mode(problems[i], STEPS, starts[i][0]) for i in near}
    values = np.array([modes[i][1] for i in near])
    shares = np.exp(values.min() - values)
    counts = whole_shares(shares, max(components, 1))
    found = []
    for i, count, own in zip(near, counts, seed.spawn(len(near)), strict=True):
        if count:
            drawn = _draws(problems[i], modes[i][0], int(count) if components > 1 else 1, components > 1, own)
            share = float(count) / max(components, 1)
            found += [make_component(problems[i], theta, weight * share) for theta, weight in drawn]
    return tuple(found)


def _select(evidence: Evidence, group: tuple[int, ...]) -> Evidence:
    fields = dict(evidence.__dict__)
    fields["capabilities"] = tuple(evidence.capabilities[c] for c in group)
    fields["observed"] = evidence.observed[list(group)]
    return Evidence(**fields)


def _mode(problem: Problem, steps: int, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Hyperparameters of greatest posterior density, and minus its logarithm."""
    layout = problem.layout
    starts = [start] if start is not None else _starts(problem)
    best, least = starts[0], np.inf
    bounds = [(mean - 6.0, mean + 6.0) for mean in layout.mean]
    for theta in starts:
        found = minimize(
            negative_log_posterior, theta, args=(problem,), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": steps},
        )  # fmt: skip
        if found.fun < least:
            best, least = found.x, float(found.fun)
    return best, least


def _starts(problem: Problem) -> list[np.ndarray]:
    """The prior's mean, and the same with little signal and much noise."""
    layout = problem.layout
    calm = layout.mean.copy()
    calm[layout.slots["noise"]] = -0.2
    calm[layout.slots["signal"]] = -1.0
    first = layout.mean.copy()
    for theta in (first, calm):
        for name, value in (("loading", 0.3), ("noise_loading", 0.1), ("scale", 0.5)):
            if name in layout.slots:
                theta[layout.slots[name]] = value
    return [first, calm]


def _draws(
    problem: Problem, mode: np.ndarray, components: int, spread: bool, seed: np.random.SeedSequence
) -> list[tuple[np.ndarray, float]]:
    """Hyperparameters and their weights: Laplace's normal around the mode, corrected by importance.

    The curvature is the prior's precision plus the curvature of the likelihood by differences of its
    gradient, made positive. Importance ratios are cut at the square root of their number times their mean
    (Ionides 2008), then `components` of CANDIDATES draws are chosen in proportion, systematically.
    """
    if not spread:
        return [(mode, 1.0)]
    size, step = len(mode), 1e-3
    at_mode = negative_log_posterior(mode, problem)
    curvature = np.stack(
        [(negative_log_posterior(mode + step * e, problem)[1] - at_mode[1]) / step for e in np.eye(size)]
    )
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    values = np.maximum(values, 0.3 * np.linalg.eigvalsh(problem.layout.precision).min())
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((CANDIDATES, size))
    candidates = mode + (normal / np.sqrt(values)) @ vectors.T
    log_ratio = np.array([at_mode[0] - negative_log_posterior(t, problem)[0] for t in candidates])
    log_ratio += 0.5 * np.square(normal).sum(axis=1)
    ratio = np.exp(log_ratio - log_ratio.max())
    ratio = np.minimum(ratio, ratio.mean() * np.sqrt(CANDIDATES))
    edges = np.cumsum(ratio) / ratio.sum()
    picks = np.searchsorted(edges, (np.arange(components) + rng.random()) / components)
    chosen, counts = np.unique(np.minimum(picks, CANDIDATES - 1), return_counts=True)
    return [(candidates[i], float(k) / components) for i, k in zip(chosen, counts, strict=True)]
