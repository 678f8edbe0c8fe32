"""The posterior over every capability's loss at any mixture, averaged over plausible hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from mixing.posterior.drawing import root, whole_shares
from mixing.posterior.evidence import MAIN, Evidence
from mixing.posterior.kernel import blocks, features, functionals, slopes
from mixing.posterior.model import (
    OFFSET_VARIANCE,
    Problem,
    assemble,
    trend_size,
)
from mixing.posterior.trend import MEAN, SPREAD


@dataclass(frozen=True)
class Component:
    """The Gaussian process of one draw of the hyperparameters.

    problem: the evidence in the features of one epsilon; weight: its share of the posterior
    factor: Cholesky of the observations' covariance [N, N]; alpha [N]
    lengths [latents, m]; loadings [latents, c]; response [c, n]
    trend [c]: posterior mean of the trend's coefficient b (`mixing.posterior.trend`)
    """

    problem: Problem
    theta: np.ndarray
    weight: float
    factor: np.ndarray
    alpha: np.ndarray
    lengths: np.ndarray
    loadings: np.ndarray
    response: np.ndarray
    trend: np.ndarray


def make_component(problem: Problem, theta: np.ndarray, weight: float) -> Component:
    """Condition on the evidence with these hyperparameters."""
    parts = assemble(problem, theta)
    factor = cholesky(parts.matrix, lower=True, check_finite=False)
    alpha = cho_solve((factor, True), parts.away, check_finite=False)
    size, weighed = trend_size(problem, theta), np.zeros_like(parts.response)
    weighed[problem.capability, problem.row] = alpha
    moved = SPREAD**2 * (weighed * parts.response) @ problem.trend.rows
    return Component(
        problem, theta, weight, factor, alpha, parts.lengths, parts.loadings, parts.response,
        size * (MEAN + size * moved),
    )  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Capabilities that are modelled together: their places in the table, and one component a draw.

    worthless: probability that influence has nothing to do with the losses' gradients; 0 without influence
    """

    capabilities: tuple[int, ...]
    components: tuple[Component, ...]
    worthless: float = 0.0

    @property
    def shares(self) -> np.ndarray:
        """Weights of the components."""
        return np.array([component.weight for component in self.components])


def moments(component: Component, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [q, c] and covariance [q, c, q, c] of the noise-free losses at mixtures [q, m]."""
    problem = component.problem
    cross, prior = _covariances(component, weights)
    q, c = len(weights), problem.outputs
    mean = problem.mean + problem.scale * standard_mean(component, cross, weights)
    half = solve_triangular(component.factor, cross.T, lower=True, check_finite=False)
    covariance = (prior - half.T @ half).reshape(c, q, c, q).transpose(1, 0, 3, 2)
    return mean, covariance * problem.scale[None, :, None, None] * problem.scale


@dataclass(frozen=True)
class LossPosterior:
    """What the evidence says about the losses; made by `fit_posterior`.

    sources [m], capabilities [c]; groups: capabilities that are modelled together
    evidence    : what it rests on, on the table's sources and capabilities
    correlation : [c, c], of the errors of different groups: that of their residuals, each run predicted from the
                  others (`residual_correlation`). What a seed does to one capability it does to others too, so
                  the error of their mean is larger than if they were independent.
    """

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    evidence: Evidence
    groups: tuple[Group, ...]
    correlation: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """Mixtures of the runs with absolute losses [n, m]."""
        return self.evidence.points[self.evidence.runs]

    @property
    def losses(self) -> np.ndarray:
        """Losses of those runs [n, c]."""
        return self.evidence.observed[:, self.evidence.runs].T

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """Posterior mean losses [q, c] at mixtures [q, m]."""
        found = np.zeros((len(weights), len(self.capabilities)))
        for group in self.groups:
            for component in group.components:
                problem = component.problem
                value = standard_mean(component, _cross(component, weights), weights)
                found[:, group.capabilities] += component.weight * (problem.mean + problem.scale * value)
        return found

    def objective_moments(self, weights: np.ndarray, objective: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [q] and covariance [q, q] of the weighed sum of losses, `objective` [c] its weights.

        The covariance holds the spread within and between draws of the hyperparameters.
        """
        q = len(weights)
        mean, covariance = np.zeros(q), np.zeros((q, q))
        roots = []
        for group in self.groups:
            own = objective[list(group.capabilities)]
            if not own.any():
                continue
            means, within = [], np.zeros((q, q))
            for component in group.components:
                part, spread = moments(component, weights)
                means.append(part @ own)
                within += component.weight * np.einsum("aibj,i,j->ab", spread, own, own)
            centre = group.shares @ np.array(means)
            away = np.array(means) - centre
            roots.append((group.capabilities[0], root(within + (away * group.shares[:, None]).T @ away)))
            mean += centre
        for a, left in roots:
            for b, right in roots:
                link = 1.0 if a == b else self.correlation[a, b]
                covariance += link * left @ right.T
        return mean, (covariance + covariance.T) / 2

    def noise(self, objective: np.ndarray) -> float:
        """Variance of the objective of one run beside what its seed shares with others."""
        deviations = np.zeros(len(self.capabilities))
        for group in self.groups:
            for component in group.components:
                layout, places = component.problem.layout, list(group.capabilities)
                variance = np.exp(2 * layout.get(component.theta, "noise"))
                if component.problem.coupled:
                    variance = variance + np.square(layout.get(component.theta, "noise_loading"))
                deviations[places] += component.weight * np.square(component.problem.scale) * variance
        weighed = np.sqrt(deviations) * objective
        return float(weighed @ self.correlation @ weighed)

    def samples(self, weights: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
        """Joint samples [draws, q, c] of the noise-free losses at mixtures [q, m].

        Exact draws of the Gaussian processes, hyperparameters drawn anew for each block of draws in
        proportion to their weights. The same seed and mixtures give the same draws.
        """
        weights = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        q, c = len(weights), len(self.capabilities)
        found = np.zeros((draws, q, c))
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x9A3]))
        normal = rng.standard_normal((draws, q, c)) @ root(self.correlation).T
        for group in self.groups:
            places = list(group.capabilities)
            together = rng.standard_normal((draws, q, c)) if len(places) > 1 else normal
            # Hyperparameters of the groups must not go together.
            order, start = rng.permutation(draws), 0
            for component, count in zip(group.components, whole_shares(group.shares, draws), strict=True):
                rows = order[start : start + count]
                start += count
                if not count:
                    continue
                mean, covariance = moments(component, weights)
                size = q * len(places)
                away = (
                    together[rows][:, :, places].reshape(count, size) @ root(covariance.reshape(size, size)).T
                )
                found[np.ix_(rows, np.arange(q), np.array(places))] = mean + away.reshape(
                    count, q, len(places)
                )
        return found

    def mean_gradient(self, weights: np.ndarray, objective: np.ndarray) -> tuple[float, np.ndarray]:
        """Posterior mean of the objective at one mixture [m], and its gradient [m]."""
        value, slope = 0.0, np.zeros(len(weights))
        for group in self.groups:
            own = objective[list(group.capabilities)]
            if not own.any():
                continue
            for component in group.components:
                problem, share = component.problem, component.weight
                point = functionals(weights[None], None, problem.epsilon)
                pull = pulls(component, own)
                total = float(own @ (problem.mean + problem.scale * constants(component)))
                trend = float((own * problem.scale) @ component.trend)
                total += trend * float(problem.trend.basis(point.at)[0])
                along = np.full(len(weights), -trend / problem.trend.unit)
                for q, length in enumerate(component.lengths):
                    block = blocks(point, problem.of, length)
                    total += float(block.matrix[0] @ pull[q])
                    along += kernel_slope(problem, block.gaussian, point.at, length, pull[q])[0]
                value += share * total
                slope += share * along * slopes(weights, problem.epsilon)
        return value, slope


def pulls(component: Component, objective: np.ndarray) -> np.ndarray:
    """Coefficients [latents, n] with which the mean of the objective is a sum of kernels (losses' units)."""
    problem, (c, n) = component.problem, component.response.shape
    alpha = np.zeros(c * n)
    alpha[problem.capability * n + problem.row] = component.alpha
    weighed = alpha.reshape(c, n) * component.response
    amplitude = component.loadings @ (objective * problem.scale)
    return amplitude[:, None] * (component.loadings @ weighed)


def kernel_slope(
    problem: Problem, gaussian: np.ndarray, at: np.ndarray, lengths: np.ndarray, pull: np.ndarray
) -> np.ndarray:
    """d sum_j pull_j K(x, j) / d x, [q, m] at features `at` [q, m]; gaussian [q, n], pull [n] or [q, n]."""
    of = problem.of
    inverse = 1.0 / np.square(lengths)
    weighed = gaussian * pull
    if not problem.evidence.derivative.any():
        return (weighed @ of.at - weighed.sum(1)[:, None] * at) * inverse
    towards = of.along * inverse
    column = at @ towards.T - (of.at * towards).sum(1)[None]
    factor = of.value[None] + column
    main = weighed * factor
    return (main @ of.at - main.sum(1)[:, None] * at) * inverse + weighed @ towards


def constants(component: Component) -> np.ndarray:
    """Posterior mean [c] of the offset of absolute losses."""
    problem = component.problem
    main = problem.evidence.runs.astype(float)[problem.row]
    return np.array(
        [
            OFFSET_VARIANCE * float((component.alpha * main)[problem.capability == c].sum())
            for c in range(problem.outputs)
        ]
    )


def standard_mean(component: Component, cross: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Posterior mean [q, c] at mixtures [q, m] in units of the spread; cross: `_cross` there."""
    problem, c = component.problem, component.problem.outputs
    prior = MEAN * problem.trend.basis(features(weights, problem.epsilon))
    return (cross @ component.alpha).reshape(c, -1).T + prior[:, None] * trend_size(problem, component.theta)


def _cross(component: Component, weights: np.ndarray) -> np.ndarray:
    """Covariance [c q, N] of the losses at mixtures [q, m] with the observations."""
    problem, q, (c, n) = component.problem, len(weights), component.response.shape
    points = functionals(weights, None, problem.epsilon)
    full = np.zeros((c, q, c, n))
    for length, loading in zip(component.lengths, component.loadings, strict=True):
        kernel = blocks(points, problem.of, length).matrix
        for a in np.flatnonzero(loading):
            for b in np.flatnonzero(loading):
                full[a, :, b] += loading[a] * loading[b] * component.response[b] * kernel
    main = problem.evidence.offset == MAIN
    trend = SPREAD**2 * np.outer(problem.trend.basis(points.at), problem.trend.rows)
    for own, size in enumerate(trend_size(problem, component.theta)):
        full[own, :, own] += size**2 * component.response[own] * trend + OFFSET_VARIANCE * main
    return full.reshape(c * q, c * n)[:, problem.capability * n + problem.row]


def _covariances(component: Component, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    problem, q, c = component.problem, len(weights), component.problem.outputs
    points = functionals(weights, None, problem.epsilon)
    prior = np.zeros((c, q, c, q))
    for length, loading in zip(component.lengths, component.loadings, strict=True):
        kernel = blocks(points, points, length).matrix
        for a in np.flatnonzero(loading):
            for b in np.flatnonzero(loading):
                prior[a, :, b] += loading[a] * loading[b] * kernel
    basis = problem.trend.basis(points.at)
    trend = SPREAD**2 * np.outer(basis, basis)
    for own, size in enumerate(trend_size(problem, component.theta)):
        prior[own, :, own] += size**2 * trend + OFFSET_VARIANCE
    return _cross(component, weights), prior.reshape(c * q, c * q)
