"""Was influence worth anything here? The learned scale of the gradient evidence, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from mixing.posterior.model import Problem, lengths_of, loadings_of, negative_log_posterior, trend_size
from mixing.posterior.posterior import LossPosterior

LEVEL = 0.9
SURE = 0.95
POINTS = 33
REACH = 1.6


@dataclass(frozen=True)
class InfluenceScale:
    """By how much influence follows the loss's true gradient, for one capability.

    scale : mean of r: influence = r * gradient of the loss + error, both in units of their own spread (the
            gradient's is that of the fitted process), so r is near 1 where influence is the gradient, 0 where it
            is worthless, and below 0 where it misleads
    low, high : central 90 % of the posterior of r; positive: probability that r > 0
    worthless : probability that r is exactly 0, out of one half beforehand; it counts in all figures above
    error : the part of the influence that is not the gradient, in units of its spread; 1 is all of it
    worth : whether r > 0 with probability .95
    """

    capability: str
    scale: float
    low: float
    high: float
    positive: float
    worthless: float
    error: float
    worth: bool

    def sentence(self) -> str:
        """Was influence worth anything here?"""
        known = "followed" if self.worth else "is not known to follow"
        return (
            f"Influence on {self.capability} {known} the loss's gradient: scale {self.scale:.2f} "
            f"(90 % interval {self.low:.2f} to {self.high:.2f}; worthless, 0, with probability {self.worthless:.2f})"
        )


def influence_scales(posterior: LossPosterior) -> tuple[InfluenceScale, ...]:
    """The posterior of every capability's scale; empty without influence.

    Along a grid of r, the other hyperparameters at the values of the most probable component, with the error's
    size maximised: the profile of the posterior, which is one-dimensional and may be skewed, so no normal
    approximation is made.
    """
    found = []
    for group in posterior.groups:
        component = max(group.components, key=lambda part: part.weight)
        problem = component.problem
        if "scale" not in problem.layout.slots:
            continue
        for place, capability in enumerate(group.capabilities):
            observed = problem.evidence.observed[place, problem.evidence.derivative]
            if not np.isfinite(observed).any():
                continue
            grid, density, error = _profile(problem, component.theta, place)
            density = (1 - group.worthless) * density
            density[POINTS // 2] += group.worthless
            total = np.cumsum(density)
            low, high = grid[np.searchsorted(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]
            positive = float(density[POINTS // 2 + 1 :].sum())
            found.append(
                InfluenceScale(
                    posterior.capabilities[capability],
                    float(density @ grid),
                    float(low),
                    float(high),
                    positive,
                    group.worthless,
                    float(density @ error),
                    positive >= SURE,
                )
            )
    return tuple(found)


def _profile(problem: Problem, theta: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid of r, its normalised density (the prior's included), and the error's size at each."""
    derivative = problem.evidence.derivative
    along = problem.of.along[derivative] / lengths_of(problem, theta)[place]
    of_process = np.square(along).sum(axis=1) * loadings_of(problem, theta)[place, place] ** 2
    of_trend = np.diag(problem.trend.kernel)[derivative] * trend_size(problem, theta)[place] ** 2
    spread = float(np.sqrt((of_process + of_trend).mean()))
    unit = float(problem.expected[place]) / max(spread, 1e-6)
    at = problem.layout.slots["scale"].start + place
    noise = problem.layout.slots["error"].start + place
    grid = np.linspace(-REACH, REACH, POINTS)
    values, errors = np.zeros(POINTS), np.zeros(POINTS)
    for index, scale in enumerate(grid):
        trial = theta.copy()
        trial[at] = scale * unit

        def value(size: float, trial: np.ndarray = trial) -> float:
            moved = trial.copy()
            moved[noise] = size
            return negative_log_posterior(moved, problem)[0]

        best = minimize_scalar(value, bounds=(-3.0, 1.0), method="bounded", options={"xatol": 0.15})
        values[index], errors[index] = best.fun, np.exp(best.x)
    density = np.exp(values.min() - values)
    return grid, density / density.sum(), errors
