"""A Gaussian process on log shares, one for each metric.

Features log(w + eps) / |log eps| make doubling a share count the same wherever it starts; on public swarms
with interior mixtures this predicts better than log-linear laws and boosted trees at 48 runs or fewer.
Kernel: constant * squared exponential (one length for all features) + noise; the three numbers are those of
greatest marginal likelihood, from three lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

EPSILON = 0.02
"""Smallest share that matters. .02 for interior designs; .002 where many shares are zero."""
LENGTHS = (0.3, 1.0, 3.0)
_JITTER = 1e-10


@dataclass(frozen=True)
class LogShareProcess:
    """A fitted process. Losses are standardised inside; all results are in the units of the losses.

    features [n, m]; mean, scale of losses; the kernel's signal, length, noise; alpha [n] = (K + noise)^-1 y
    """

    epsilon: float
    features: np.ndarray
    mean: float
    scale: float
    signal: float
    length: float
    noise: float
    alpha: np.ndarray
    factor: tuple[np.ndarray, bool]
    targets: np.ndarray

    def predict(self, weights: np.ndarray) -> np.ndarray:
        """Posterior mean losses [q] at mixtures [q, m]."""
        return self.mean + self.scale * (self._cross(weights) @ self.alpha)

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """d posterior mean / d weights [m] at one mixture [m]."""
        z = log_features(weights[None], self.epsilon)[0]
        kernel = self._cross(weights[None])[0]
        towards = (self.features - z) / self.length**2
        slope = (kernel * self.alpha) @ towards
        return self.scale * slope / ((weights + self.epsilon) * abs(np.log(self.epsilon)))

    def covariance(self, weights: np.ndarray) -> np.ndarray:
        """Posterior covariance [q, q] of the noise-free losses at mixtures [q, m]."""
        cross = self._cross(weights)
        features = log_features(weights, self.epsilon)
        prior = self.signal * _gaussian(features, features, self.length)
        return self.scale**2 * (prior - cross @ cho_solve(self.factor, cross.T))

    def left_out(self) -> np.ndarray:
        """Losses [n] of each run predicted from the others (Rasmussen and Williams, eq. 5.12)."""
        inverse = cho_solve(self.factor, np.eye(len(self.alpha)))
        return self.mean + self.scale * (self.targets - self.alpha / np.diag(inverse))

    def _cross(self, weights: np.ndarray) -> np.ndarray:
        return self.signal * _gaussian(log_features(weights, self.epsilon), self.features, self.length)


def log_features(weights: np.ndarray, epsilon: float) -> np.ndarray:
    """log(w + eps) / |log eps|, [n, m]: about -1 for a share of nothing, 0 for all."""
    return np.log(np.maximum(weights, 0.0) + epsilon) / abs(np.log(epsilon))


def fit_process(weights: np.ndarray, losses: np.ndarray, *, epsilon: float = EPSILON) -> LogShareProcess:
    """Fit to losses [n] of mixtures [n, m]. Needs two runs that differ."""
    features = log_features(weights, epsilon)
    mean, scale = float(losses.mean()), float(losses.std()) or 1.0
    targets = (losses - mean) / scale
    squared = _squared_distances(features, features)
    best = min(
        (
            minimize(
                _negative_log_likelihood,
                np.log([1.0, length, 0.05]),
                args=(squared, targets),
                jac=True,
                method="L-BFGS-B",
                bounds=[(-6.0, 8.0), (-3.0, 4.0), (-14.0, 1.0)],
            )
            for length in LENGTHS
        ),
        key=lambda result: float(result.fun),
    )
    signal, length, noise = np.exp(best.x)
    kernel = signal * np.exp(-squared / (2 * length**2))
    factor = cho_factor(kernel + (noise + _JITTER) * np.eye(len(losses)), lower=True)
    return LogShareProcess(
        epsilon, features, mean, scale, float(signal), float(length), float(noise),
        cho_solve(factor, targets), factor, targets,
    )  # fmt: skip


def _negative_log_likelihood(
    log_parameters: np.ndarray, squared: np.ndarray, targets: np.ndarray
) -> tuple[float, np.ndarray]:
    """And its gradient in the logarithms of signal, length and noise (Rasmussen and Williams, eq. 5.9)."""
    signal, length, noise = np.exp(log_parameters)
    n = len(targets)
    kernel = signal * np.exp(-squared / (2 * length**2))
    factor = cho_factor(kernel + (noise + _JITTER) * np.eye(n), lower=True)
    alpha = cho_solve(factor, targets)
    value = 0.5 * targets @ alpha + np.log(np.diag(factor[0])).sum() + 0.5 * n * np.log(2 * np.pi)
    inner = np.outer(alpha, alpha) - cho_solve(factor, np.eye(n))
    slopes = [kernel, kernel * squared / length**2, noise * np.eye(n)]
    # A wide log-normal prior (sd 3) keeps parameters that the runs do not determine from drifting to a bound.
    prior = log_parameters - np.log([1.0, 1.0, 0.05])
    gradient = np.array([-0.5 * np.sum(inner * slope) for slope in slopes]) + prior / 9
    return float(value + 0.5 * prior @ prior / 9), gradient


def _gaussian(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-_squared_distances(a, b) / (2 * length**2))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a[:, None, :] - b[None, :, :]).sum(axis=-1)
