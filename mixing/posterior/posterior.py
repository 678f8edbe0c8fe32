"""The posterior over every capability's loss at any mixture, averaged over plausible hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from mixing.posterior.evidence import MAIN
from mixing.posterior.kernel import blocks, functionals, slopes
from mixing.posterior.model import (
    OFFSET_VARIANCE,
    Problem,
    assemble,
    lengths_of,
    loadings_of,
    negative_log_posterior,
    response_of,
)


@dataclass(frozen=True)
class Component:
    """The Gaussian process of one draw of the hyperparameters.

    weight: its share of the posterior; factor: Cholesky of the observations' covariance [N, N]; alpha [N]
    lengths [latents, m]; loadings [latents, c]; response [c, n]
    """

    theta: np.ndarray
    weight: float
    factor: np.ndarray
    alpha: np.ndarray
    lengths: np.ndarray
    loadings: np.ndarray
    response: np.ndarray


def make_component(problem: Problem, theta: np.ndarray, weight: float) -> Component:
    """Condition on the evidence with these hyperparameters."""
    factor = cholesky(assemble(problem, theta).matrix, lower=True, check_finite=False)
    alpha = cho_solve((factor, True), problem.targets, check_finite=False)
    return Component(
        theta, weight, factor, alpha,
        lengths_of(problem, theta), loadings_of(problem, theta), response_of(problem, theta),
    )  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Capabilities that are modelled together: their places in the table, and one component a draw."""

    capabilities: tuple[int, ...]
    problem: Problem
    components: tuple[Component, ...]

    def moments(self, weights: np.ndarray, component: Component) -> tuple[np.ndarray, np.ndarray]:
        """Mean [q, c] and covariance [q, c, q, c] of the noise-free losses at mixtures [q, m]."""
        cross, prior = _covariances(self.problem, component, weights)
        q, c = len(weights), self.problem.outputs
        mean = self.problem.mean + self.problem.scale * (cross @ component.alpha).reshape(c, q).T
        half = solve_triangular(component.factor, cross.T, lower=True, check_finite=False)
        covariance = (prior - half.T @ half).reshape(c, q, c, q).transpose(1, 0, 3, 2)
        scale = self.problem.scale
        return mean, covariance * scale[None, :, None, None] * scale


@dataclass(frozen=True)
class LossPosterior:
    """What the evidence says about the losses; made by `fit_posterior`.

    sources [m], capabilities [c]; groups: capabilities that are modelled together. Draws of different groups
    are independent. `log_evidence`: log marginal likelihood and prior at the mode, standardised units.
    """

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    epsilon: float
    groups: tuple[Group, ...]
    log_evidence: float

    @property
    def runs(self) -> np.ndarray:
        """Mixtures of the runs with absolute losses [n, m]."""
        evidence = self.groups[0].problem.evidence
        return evidence.points[evidence.runs]

    @property
    def losses(self) -> np.ndarray:
        """Losses of those runs [n, c]."""
        found = np.zeros((int(self.groups[0].problem.evidence.runs.sum()), len(self.capabilities)))
        for group in self.groups:
            evidence = group.problem.evidence
            found[:, group.capabilities] = evidence.observed[:, evidence.runs].T
        return found

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """Posterior mean losses [q, c] at mixtures [q, m]."""
        found = np.zeros((len(weights), len(self.capabilities)))
        for group in self.groups:
            problem = group.problem
            for component in group.components:
                cross = _cross(problem, component, weights)
                value = (cross @ component.alpha).reshape(problem.outputs, len(weights)).T
                found[:, group.capabilities] += component.weight * (problem.mean + problem.scale * value)
        return found

    def objective_moments(self, weights: np.ndarray, objective: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [q] and covariance [q, q] of the weighed sum of losses, `objective` [c] its weights.

        The covariance holds the spread within and between draws of the hyperparameters.
        """
        q = len(weights)
        mean, covariance = np.zeros(q), np.zeros((q, q))
        for group in self.groups:
            own = objective[list(group.capabilities)]
            if not own.any():
                continue
            means = []
            for component in group.components:
                part, within = group.moments(weights, component)
                means.append(part @ own)
                covariance += component.weight * np.einsum("aibj,i,j->ab", within, own, own)
            shares = np.array([component.weight for component in group.components])
            centre = shares @ np.array(means)
            away = np.array(means) - centre
            covariance += (away * shares[:, None]).T @ away
            mean += centre
        return mean, covariance

    def noise(self, objective: np.ndarray) -> float:
        """Variance of the objective of one run beside what its seed shares with others."""
        total = 0.0
        for group in self.groups:
            own = objective[list(group.capabilities)] * group.problem.scale
            layout = group.problem.layout
            for component in group.components:
                variance = np.diag(np.exp(2 * layout.get(component.theta, "noise")))
                if group.problem.coupled:
                    loading = layout.get(component.theta, "noise_loading")
                    variance = variance + np.outer(loading, loading)
                total += component.weight * float(own @ variance @ own)
        return total

    def samples(self, weights: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
        """Joint samples [draws, q, c] of the noise-free losses at mixtures [q, m].

        Exact draws of the Gaussian processes, hyperparameters drawn anew for each block of draws in
        proportion to their weights. The same seed and mixtures give the same draws.
        """
        weights = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        found = np.zeros((draws, len(weights), len(self.capabilities)))
        for place, group in enumerate(self.groups):
            rng = np.random.default_rng(np.random.SeedSequence([seed, 0x9A3, place]))
            size = len(weights) * group.problem.outputs
            normal = rng.standard_normal((draws, size))
            counts = _shares(np.array([component.weight for component in group.components]), draws)
            drawn = np.zeros((draws, size))
            start = 0
            for component, count in zip(group.components, counts, strict=True):
                if count == 0:
                    continue
                mean, covariance = group.moments(weights, component)
                root = _root(covariance.reshape(size, size))
                drawn[start : start + count] = mean.ravel() + normal[start : start + count] @ root.T
                start += count
            # Groups are independent: their hyperparameters must not go together.
            drawn = drawn[rng.permutation(draws)]
            found[:, :, list(group.capabilities)] = drawn.reshape(draws, len(weights), -1)
        return found

    def mean_gradient(self, weights: np.ndarray, objective: np.ndarray) -> tuple[float, np.ndarray]:
        """Posterior mean of the objective at one mixture [m], and its gradient [m]."""
        value, slope = 0.0, np.zeros(len(weights))
        for group in self.groups:
            own = objective[list(group.capabilities)]
            if not own.any():
                continue
            problem = group.problem
            point = functionals(weights[None], None, self.epsilon)
            for component in group.components:
                value += component.weight * float(own @ problem.mean)
                pull = pulls(problem, component, own)
                value += component.weight * float(own @ problem.scale * 0.0)
                for q, length in enumerate(component.lengths):
                    block = blocks(point, problem.of, length)
                    value += component.weight * float(block.matrix[0] @ pull[q])
                    slope += component.weight * kernel_slope(problem, block.gaussian, point.at, length, pull[q])[0]
                if not np.isfinite(value):
                    return np.inf, slope
                value += component.weight * float(own @ (problem.scale * _constants(problem, component)))
        return value, slope * slopes(weights, self.epsilon)


def pulls(problem: Problem, component: Component, objective: np.ndarray) -> np.ndarray:
    """Coefficients [latents, n] with which the mean of the objective is a sum of kernels (losses' units)."""
    c, n = component.response.shape
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


def _constants(problem: Problem, component: Component) -> np.ndarray:
    """Posterior mean [c] of the offset of absolute losses."""
    main = problem.evidence.runs.astype(float)[problem.row]
    return np.array(
        [
            OFFSET_VARIANCE * float((component.alpha * main)[problem.capability == c].sum())
            for c in range(problem.outputs)
        ]
    )


def _cross(problem: Problem, component: Component, weights: np.ndarray) -> np.ndarray:
    """Covariance [c q, N] of the losses at mixtures [q, m] with the observations."""
    q, (c, n) = len(weights), component.response.shape
    points = functionals(weights, None, problem.epsilon)
    full = np.zeros((c, q, c, n))
    for length, loading in zip(component.lengths, component.loadings, strict=True):
        kernel = blocks(points, problem.of, length).matrix
        for a in np.flatnonzero(loading):
            for b in np.flatnonzero(loading):
                full[a, :, b] += loading[a] * loading[b] * component.response[b] * kernel
    main = problem.evidence.offset == MAIN
    for a in range(c):
        full[a, :, a] += OFFSET_VARIANCE * main
    return full.reshape(c * q, c * n)[:, problem.capability * n + problem.row]


def _covariances(
    problem: Problem, component: Component, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    q, c = len(weights), problem.outputs
    points = functionals(weights, None, problem.epsilon)
    prior = np.zeros((c, q, c, q))
    for length, loading in zip(component.lengths, component.loadings, strict=True):
        kernel = blocks(points, points, length).matrix
        for a in np.flatnonzero(loading):
            for b in np.flatnonzero(loading):
                prior[a, :, b] += loading[a] * loading[b] * kernel
    for a in range(c):
        prior[a, :, a] += OFFSET_VARIANCE
    return _cross(problem, component, weights), prior.reshape(c * q, c * q)


def _root(covariance: np.ndarray) -> np.ndarray:
    symmetric = (covariance + covariance.T) / 2
    size = float(np.trace(symmetric)) / len(symmetric)
    for jitter in (1e-12, 1e-10, 1e-8):
        try:
            return np.linalg.cholesky(symmetric + jitter * max(size, 1e-300) * np.eye(len(symmetric)))
        except np.linalg.LinAlgError:
            continue
    values, vectors = np.linalg.eigh(symmetric)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _shares(weights: np.ndarray, draws: int) -> np.ndarray:
    """Whole numbers that sum to `draws`, in proportion (largest remainder)."""
    exact = weights / weights.sum() * draws
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: draws - int(counts.sum())]:
        counts[index] += 1
    return counts


def component_evidence(problem: Problem, theta: np.ndarray) -> float:
    """Log posterior density of hyperparameters up to a constant."""
    return -negative_log_posterior(theta, problem)[0]
