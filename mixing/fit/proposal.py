"""What a method proposes, before the limits of the data are applied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixing.evidence import LEVEL


@dataclass(frozen=True)
class Proposal:
    """What a method proposes, by source: weights [m], intervals [m, 2] or None, and sentences."""

    weights: np.ndarray
    intervals: np.ndarray | None
    notes: tuple[str, ...]


def central_interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central percentiles of `draws` [n] that hold the share `level` of them."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def weight_intervals(draws: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Intervals [m, 2] of drawn weights [n, m], widened where they would not hold the estimate itself."""
    bounds = np.array([central_interval(draws[:, j]) for j in range(draws.shape[1])])
    return np.column_stack([np.minimum(bounds[:, 0], weights), np.maximum(bounds[:, 1], weights)])
