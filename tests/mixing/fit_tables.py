"""Made-up proxy runs for the tests of fitting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixing.fit import ProxyTable

SOURCES = ("arxiv", "code", "web", "wiki")
FLOORS = np.array([0.7, 0.9])
SLOPES = np.array([[-1.2, -0.4, 0.3, -0.9], [0.2, -1.5, 0.1, -0.2]])


def law(weights: np.ndarray) -> np.ndarray:
    """Losses [n, 2] of mixtures [n, 4]: convex, so with one optimum."""
    return FLOORS + np.exp(weights @ SLOPES.T)


def make_table(
    weights: np.ndarray, losses: np.ndarray, sources: Sequence[str] = SOURCES, **more: float
) -> ProxyTable:
    ids = tuple(f"run-{i:03d}" for i in range(len(weights)))
    metrics = tuple(f"m{k}" for k in range(losses.shape[1]))
    return ProxyTable(ids, tuple(sources), weights, metrics, losses, **more)


def design(n: int, seed: int = 0, sources: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(sources), size=n)
