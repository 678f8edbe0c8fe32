"""The trend that a loss is expected to follow: diminishing returns in every source.

    trend(w) = b r(w),   r(w) = - sum_j (phi_j(w) - centre_j) / unit,   b = exp(t) (MEAN + SPREAD u),   u ~ N(0, 1)

phi_j are the kernel's features (log shares), centre_j their means over the runs and unit = sqrt(sum_j variance of
phi_j), so that r has a spread of about 1 wherever the runs lie. r is convex and least at uniform: a share that
doubles lowers the loss by as much wherever it starts, so the first tokens of a source are worth the most. Without
it the process falls back to the mean of the runs, while by diminishing returns uniform is better than the mean of
random mixtures: gains over uniform are promised too high. u is Gaussian, so it is integrated out exactly: the trend
is one more kernel and a prior mean; its size exp(t) is one more hyperparameter, small where mixtures do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixing.posterior.kernel import Functionals

MEAN = 0.4
SPREAD = 0.4
SIZE = (0.0, 0.7)
"""Log size t: mean and standard deviation of its prior."""


@dataclass(frozen=True)
class Trend:
    """r at the evidence: centre [m] and unit as above; rows [n] = r of the functionals."""

    centre: np.ndarray
    unit: float
    rows: np.ndarray

    @property
    def kernel(self) -> np.ndarray:
        """Prior covariance [n, n] of a trend of size 1 at the evidence."""
        return SPREAD**2 * np.outer(self.rows, self.rows)

    @property
    def mean(self) -> np.ndarray:
        """Prior mean [n] of a trend of size 1 at the evidence."""
        return MEAN * self.rows

    def basis(self, at: np.ndarray) -> np.ndarray:
        """r [q] at features [q, m]."""
        return (self.centre - at).sum(axis=-1) / self.unit


def make_trend(of: Functionals, runs: np.ndarray) -> Trend:
    """The trend at functionals; `runs` [n] tells those that are absolute losses."""
    at = of.at[runs]
    centre = at.mean(axis=0)
    unit = float(np.sqrt(at.var(axis=0).sum()))
    unit = unit if unit > 1e-6 else 1.0
    rows = np.where(of.value > 0, (centre - of.at).sum(axis=1), -of.along.sum(axis=1)) / unit
    return Trend(centre, unit, rows)
