"""Which proxy runs to train next: the batch of mixtures that is expected to improve the decision most.

Knowledge gradient (Frazier et al. 2009) of the objective: a run at x is worth

    E[ min_a mean(a) - min_a (mean(a) + c(a, x) Z) ],   c(a, x) = cov(a, x) / sqrt(var(x) + noise),  Z ~ N(0, 1)

over decisions a, which are minima of functions drawn from the posterior, the recommended mixture and mixtures
between them. A batch is chosen one run at a time; after each the covariance is what it will be once that run is
known (it does not depend on the loss that will be seen), so that a batch does not ask one question twice.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from mixing.fit.search import Simplex
from mixing.posterior.kernel import features
from mixing.posterior.paths import minima, project_all, sampled_functions, starting_points
from mixing.posterior.posterior import LossPosterior
from mixing.posterior.recommend import best_mixture

DRAWS = 48
QUANTILES = 24
EPSILON = 0.02


def first_mixtures(simplex: Simplex, n: int, *, seed: int = 0, candidates: int = 512) -> np.ndarray:
    """Mixtures [n, m] for a first round, when nothing is known: uniform, then spread over the log shares.

    Each is the candidate that is farthest from those already taken (greedy maximin) among interior and sparse
    Dirichlet draws. Equal sources, bounds and seed give equal mixtures.
    """
    m = len(simplex.sources)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xF125]))
    cloud = np.vstack([rng.dirichlet(np.full(m, a), size=candidates // 2) for a in (0.7, 1.5)])
    cloud = project_all(
        np.vstack([np.full((1, m), 1 / m), np.maximum(cloud, 1e-6)]), simplex.low, simplex.high
    )
    at = features(cloud, EPSILON)
    chosen = [0]
    distance = np.square(at - at[0]).sum(1)
    while len(chosen) < n:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.square(at - at[chosen[-1]]).sum(1))
    return cloud[chosen]


def propose(
    posterior: LossPosterior, simplex: Simplex, n: int, *, objective: np.ndarray, seed: int = 0
) -> np.ndarray:
    """The next n mixtures to train [n, m], best first; objective [c] weighs the capabilities."""
    starts = starting_points(posterior, objective, simplex, seed)
    best = best_mixture(posterior, objective, simplex, starts)
    functions = sampled_functions(posterior, objective, DRAWS, seed)
    optima = minima(functions, simplex, np.vstack([best[None], starts]), steps=40)
    between = 0.5 * (optima + best)
    decisions = project_all(np.vstack([best[None], optima, between]), simplex.low, simplex.high)
    mean, covariance = posterior.objective_moments(decisions, objective)
    return decisions[knowledge_gradient_batch(mean, covariance, posterior.noise(objective), n)]


def knowledge_gradient_batch(mean: np.ndarray, covariance: np.ndarray, noise: float, n: int) -> list[int]:
    """Indices of n decisions to observe, greedily by knowledge gradient; a decision may come twice.

    mean [a], covariance [a, a] of the objective at the decisions; noise: variance of one observation.
    """
    z = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
    covariance = covariance.copy()
    chosen: list[int] = []
    for _ in range(n):
        variance = (
            np.maximum(np.diag(covariance), 0.0) + noise + 1e-12 * max(float(np.trace(covariance)), 1e-300)
        )
        change = covariance / np.sqrt(variance)[None]
        least = np.min(mean[:, None, None] + change[:, :, None] * z, axis=0)
        gain = mean.min() - least.mean(axis=1)
        pick = int(np.argmax(gain))
        chosen.append(pick)
        covariance = covariance - np.outer(change[:, pick], change[:, pick])
    return chosen
