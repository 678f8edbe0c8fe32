"""What draws need: roots of covariances, and whole numbers of draws in proportion."""

from __future__ import annotations

import numpy as np


def root(covariance: np.ndarray) -> np.ndarray:
    """A root [n, n] of a covariance, R R' = covariance; one that rounding has made indefinite is mended."""
    symmetric = (covariance + covariance.T) / 2
    size = float(np.trace(symmetric)) / len(symmetric)
    for jitter in (1e-12, 1e-10, 1e-8):
        try:
            return np.linalg.cholesky(symmetric + jitter * max(size, 1e-300) * np.eye(len(symmetric)))
        except np.linalg.LinAlgError:
            continue
    values, vectors = np.linalg.eigh(symmetric)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def whole_shares(weights: np.ndarray, draws: int) -> np.ndarray:
    """Whole numbers that sum to `draws`, in proportion (largest remainder)."""
    exact = weights / weights.sum() * draws
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: draws - int(counts.sum())]:
        counts[index] += 1
    return counts
