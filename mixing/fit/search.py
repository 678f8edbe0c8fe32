"""The best mixture under a predicted loss, within bounds on the shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mixing.projection import project

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""weights [m] -> (predicted loss, its gradient [m])"""


@dataclass(frozen=True)
class Simplex:
    """Mixtures of named sources with least and greatest shares; arrays [m] in the order of `sources`."""

    sources: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray

    def project(self, weights: np.ndarray) -> np.ndarray:
        """The nearest allowed mixture in KL."""
        named = dict(zip(self.sources, (max(float(w), 0.0) for w in weights), strict=True))
        projected = project(
            named,
            available_tokens=None,
            budget_tokens=1,
            max_epochs=None,
            minimum=dict(zip(self.sources, self.low.tolist(), strict=True)),
            maximum=dict(zip(self.sources, self.high.tolist(), strict=True)),
        )
        return np.array([projected[source] for source in self.sources])

    def project_all(self, weights: np.ndarray) -> np.ndarray:
        """`project` for many positive mixtures [q, m] at once, by bisection for the common factor of each."""
        if np.all(self.low <= 0) and np.all(self.high >= 1):
            return weights / weights.sum(axis=1, keepdims=True)
        t = np.maximum(weights, 1e-300) / weights.max(axis=1, keepdims=True)
        low, high = np.full((len(t), 1), -800.0), np.full((len(t), 1), 800.0)  # of log mu
        with np.errstate(over="ignore"):
            for _ in range(70):
                middle = (low + high) / 2
                total = np.clip(np.exp(middle + np.log(t)), self.low, self.high).sum(axis=1, keepdims=True)
                low, high = np.where(total < 1, middle, low), np.where(total < 1, high, middle)
            filled = np.clip(np.exp(high + np.log(t)), self.low, self.high)
        return filled / filled.sum(axis=1, keepdims=True)

    def cloud(self, centres: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
        """Allowed mixtures [count, m] around the centres and all over the simplex, by a seed."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC10D]))
        m = len(self.sources)
        drawn = []
        for index in range(count):
            if index % 3 == 0:
                sample = rng.dirichlet(np.full(m, rng.choice([0.3, 1.0, 3.0])))
            else:
                centre = centres[index % len(centres)]
                sample = rng.dirichlet(np.maximum(centre, 1e-3) * m * rng.choice([3.0, 10.0, 40.0]))
            drawn.append(self.project(np.maximum(sample, 1e-12)))
        return np.array(drawn)


def minimise(objective: Objective, simplex: Simplex, starts: Sequence[np.ndarray]) -> np.ndarray:
    """The allowed mixture of least predicted loss found by SLSQP from several starts (exact when convex).

    A solver's answer counts only if it is better than its start after projection, so the result is never
    worse than the best start.
    """
    best, best_value = None, np.inf
    bounds = list(zip(simplex.low, simplex.high, strict=True))
    for start in starts:
        allowed = simplex.project(start)
        found = minimize(
            objective,
            allowed,
            jac=True,
            bounds=bounds,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-12},
        )
        for candidate in (allowed, simplex.project(found.x) if np.all(np.isfinite(found.x)) else allowed):
            value = objective(candidate)[0]
            if np.isfinite(value) and value < best_value - 1e-12:
                best, best_value = candidate, value
    assert best is not None
    return best
