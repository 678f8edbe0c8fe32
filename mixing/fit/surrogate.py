"""Mixtures from a model of the loss: fit one law a metric, take the mixture of least predicted objective.

Laws are fitted to each metric and averaged afterwards; fitting the average directly costs a lot of accuracy.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from mixing.fit.log_linear import LogLinear, fit_log_linear
from mixing.fit.loss_posterior import ProcessPosterior
from mixing.fit.proposal import Proposal, weight_intervals
from mixing.fit.search import Simplex, minimise
from mixing.fit.tables import ProxyTable

RESAMPLES = 60
CANDIDATES = 600
DRAWN_CANDIDATES = 300
DRAWS = 400
STARTS = 6


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
        fit_note(
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
    return Proposal(best, weight_intervals(np.array(draws), best), tuple(notes))


def propose_process(
    table: ProxyTable, posterior: ProcessPosterior, objective: np.ndarray, simplex: Simplex, *, seed: int
) -> Proposal:
    """Least posterior mean under Gaussian processes on log shares.

    Intervals come from posterior draws of the objective over many mixtures: in each draw another is best.
    """
    used = [(float(o), p) for o, p in zip(objective, posterior.processes, strict=True) if o != 0]

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        mean = sum(o * float(p.predict(w[None])[0]) for o, p in used)
        return mean, np.asarray(sum(o * p.gradient(w) for o, p in used))

    cloud = simplex.cloud(_starts(table, objective, simplex), CANDIDATES, seed)
    means = posterior.mean(cloud) @ objective
    starts = [cloud[i] for i in np.argsort(means, kind="stable")[:STARTS]]
    best = minimise(value, simplex, starts)
    points = np.vstack([best, simplex.cloud([best], DRAWN_CANDIDATES, seed + 1)])
    draws = posterior.samples(points, DRAWS, seed) @ objective
    chosen = points[np.argmin(draws, axis=1)]
    left_out = np.column_stack([p.left_out() for p in posterior.processes]) @ objective
    note = fit_note(
        "Gaussian processes, each run predicted from the others", left_out, table.mean_loss(objective)
    )
    return Proposal(best, weight_intervals(chosen, best), (note,))


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


def fit_note(what: str, predicted: np.ndarray, observed: np.ndarray) -> str:
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
