"""The log-linear mixing law: L(w) = exp(a) + exp(t . w), one law for each metric.

The form of data mixing laws (Ye et al., 2024) as Olmix writes it (its k_i is absorbed, since the shares sum
to 1), with Olmix's Huber loss of .02. We differ in the starts (for several floors exp(a), t comes from a
linear regression of log(y - exp(a)), then all is refined together; Olmix draws 300 random ones) and in a
small ridge on the spread of t, chosen by cross-validation, which decides where the runs say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

HUBER = 0.02
RIDGES = (1e-10, 1e-3, 1e-1)
FLOORS = (0.0, 0.5, 0.8, 0.95)
FOLDS = 5


@dataclass(frozen=True)
class LogLinear:
    """One fitted law; `log_floor` = a, `slopes` = t [m]."""

    log_floor: float
    slopes: np.ndarray

    def predict(self, weights: np.ndarray) -> np.ndarray:
        """Predicted losses [n] of mixtures [n, m]."""
        return np.exp(self.log_floor) + np.exp(weights @ self.slopes)

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """d loss / d weights [m] at one mixture [m]."""
        return float(np.exp(weights @ self.slopes)) * self.slopes

    @property
    def parameters(self) -> np.ndarray:
        return np.concatenate([[self.log_floor], self.slopes])


def fit_log_linear(
    weights: np.ndarray, losses: np.ndarray, *, start: LogLinear | None = None, ridge: float | None = None
) -> LogLinear:
    """Fit a law to losses [n] > 0 of mixtures [n, m]; `start` replaces the search, `ridge` its choice."""
    if ridge is None:
        ridge = choose_ridge(weights, losses)
    candidates = [start] if start is not None else _starts(weights, losses)
    fits = [_refine(weights, losses, candidate, ridge) for candidate in candidates]
    return min(fits, key=lambda fit: fit[0])[1]


def choose_ridge(weights: np.ndarray, losses: np.ndarray) -> float:
    """The ridge with the least squared error in five-fold cross-validation; fold k has rows k, k + 5, ..."""
    n = len(losses)
    if n < 2 * FOLDS:
        return RIDGES[1]
    folds = np.arange(n) % FOLDS
    errors = []
    for ridge in RIDGES:
        error = 0.0
        for fold in range(FOLDS):
            inside = folds != fold
            start = _starts(weights[inside], losses[inside])[2]
            law = fit_log_linear(weights[inside], losses[inside], start=start, ridge=ridge)
            error += float(np.square(law.predict(weights[~inside]) - losses[~inside]).sum())
        errors.append(error)
    return RIDGES[int(np.argmin(errors))]


def _starts(weights: np.ndarray, losses: np.ndarray) -> list[LogLinear]:
    starts = []
    m = weights.shape[1]
    for share in FLOORS:
        floor = max(share * losses.min(), 1e-6)
        target = np.log(np.maximum(losses - floor, 1e-3 * losses.min()))
        # A little ridge keeps this solvable with fewer runs than sources; it is only a start.
        gram = weights.T @ weights + 1e-6 * np.eye(m)
        starts.append(LogLinear(float(np.log(floor)), np.linalg.solve(gram, weights.T @ target)))
    return starts


def _refine(
    weights: np.ndarray, losses: np.ndarray, start: LogLinear, ridge: float
) -> tuple[float, LogLinear]:
    n, m = weights.shape
    root = np.sqrt(ridge)

    def residuals(theta: np.ndarray) -> np.ndarray:
        law = np.exp(theta[0]) + np.exp(np.minimum(weights @ theta[1:], 50.0))
        return np.concatenate([law - losses, root * (theta[1:] - theta[1:].mean())])

    def jacobian(theta: np.ndarray) -> np.ndarray:
        exponent = np.exp(np.minimum(weights @ theta[1:], 50.0))
        upper = np.column_stack([np.full(n, np.exp(theta[0])), exponent[:, None] * weights])
        lower = np.column_stack([np.zeros(m), root * (np.eye(m) - 1 / m)])
        return np.vstack([upper, lower])

    def robust(squares: np.ndarray) -> np.ndarray:
        """Huber on the runs, plain squares on the ridge: rho, rho', rho'' at squared residuals."""
        rho = np.empty((3, squares.size))
        rho[0], rho[1], rho[2] = squares, 1.0, 0.0
        large = np.flatnonzero(squares[:n] > HUBER**2)
        size = np.sqrt(squares[large])
        rho[0, large] = 2 * HUBER * size - HUBER**2
        rho[1, large] = HUBER / size
        rho[2, large] = -HUBER / (2 * size**3)
        return rho

    lower_bounds = np.concatenate([[-30.0], np.full(m, -np.inf)])
    first = start.parameters
    first[0] = max(first[0], -29.0)
    found = least_squares(
        residuals,
        first,
        jac=jacobian,
        bounds=(lower_bounds, np.inf),
        loss=robust,
        max_nfev=400,
        ftol=1e-14,
        xtol=1e-12,
        gtol=1e-14,
    )
    return float(found.cost), LogLinear(float(found.x[0]), found.x[1:].copy())
