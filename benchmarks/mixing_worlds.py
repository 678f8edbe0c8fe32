"""Synthetic worlds of mixtures with a known optimum, for measuring methods that choose mixtures.

Losses are shaped like those of small proxies: about 3 nats, spread over interior mixtures by about 1 %, three
capabilities that each feed on a few sources, and sources that help nobody. Families:

law        : L_c = a_c + k_c exp(t_c . w), the mixing law; convex
power      : L_c = a_c + sum_j b_cj (w_j + d_j)^-g_j, diminishing returns in each source; convex
log-share  : a draw of a Gaussian process on log(w + .02) with lengths that differ between sources
equal      : every mixture has the same losses

Regimes: interior (7 sources, Dirichlet(1.5) designs) and sparse (17 sources, a strength from .1 to 5 on a
skewed prior and shares below .002 dropped, like RegMix's public swarm).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixing.fit.search import Simplex, minimise
from mixing.fit.tables import ProxyTable
from mixing.posterior.evidence import Influence

CAPABILITIES = ("code", "knowledge", "math")
FAMILIES = ("law", "power", "log-share")
REGIMES = {"interior": 7, "sparse": 17}
SPREAD = 0.033
"""Standard deviation of a capability's loss over mixtures of the design, nats (published interior swarms)."""


@dataclass(frozen=True)
class World:
    """A truth: `losses` maps mixtures [q, m] to noise-free losses [q, c]; `noise` [c] is a run's deviation."""

    family: str
    regime: str
    number: int
    sources: tuple[str, ...]
    losses: Callable[[np.ndarray], np.ndarray]
    noise: np.ndarray

    def objective(self, weights: np.ndarray) -> np.ndarray:
        """Mean loss over the capabilities [q]."""
        return self.losses(np.atleast_2d(weights)).mean(axis=1)

    def simplex(self) -> Simplex:
        """All mixtures."""
        m = len(self.sources)
        return Simplex(self.sources, np.zeros(m), np.ones(m))

    @cached_property
    def optimum(self) -> np.ndarray:
        """The best mixture: SLSQP from several starts, which is exact for the convex families."""
        m, step = len(self.sources), 1e-6
        eye = np.eye(m)

        def value(w: np.ndarray) -> tuple[float, np.ndarray]:
            around = self.objective(np.vstack([w[None], np.maximum(w + step * eye, 0)]))
            return float(around[0]), (around[1:] - around[0]) / step

        rng = np.random.default_rng(np.random.SeedSequence([self.number, 0x0B7]))
        cloud = np.vstack(
            [np.full(m, 1 / m), *(rng.dirichlet(np.full(m, a), 400) for a in (0.2, 0.6, 1.5, 5.0))]
        )
        best = np.argsort(self.objective(cloud))[:8]
        return minimise(value, self.simplex(), list(cloud[best]))

    def regret(self, weights: np.ndarray) -> float:
        """How much worse than the optimum, in percent of the optimum's loss."""
        least = float(self.objective(self.optimum)[0])
        return 100 * (float(self.objective(weights)[0]) - least) / least

    def design(self, n: int, seed: int) -> np.ndarray:
        """Random mixtures [n, m] of the regime."""
        return random_design(self.regime, n, np.random.default_rng([self.number, seed, 0xDE5]))

    def run(self, weights: np.ndarray, seed: int) -> np.ndarray:
        """Noisy losses of one run for each mixture; noise is half shared by the capabilities (variance)."""
        rng = np.random.default_rng([self.number, seed, 0x401])
        c = len(CAPABILITIES)
        shared, own = rng.standard_normal((len(weights), 1)), rng.standard_normal((len(weights), c))
        return self.losses(weights) + self.noise * (shared + own) / np.sqrt(2)

    def table(self, n: int, seed: int) -> ProxyTable:
        """n random runs."""
        weights = self.design(n, seed)
        return as_table(self.sources, weights, self.run(weights, seed))

    def influence(self, kind: str, seed: int, at: np.ndarray | None = None) -> Influence:
        """Benefits at a mixture (uniform): 'informative' (correlation about .9 with the truth), 'biased' (the
        same, plus for each source an error as large as the truth that all capabilities share) or 'useless'."""
        m, step = len(self.sources), 1e-4
        w = np.full(m, 1 / m) if at is None else at
        moved = w + step * (np.eye(m) - w)
        gradient = (self.losses(moved) - self.losses(w[None])) / step
        truth = -(gradient - gradient.mean(0)) / np.maximum(gradient.std(0), 1e-12)
        rng = np.random.default_rng([self.number, seed, 0x1FF])
        error, bias = rng.standard_normal(truth.shape), rng.standard_normal((m, 1))
        benefit = {
            "informative": truth + 0.45 * error,
            "biased": truth + bias + 0.3 * error,
            "useless": error,
        }[kind]
        # Any unit and any common offset: training on anything helps.
        weights = dict(zip(self.sources, w.tolist(), strict=True))
        return Influence(self.sources, CAPABILITIES, weights, 3e-4 * (benefit + 2.0))


def make_world(family: str, regime: str, number: int, noise: float = 0.25) -> World:
    """A world by its number; `noise` is a run's deviation in units of the spread over mixtures."""
    m, c = REGIMES[regime], len(CAPABILITIES)
    rng = np.random.default_rng([number, m, sum(family.encode())])
    sources = tuple(f"source-{j:02d}" for j in range(m))
    if family == "equal":
        floor = 2.5 + rng.random(c)
        return World(
            family, regime, number, sources, lambda w: np.tile(floor, (len(w), 1)), np.full(c, SPREAD * noise)
        )
    raw = {"law": _law, "power": _power, "log-share": _log_share}[family](rng, m, c)
    probe = random_design(regime, 400, np.random.default_rng([number, 0x5CA]))
    values = raw(probe)
    # Every capability spreads by about SPREAD over the design, around 3 nats.
    scale = SPREAD * np.exp(rng.normal(0, 0.3, c)) / values.std(axis=0)
    if regime == "sparse":
        scale = scale * 3  # wild designs: 3 % and more
    centre = 3.0 - scale * values.mean(axis=0)
    spread = scale * values.std(axis=0)
    return World(family, regime, number, sources, lambda w: centre + scale * raw(w), noise * spread)


def random_design(regime: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Mixtures [n, m] as swarms draw them."""
    m = REGIMES[regime]
    if regime == "interior":
        return rng.dirichlet(np.full(m, 1.5), size=n)
    prior = np.sort(np.random.default_rng(17).dirichlet(np.full(m, 0.8)))[::-1]
    prior = np.maximum(prior, 0.01) / np.maximum(prior, 0.01).sum()
    strengths = np.logspace(np.log10(0.1), np.log10(5.0), 15)
    rows = []
    while len(rows) < n:
        w = rng.dirichlet(prior * m * rng.choice(strengths))
        w = np.where(w < 0.002, 0.0, w)
        if np.isfinite(w).all() and w.sum() > 0:
            rows.append(w / w.sum())
    return np.array(rows)


def as_table(sources: tuple[str, ...], weights: np.ndarray, losses: np.ndarray) -> ProxyTable:
    """Runs as a table, each with noise of its own."""
    runs = tuple(f"run-{i:04d}" for i in range(len(weights)))
    return ProxyTable(runs, sources, weights, CAPABILITIES, losses)


def _own_sources(rng: np.random.Generator, m: int, c: int) -> np.ndarray:
    """Strength [c, m] of each source for each capability: one or two strong ones each, weak cross effects."""
    strength = np.maximum(rng.normal(0.25, 0.25, (c, m)), 0.0)
    for capability in range(c):
        strong = rng.choice(m, size=rng.integers(1, 3), replace=False)
        strength[capability, strong] += rng.uniform(0.7, 2.0, len(strong))
    return strength


def _law(rng: np.random.Generator, m: int, c: int) -> Callable[[np.ndarray], np.ndarray]:
    slopes = -_own_sources(rng, m, c) * rng.uniform(1.0, 4.0)
    return lambda w: np.exp(w @ slopes.T)


def _power(rng: np.random.Generator, m: int, c: int) -> Callable[[np.ndarray], np.ndarray]:
    strength = _own_sources(rng, m, c)
    floor, exponent = rng.uniform(0.02, 0.15, m), rng.uniform(0.2, 0.8, m)
    return lambda w: (np.maximum(w, 0) + floor) ** -exponent @ (strength * floor**exponent).T


def _log_share(rng: np.random.Generator, m: int, c: int) -> Callable[[np.ndarray], np.ndarray]:
    count, epsilon = 400, 0.02
    lengths = np.exp(rng.normal(0.3 + 0.5 * np.log(m / 2), 0.6, (c, m)))
    frequency = rng.standard_normal((c, count, m)) / lengths[:, None]
    phase, amplitude = (
        rng.uniform(0, 2 * np.pi, (c, count)),
        rng.standard_normal((c, count)) * np.sqrt(2 / count),
    )
    # A trend: more of a capability's own sources is better.
    trend = _own_sources(rng, m, c)

    def value(w: np.ndarray) -> np.ndarray:
        z = np.log(np.maximum(w, 0) + epsilon) / abs(np.log(epsilon))
        waves = np.cos(np.einsum("qm,ckm->qck", z, frequency) + phase)
        return np.einsum("qck,ck->qc", waves, amplitude) - 0.7 * z @ trend.T

    return value
