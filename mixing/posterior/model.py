"""The joint model of all capabilities' losses, its hyperparameters, and its marginal likelihood.

In units of each capability's own spread over the runs,

    f_c(w) = trend_c(w) + g_c(w) + a_c h(w),   g_1..g_C, h: independent Gaussian processes (kernel.py)
    value       y = f_c(w) + offset + seed effect + noise
    derivative  y = s_c * (grad f_c . u) / n_c + offset + bias of the source + error

so every capability has a trend (trend.py) and lengths of its own, and `h` couples them (a semiparametric latent
factor model; without `h` they are independent). Noise of one run is correlated over capabilities through loadings
b_c. n_c is a fixed number that makes s_c = 1 the expected size. Offsets have a wide prior, so that only differences
count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky

from mixing.posterior.evidence import Evidence
from mixing.posterior.kernel import Blocks, Functionals, blocks, functionals, length_slopes
from mixing.posterior.layout import LENGTH, Layout, make_layout
from mixing.posterior.trend import Trend, make_trend

OFFSET_VARIANCE = 100.0
JITTER = 1e-9


@dataclass(frozen=True)
class Problem:
    """Standardised evidence and the model's shape.

    of : functionals in features; targets [N] and their (capability, row) pairs, N observed numbers
    mean, scale [c] : loss = mean + scale * f; expected [c]: n_c; coupled: with h and noise loadings
    """

    evidence: Evidence
    epsilon: float
    coupled: bool
    of: Functionals
    targets: np.ndarray
    capability: np.ndarray
    row: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    expected: np.ndarray
    layout: Layout
    trend: Trend
    same_offset: np.ndarray
    same_seed: np.ndarray
    same_source: np.ndarray

    @property
    def outputs(self) -> int:
        """Number of capabilities."""
        return len(self.scale)

    @property
    def latents(self) -> int:
        """Number of independent processes."""
        return self.outputs + (1 if self.coupled else 0)


def make_problem(evidence: Evidence, epsilon: float, coupled: bool) -> Problem:
    """Standardise; runs that never vary have hardly any spread, unless differences say that there is one."""
    c, m = len(evidence.observed), len(evidence.sources)
    runs = evidence.observed[:, evidence.runs]
    mean, scale = runs.mean(axis=1), runs.std(axis=1)
    size = np.maximum(np.abs(mean), 1e-300)
    none = 1.0 if (~evidence.derivative & ~evidence.runs).any() else 1e-6 * size
    scale = np.where(scale > 1e-12 * size, scale, none)
    standard = np.where(
        evidence.derivative[None],
        evidence.observed,
        (evidence.observed - np.where(evidence.offset == 0, mean[:, None], 0.0)) / scale[:, None],
    )
    capability, row = np.nonzero(np.isfinite(standard))
    of = functionals(evidence.points, evidence.directions, epsilon)
    layout = make_layout(c, m, coupled and c > 1, evidence)
    length = np.exp(LENGTH[0] + 0.5 * np.log(m / 2))
    trend = make_trend(of, evidence.runs)
    size = np.sqrt(np.square(of.along / length).sum(1) + np.diag(trend.kernel))
    expected = np.full(c, float(size[evidence.derivative].mean()) if evidence.derivative.any() else 1.0)

    def same(values: np.ndarray, none: int | None) -> np.ndarray:
        equal = values[:, None] == values[None]
        return equal if none is None else equal & (values != none)[:, None]

    return Problem(
        evidence, epsilon, coupled and c > 1, of, standard[capability, row], capability, row, mean, scale,
        expected, layout, trend,
        same_offset=same(evidence.offset, None).astype(float),
        same_seed=same(evidence.seed, -1).astype(float),
        same_source=(same(evidence.toward, -1) & same(evidence.offset, None)).astype(float),
    )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The covariance of the observations at one `theta`, in pieces.

    loadings [latents, c]: factor of each process in each capability; response [c, n]: 1 for values, s_c / n_c
    for derivatives; error [c, c, n, n]-like pieces are summed in `matrix` [N, N]; away [N]: targets minus their mean
    """

    lengths: np.ndarray
    loadings: np.ndarray
    response: np.ndarray
    kernels: tuple[Blocks, ...]
    matrix: np.ndarray
    away: np.ndarray


def lengths_of(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Lengths [latents, m]."""
    return np.exp(np.stack([problem.layout.get(theta, f"length{q}") for q in range(problem.latents)]))


def loadings_of(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Factor of each process in each capability, [latents, c]."""
    loadings = np.diag(np.exp(problem.layout.get(theta, "signal")))
    if problem.coupled:
        loadings = np.vstack([loadings, problem.layout.get(theta, "loading")])
    return loadings


def trend_size(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """exp(t) [c]: by what factor each capability's trend is larger than expected."""
    return np.exp(problem.layout.get(theta, "trend"))


def response_of(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """[c, n]: 1 for values, s_c / n_c for derivatives."""
    derivative = problem.evidence.derivative
    response = np.ones((problem.outputs, len(derivative)))
    if derivative.any():
        response[:, derivative] = (problem.layout.get(theta, "scale") / problem.expected)[:, None]
    return response


def noise_terms(problem: Problem, theta: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Terms (name, over capabilities [c, c], over rows [n, n]) whose products sum to all that is not signal."""
    layout, derivative = problem.layout, problem.evidence.derivative
    values, eye = np.diag((~derivative).astype(float)), np.eye(problem.outputs)
    yield "offset", OFFSET_VARIANCE * eye, problem.same_offset
    yield "noise", np.diag(np.exp(2 * layout.get(theta, "noise")) + JITTER), values
    if problem.coupled:
        loading = layout.get(theta, "noise_loading")
        yield "noise_loading", np.outer(loading, loading), values
    if "seed" in layout.slots:
        yield "seed", np.diag(np.exp(2 * layout.get(theta, "seed"))), problem.same_seed
    if "error" in layout.slots:
        yield "error", np.diag(np.exp(2 * layout.get(theta, "error"))), np.diag(derivative.astype(float))
    if "bias" in layout.slots:
        yield "bias", np.exp(2 * layout.get(theta, "bias")[0]) * np.ones_like(eye), problem.same_source


def assemble(problem: Problem, theta: np.ndarray) -> Parts:
    """The covariance of the observed numbers."""
    lengths, loadings = lengths_of(problem, theta), loadings_of(problem, theta)
    response = response_of(problem, theta)
    kernels = tuple(blocks(problem.of, problem.of, length) for length in lengths)
    c, n = response.shape
    full = np.zeros((c, n, c, n))
    for kernel, loading in zip(kernels, loadings, strict=True):
        for a in np.flatnonzero(loading):
            for b in np.flatnonzero(loading):
                full[a, :, b] += np.outer(loading[a] * response[a], loading[b] * response[b]) * kernel.matrix
    size = trend_size(problem, theta)
    for own in range(c):
        scaled = size[own] * response[own]
        full[own, :, own] += np.outer(scaled, scaled) * problem.trend.kernel
    for _, over, rows in noise_terms(problem, theta):
        for a, b in zip(*np.nonzero(over), strict=True):
            full[a, :, b] += over[a, b] * rows
    if len(problem.targets) == c * n:
        matrix = full.reshape(c * n, c * n)
    else:
        flat = problem.capability * n + problem.row
        matrix = full.reshape(c * n, c * n)[np.ix_(flat, flat)]
    mean = (size[:, None] * response * problem.trend.mean)[problem.capability, problem.row]
    return Parts(lengths, loadings, response, kernels, matrix, problem.targets - mean)


def negative_log_posterior(theta: np.ndarray, problem: Problem) -> tuple[float, np.ndarray]:
    """-log p(y | theta) - log p(theta) up to a constant, and its gradient (Rasmussen and Williams, 5.9)."""
    layout = problem.layout
    parts = assemble(problem, theta)
    away = theta - layout.mean
    pull = layout.precision @ away
    try:
        factor = cholesky(parts.matrix, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e10, pull
    size = len(problem.targets)
    alpha = cho_solve((factor, True), parts.away, check_finite=False)
    value = 0.5 * parts.away @ alpha + np.log(np.diag(factor)).sum() + 0.5 * size * np.log(2 * np.pi)
    value += 0.5 * away @ pull
    inner = 0.5 * (cho_solve((factor, True), np.eye(size), check_finite=False) - np.outer(alpha, alpha))
    return float(value), _slopes(problem, theta, parts, inner, alpha) + pull


def _slopes(
    problem: Problem, theta: np.ndarray, parts: Parts, inner: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """sum(inner * d covariance / d theta) - alpha . d mean / d theta."""
    layout, (c, n) = problem.layout, parts.response.shape
    flat = problem.capability * n + problem.row
    if len(flat) == c * n:
        full = inner.reshape(c, n, c, n)
    else:
        wide = np.zeros((c * n, c * n))
        wide[np.ix_(flat, flat)] = inner
        full = wide.reshape(c, n, c, n)
    slope = np.zeros(layout.size)
    on_response = np.zeros_like(parts.response)
    for q, (kernel, loading) in enumerate(zip(parts.kernels, parts.loadings, strict=True)):
        active = np.flatnonzero(loading) if q < c else np.arange(c)
        total = np.zeros((n, n))
        for a in active:
            for b in active:
                weighed = full[a, :, b] * kernel.matrix
                through = parts.response[a] * (weighed @ parts.response[b])
                on_response[a] += 2 * loading[a] * loading[b] * (weighed @ parts.response[b])
                if q < c:
                    slope[layout.slots["signal"].start + q] += 2 * loading[a] * loading[b] * through.sum()
                else:
                    slope[layout.slots["loading"].start + a] += 2 * loading[b] * through.sum()
                total += full[a, :, b] * np.outer(
                    loading[a] * parts.response[a], loading[b] * parts.response[b]
                )
        slope[layout.slots[f"length{q}"]] = length_slopes(problem.of, kernel, total, parts.lengths[q])
    pulled = np.zeros_like(parts.response)
    pulled[problem.capability, problem.row] = alpha
    for q, size in enumerate(trend_size(problem, theta)):
        through = size**2 * ((full[q, :, q] * problem.trend.kernel) @ parts.response[q])
        mean = size * problem.trend.mean * pulled[q]
        slope[layout.slots["trend"].start + q] += parts.response[q] @ (2 * through - mean)
        on_response[q] += 2 * through - mean
    for name, over, rows in noise_terms(problem, theta):
        if name == "offset":
            continue
        at = layout.slots[name]
        sums = np.einsum("aibj,ij->ab", full, rows) if name in ("bias", "noise_loading") else None
        if name == "noise_loading":
            assert sums is not None
            slope[at] += 2 * sums @ layout.get(theta, name)
        elif name == "bias":
            assert sums is not None
            slope[at] += 2 * (sums * over).sum()
        else:
            own = np.array([(full[a, :, a] * rows).sum() for a in range(c)])
            slope[at] += 2 * own * np.exp(2 * layout.get(theta, name))
    if "scale" in layout.slots:
        derivative = problem.evidence.derivative
        slope[layout.slots["scale"]] += on_response[:, derivative].sum(axis=1) / problem.expected
    return slope
