"""Mixtures from a model of the loss: fit one law a metric, take the mixture of least predicted objective.

Laws are fitted to each metric and averaged afterwards; fitting the average directly costs a lot of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from mixing.fit.gaussian_process import LogShareProcess, fit_process
from mixing.fit.log_linear import LogLinear, fit_log_linear
from mixing.fit.search import Simplex, minimise
from mixing.fit.tables import ProxyTable
from probes.intervals import percentile_interval

RESAMPLES = 60
CANDIDATES = 600
DRAWS = 400
STARTS = 6
LEVEL = 0.9


@dataclass(frozen=True)
class Proposal:
    """What a method proposes, by source: weights [m], intervals [m, 2] or None, and sentences."""

    weights: np.ndarray
    intervals: np.ndarray | None
    notes: tuple[str, ...]


def propose_log_linear(
    table: ProxyTable, objective: np.ndarray, simplex: Simplex, *, seed: int, prior_strength: float
) -> Proposal:
    """Least predicted objective under log-linear laws, plus Olmix's prior_strength * KL(w || uniform).

    Intervals: a residual bootstrap; laws are fitted again to resampled residuals and the optimum is found
    again. None when there are not at least two more runs than parameters.
    """
    weights, losses = table.weights, table.losses
    laws = [fit_log_linear(weights, losses[:, k]) for k in range(losses.shape[1])]
    best = _log_linear_optimum(laws, objective, simplex, prior_strength, _starts(table, objective, simplex))
    predicted = np.column_stack([law.predict(weights) for law in laws])
    notes = [
        _fit_note(
            "log-linear laws, on the runs they were fitted to",
            predicted @ objective,
            table.mean_loss(objective),
        )
    ]
    n, m = weights.shape
    if n < m + 3:
        notes.append(f"{n} runs for {m + 1} parameters a law: no interval can be given")
        return Proposal(best, None, tuple(notes))
    # Fitted residuals are smaller than the errors; the usual factor makes their variance right.
    residuals = (losses - predicted) * np.sqrt(n / (n - m - 1))
    residuals = residuals - residuals.mean(axis=0)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x10C]))
    draws = []
    for _ in range(RESAMPLES):
        # The same rows for all metrics keep the correlation of their errors.
        resampled = predicted + residuals[rng.integers(0, n, size=n)]
        resampled = np.maximum(resampled, 1e-3 * losses.min())
        refitted = [
            fit_log_linear(weights, resampled[:, k], start=law, ridge=1e-6) for k, law in enumerate(laws)
        ]
        draws.append(_log_linear_optimum(refitted, objective, simplex, prior_strength, [best]))
    return Proposal(best, _intervals(np.array(draws), best), tuple(notes))


def propose_process(
    table: ProxyTable, objective: np.ndarray, simplex: Simplex, *, seed: int, epsilon: float
) -> Proposal:
    """Least posterior mean under Gaussian processes on log shares.

    Intervals and the probability of beating uniform come from posterior draws of the objective over many
    mixtures: in each draw another one is best.
    """
    processes = [
        fit_process(table.weights, table.losses[:, k], epsilon=epsilon) for k in range(table.losses.shape[1])
    ]
    used = [(float(o), process) for o, process in zip(objective, processes, strict=True) if o != 0]

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        mean = sum(o * float(p.predict(w[None])[0]) for o, p in used)
        return mean, np.asarray(sum(o * p.gradient(w) for o, p in used))

    cloud = simplex.cloud(_starts(table, objective, simplex), CANDIDATES, seed)
    means = np.asarray(sum(o * p.predict(cloud) for o, p in used))
    starts = [cloud[i] for i in np.argsort(means, kind="stable")[:STARTS]]
    best = minimise(value, simplex, starts)
    near = simplex.cloud([best], CANDIDATES, seed + 1)
    uniform = simplex.project(np.full(len(best), 1 / len(best)))
    points = np.vstack([best, uniform, near])
    draws = _posterior_draws(used, points, seed)
    chosen = points[np.argmin(draws, axis=1)]
    left_out = np.column_stack([p.left_out() for p in processes]) @ objective
    notes = (
        _fit_note(
            "Gaussian processes, each run predicted from the others", left_out, table.mean_loss(objective)
        ),
        "Probability that this mixture beats uniform under the model: "
        f"{np.mean(draws[:, 0] < draws[:, 1]):.2f} "
        f"(predicted {value(best)[0]:.4f} against {value(uniform)[0]:.4f})",
    )
    return Proposal(best, _intervals(chosen, best), notes)


def objective_weights(metrics: tuple[str, ...], objective: Mapping[str, float] | None) -> np.ndarray:
    """Weights [k] of the metrics in the objective; equal ones unless given. They sum to 1."""
    if objective is None:
        return np.full(len(metrics), 1 / len(metrics))
    raw = np.array([float(objective.get(name, 0.0)) for name in metrics])
    return raw / raw.sum()


def _log_linear_optimum(
    laws: list[LogLinear],
    objective: np.ndarray,
    simplex: Simplex,
    prior_strength: float,
    starts: list[np.ndarray],
) -> np.ndarray:
    m = len(simplex.sources)
    slopes = np.stack([law.slopes for law in laws])

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = objective * np.exp(np.minimum(slopes @ w, 50.0))
        total, gradient = float(exponent.sum()), exponent @ slopes
        if prior_strength:
            safe = np.maximum(w, 1e-12)
            total += prior_strength * float(np.sum(safe * np.log(safe * m)))
            gradient = gradient + prior_strength * (np.log(safe * m) + 1)
        return total, gradient

    return minimise(value, simplex, starts)


def _starts(table: ProxyTable, objective: np.ndarray, simplex: Simplex) -> list[np.ndarray]:
    m = len(simplex.sources)
    order = np.argsort(table.mean_loss(objective), kind="stable")[:3]
    return [simplex.project(np.full(m, 1 / m))] + [
        simplex.project(0.95 * table.weights[i] + 0.05 / m) for i in order
    ]


def _posterior_draws(used: list[tuple[float, LogShareProcess]], points: np.ndarray, seed: int) -> np.ndarray:
    """Draws [DRAWS, q] of the objective at `points`; metrics are independent given the runs."""
    mean = np.asarray(sum(o * p.predict(points) for o, p in used))
    covariance = np.asarray(sum(o**2 * p.covariance(points) for o, p in used))
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x6A0]))
    return mean + rng.standard_normal((DRAWS, len(points))) @ root.T


def _intervals(draws: np.ndarray, best: np.ndarray) -> np.ndarray:
    bounds = np.array([percentile_interval(draws[:, j], LEVEL) for j in range(draws.shape[1])])
    return np.column_stack([np.minimum(bounds[:, 0], best), np.maximum(bounds[:, 1], best)])


def _fit_note(what: str, predicted: np.ndarray, observed: np.ndarray) -> str:
    error = float(np.sqrt(np.mean(np.square(predicted - observed))))
    rank = (
        float(spearmanr(predicted, observed).statistic)
        if len(observed) > 2 and np.ptp(predicted) > 0
        else float("nan")
    )
    shown = f", rank correlation {rank:.2f}" if np.isfinite(rank) else ""
    return (
        f"Fit of the objective ({what}): root mean square error {error:.4f} where runs spread "
        f"by {observed.std():.4f}{shown}"
    )
