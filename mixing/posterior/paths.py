"""Whole functions from the posterior, and their minima over the allowed mixtures, many at a time.

A draw of the posterior as a function is a draw of the prior plus a correction towards the evidence (Matheron's
rule; Wilson et al. 2020): prior draws are sums of cosines (Rahimi and Recht 2007), the correction is exact, a sum
of kernels at the evidence. So it and its gradient are known everywhere, and its minimum is not bound to a grid of
candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve
from scipy.special import erf

from mixing.fit.search import Simplex
from mixing.posterior.drawing import root, whole_shares
from mixing.posterior.kernel import blocks, functionals, slopes
from mixing.posterior.model import OFFSET_VARIANCE, noise_terms, trend_size
from mixing.posterior.posterior import (
    Component,
    LossPosterior,
    constants,
    kernel_slope,
    pulls,
)
from mixing.posterior.trend import MEAN, SPREAD

COSINES = 192
STEPS = 80
ZERO = 1e-3
"""Shares below this are taken as zero in draws of the best mixture."""


@dataclass(frozen=True)
class _Waves:
    """Prior draws of one process: sum_k weight_dk cos(x . frequency_k + phase_k)."""

    frequency: np.ndarray
    phase: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class _Bundle:
    """Functions of one component: pull [D, latents, n], waves by latent or None, trend [D], constant [D]."""

    component: Component
    pull: np.ndarray
    waves: tuple[_Waves, ...] | None
    trend: np.ndarray
    constant: np.ndarray

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [D] and gradients [D, m] of function d at mixture d of [D, m]."""
        problem = self.component.problem
        points = functionals(weights, None, problem.epsilon)
        value = self.constant + problem.trend.basis(points.at) * self.trend
        slope = np.tile(-self.trend[:, None] / problem.trend.unit, weights.shape[1])
        for q, length in enumerate(self.component.lengths):
            block = blocks(points, problem.of, length)
            value += (block.matrix * self.pull[:, q]).sum(1)
            slope += kernel_slope(problem, block.gaussian, points.at, length, self.pull[:, q])
            if self.waves is not None:
                wave = self.waves[q]
                angle = points.at @ wave.frequency.T + wave.phase
                value += (np.cos(angle) * wave.weight).sum(1)
                slope -= (np.sin(angle) * wave.weight) @ wave.frequency
        return value, slope * slopes(weights, problem.epsilon)


@dataclass(frozen=True)
class Functions:
    """D functions of the mixture; each is the sum, over its parts, of one row of a bundle."""

    count: int
    parts: tuple[tuple[_Bundle, np.ndarray, float], ...]

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [D] and gradients [D, m] of function d at mixture d of [D, m]."""
        value, slope = np.zeros(self.count), np.zeros_like(weights)
        for bundle, rows, share in self.parts:
            v, s = bundle(weights[rows])
            value[rows] += share * v
            slope[rows] += share * s
        return value, slope


def mean_functions(posterior: LossPosterior, objectives: np.ndarray) -> Functions:
    """Posterior means of several weighed sums of losses; objectives [D, c]."""
    count = len(objectives)
    parts = []
    for group in posterior.groups:
        own = objectives[:, list(group.capabilities)]
        for component in group.components:
            problem = component.problem
            pull = np.stack([pulls(component, o) for o in own])
            constant = own @ (problem.mean + problem.scale * constants(component))
            trend = (own * problem.scale) @ component.trend
            bundle = _Bundle(component, pull, None, trend, constant)
            parts.append((bundle, np.arange(count), component.weight))
    return Functions(count, tuple(parts))


def sampled_functions(posterior: LossPosterior, objective: np.ndarray, draws: int, seed: int) -> Functions:
    """Draws of the weighed sum of losses `objective` [c] as functions of the mixture."""
    parts = []
    n = len(posterior.evidence.points)
    shared = np.random.default_rng(np.random.SeedSequence([seed, 0x9A8])).standard_normal
    # Errors go together over capabilities as their residuals do: the noise of the runs and, through common
    # frequencies, the prior draws.
    link = root(posterior.correlation).T
    c, m = posterior.losses.shape[1], len(posterior.sources)
    normal, of_waves = shared((draws, n, c)) @ link, shared((draws, COSINES, c)) @ link
    frequency, phase = shared((COSINES, m)), np.pi * (1 + erf(shared(COSINES) / np.sqrt(2)))
    of_trends = shared((draws, c)) @ link
    for place, group in enumerate(posterior.groups):
        own = objective[list(group.capabilities)]
        if not own.any():
            continue
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x9A7, place]))
        order = rng.permutation(draws)
        start = 0
        counts = whole_shares(group.shares, draws)
        for component, count in zip(group.components, counts, strict=True):
            if count:
                rows = order[start : start + count]
                places = list(group.capabilities)
                of_runs = normal[rows][:, :, places].transpose(0, 2, 1)
                trends = of_trends[rows][:, places]
                waves = _Waves(frequency, phase, of_waves[rows][:, :, group.capabilities[0]])
                bundle = _draw(component, own, of_runs, trends, waves, rng)
                parts.append((bundle, rows, 1.0))
            start += count
    return Functions(draws, tuple(parts))


def _draw(
    component: Component,
    objective: np.ndarray,
    of_runs: np.ndarray,
    of_trends: np.ndarray,
    common: _Waves,
    rng: np.random.Generator,
) -> _Bundle:
    """Functions whose runs have the noise `of_runs` [D, c, n], whose trends have the coefficients `of_trends` [D, c]
    and whose first process has the waves `common`, all standard normal."""
    draws = len(of_runs)
    problem, (c, n) = component.problem, component.response.shape
    of, size = problem.of, trend_size(problem, component.theta)
    trend = size * (MEAN + SPREAD * of_trends)
    observed = component.response * trend[:, :, None] * problem.trend.rows
    waves = []
    for q, length in enumerate(component.lengths):
        normal = common.weight if q == 0 else rng.standard_normal((draws, COSINES))
        base = common.frequency if q == 0 else rng.standard_normal((COSINES, len(length)))
        frequency, phase = base / length, common.phase
        weight = normal * np.sqrt(2 / COSINES)
        angle = of.at @ frequency.T + phase
        basis = of.value[:, None] * np.cos(angle) - np.sin(angle) * (of.along @ frequency.T)
        seen = weight @ basis.T
        observed += component.loadings[q][None, :, None] * component.response * seen[:, None]
        amplitude = float(component.loadings[q] @ (objective * problem.scale))
        waves.append(_Waves(frequency, phase, weight * amplitude))
    offset = np.zeros((draws, c))
    for name, over, rows in noise_terms(problem, component.theta):
        noise = _noise(over, rows, of_runs if name == "noise" else rng.standard_normal(of_runs.shape))
        observed += noise
        if name == "offset":
            main = np.flatnonzero(problem.evidence.runs)[0]
            offset = noise[:, :, main]
    missing = problem.targets - observed[:, problem.capability, problem.row]
    alpha = cho_solve((component.factor, True), missing.T, check_finite=False).T
    full = np.zeros((draws, c, n))
    full[:, problem.capability, problem.row] = alpha
    weighed = full * component.response
    amplitudes = component.loadings @ (objective * problem.scale)
    pull = amplitudes[None, :, None] * np.einsum("qc,dcn->dqn", component.loadings, weighed)
    offset = offset + OFFSET_VARIANCE * full[:, :, problem.evidence.runs].sum(axis=2)
    constant = (problem.mean + problem.scale * offset) @ objective
    trend = (trend + np.square(size * SPREAD) * (weighed @ problem.trend.rows)) @ (objective * problem.scale)
    return _Bundle(component, pull, tuple(waves), trend, constant)


def _noise(over: np.ndarray, rows: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Draws [D, c, n] with covariance over x rows; `rows` is diagonal or says which rows are equal."""
    left = np.linalg.cholesky(over + 1e-14 * np.trace(over) * np.eye(len(over)))
    first = np.array([np.flatnonzero(row)[0] if row.any() else -1 for row in rows])
    # Rows that are equal take the number of the first of them; rows without the term take none.
    shared = normal[:, :, first] * (first >= 0)
    return np.einsum("ab,dbn->dan", left, shared)


def minima(functions: Functions, simplex: Simplex, starts: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """The mixture of least value of each function, [D, m], from the best of `starts` [s, m] for each.

    Exponentiated gradient with a step of its own for each function, longer after a step that helped, shorter
    after one that did not; every step ends in the nearest allowed mixture (KL). Local minima are possible.
    """
    low, high = simplex.low, simplex.high
    count = functions.count
    best, value = np.tile(starts[0], (count, 1)), np.full(count, np.inf)
    for start in starts:
        tried = np.tile(start, (count, 1))
        found = functions(tried)[0]
        better = found < value
        best[better], value[better] = start, found[better]
    w = project_all(0.98 * best + 0.02 / best.shape[1], low, high)
    value, slope = functions(w)
    rate = np.ones(count)
    for _ in range(steps):
        # In units of the slope's own size, so that the rate does not depend on the unit of the losses.
        tangent = slope - (w * slope).sum(1, keepdims=True)
        size = np.maximum(np.abs(tangent).max(1, keepdims=True), 1e-300)
        moved = project_all(w * np.exp(-rate[:, None] * np.clip(tangent / size, -1, 1)), low, high)
        new_value, new_slope = functions(moved)
        better = new_value <= value
        w[better], value[better], slope[better] = moved[better], new_value[better], new_slope[better]
        rate = np.where(better, np.minimum(rate * 1.5, 8.0), rate * 0.3)
    return project_all(np.where(w < ZERO, 0.0, w), low, high)


def project_all(weights: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`mixing.projection` for many mixtures at once [D, m]: clip(mu * w, low, high) that sums to 1."""
    w = np.maximum(weights, 0.0)
    if not low.any() and (high >= 1).all():
        return w / w.sum(1, keepdims=True)
    # Zero weights take part only where the others cannot fill the mixture.
    w = np.maximum(w / w.sum(1, keepdims=True), 1e-12)
    least, most = np.full(len(w), -40.0), np.full(len(w), 40.0)
    for _ in range(70):
        middle = (least + most) / 2
        total = np.clip(np.exp(middle)[:, None] * w, low, high).sum(1)
        least, most = np.where(total < 1, middle, least), np.where(total < 1, most, middle)
    return np.clip(np.exp(most)[:, None] * w, low, high)


def starting_points(
    posterior: LossPosterior, objective: np.ndarray, simplex: Simplex, seed: int
) -> np.ndarray:
    """Allowed mixtures to begin a search from: uniform, the best runs, and the best by the posterior mean."""
    m = len(simplex.sources)
    order = np.argsort(posterior.losses @ objective, kind="stable")[:4]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x57A]))
    cloud = np.vstack([rng.dirichlet(np.full(m, a), size=100) for a in (0.3, 1.0, 3.0)])
    cloud = project_all(np.maximum(cloud, 1e-9), simplex.low, simplex.high)
    good = cloud[np.argsort(posterior.mean(cloud) @ objective, kind="stable")[:4]]
    runs = 0.95 * posterior.runs[order] + 0.05 / m
    return project_all(np.vstack([np.full((1, m), 1 / m), runs, good]), simplex.low, simplex.high)
