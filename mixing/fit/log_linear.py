"""The log-linear mixing law: L(w) = exp(a) + exp(t . w), one law for each metric.

The form of data mixing laws (Ye et al., 2024) as Olmix writes it (its k_i is absorbed, since the shares sum
to 1), with Olmix's Huber loss of .02. We differ in the starts (for several floors exp(a), t comes from a
linear regression of log(y - exp(a)), then all is refined together; Olmix draws 300 random ones) and in a
small ridge on the spread of t, chosen by cross-validation, which decides where the runs say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HUBER = 0.02
RIDGES = (1e-10, 1e-3, 1e-1)
FLOORS = (0.0, 0.5, 0.8, 0.95)
FOLDS = 5
STEPS = 400
DAMPINGS = 30
PRECISION = 1e-14
LEAST_FLOOR = 1e-13
LARGEST = 50.0
"""Exponents beyond this are cut: no loss is so large."""


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
    """Least Huber loss and ridge from a start, by Levenberg and Marquardt's damped steps.

    The floor exp(a) enters linearly, so it, and not a, is what is solved for; at its least value it rests until the
    slope pushes it up. Huber's weights make each step a weighed least squares, whose minimum lies above the loss.
    """
    n, m = weights.shape
    theta = start.parameters
    theta[0] = max(np.exp(theta[0]), LEAST_FLOOR)
    pull = ridge * (np.eye(m) - 1 / m)
    jacobian = np.ones((n, m + 1))
    damping = 1e-3
    cost, residuals = _cost(weights, losses, theta, pull)
    for _ in range(STEPS):
        jacobian[:, 1:] = np.exp(np.minimum(weights @ theta[1:], LARGEST))[:, None] * weights
        robust = HUBER / np.maximum(np.abs(residuals), HUBER)
        slope = jacobian.T @ (robust * residuals)
        slope[1:] += pull @ theta[1:]
        curvature = jacobian.T @ (robust[:, None] * jacobian)
        curvature[1:, 1:] += pull
        if theta[0] <= LEAST_FLOOR and slope[0] > 0:
            slope[0], curvature[0], curvature[:, 0], curvature[0, 0] = 0.0, 0.0, 0.0, 1.0
        size = np.maximum(np.diag(curvature), 1e-12)
        for _ in range(DAMPINGS):
            step = np.linalg.solve(curvature + damping * np.diag(size), -slope)
            moved = theta + step
            moved[0] = max(moved[0], LEAST_FLOOR)
            new_cost, new_residuals = _cost(weights, losses, moved, pull)
            if new_cost <= cost:
                break
            damping *= 4
        else:
            break  # no step helps: rounding decides
        damping = max(damping / 9, 1e-15)
        done = cost - new_cost <= PRECISION * cost and np.abs(moved - theta).max() < 1e-7
        theta, cost, residuals = moved, new_cost, new_residuals
        if done:
            break
    return cost, LogLinear(float(np.log(theta[0])), theta[1:].copy())


def _cost(
    weights: np.ndarray, losses: np.ndarray, theta: np.ndarray, pull: np.ndarray
) -> tuple[float, np.ndarray]:
    """Huber's loss of the residuals plus the ridge, and the residuals [n]; theta: floor, slopes."""
    residuals = theta[0] + np.exp(np.minimum(weights @ theta[1:], LARGEST)) - losses
    size = np.abs(residuals)
    huber = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
    return float(huber.sum() + 0.5 * theta[1:] @ pull @ theta[1:]), residuals
