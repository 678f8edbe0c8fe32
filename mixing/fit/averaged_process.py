"""A Gaussian process on log shares, averaged over its hyperparameters and over "mixtures do not matter".

The kernel of greatest likelihood predicts well but is too sure of itself: of 60 worlds without any effect (24 runs
of 7 sources, 3 metrics, the optimum of the fitted process weighed by that same process) it called 75 % better than
uniform. Here the runs choose among kernels in proportion to their marginal likelihood,

    y ~ N(mu 1, sigma2 C),   C = s K_length + (1 - s) I,   p(mu, sigma2) ~ 1 / sigma2,

p(y | C) ~ |C|^(-1/2) (1' C^-1 1)^(-1/2) S^(-(n-1)),   S^2 = (y - mu^)' C^-1 (y - mu^)

(Rasmussen and Williams, sections 2.7 and 5.4), with half of the prior on s = 0: no effect at all. sigma2 given the
rest is S^2 over a chi-square with n - 1 degrees, so that few runs give heavy tails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SIGNAL_SHARES = (0.1, 0.3, 0.6, 0.85, 0.95, 0.99, 0.999)
NO_EFFECT = 0.5
NEGLIGIBLE = 0.005  # kernels of a smaller part are left out, which saves their draws
_JITTER = 1e-9


@dataclass(frozen=True)
class _Kernel:
    """One kernel with what the runs say under it; length None: no effect. probability sums to 1 over all."""

    length: float | None
    share: float
    probability: float
    mean: float
    sum_squares: float
    alpha: np.ndarray
    factor: tuple[np.ndarray, bool]
    gram_ones: np.ndarray  # C^-1 1
    precision: float  # 1' C^-1 1


class AveragedProcess:
    """Fitted to losses [n] at features [n, d] (`mixing.fit.gaussian_process.log_features`)."""

    def __init__(self, features: np.ndarray, losses: np.ndarray) -> None:
        self._features = features
        squared = _squared(features, features)
        found = []
        for length, share in [(None, 0.0), *((a, b) for a in LENGTHS for b in SIGNAL_SHARES)]:
            kernel = np.zeros_like(squared) if length is None else np.exp(-squared / (2 * length**2))
            found.append(_condition(kernel, share, length, losses))
        each = (1 - NO_EFFECT) / (len(found) - 1)
        logs = np.array([f[0] for f in found]) + np.log([NO_EFFECT] + [each] * (len(found) - 1))
        probabilities = np.exp(logs - logs.max())
        probabilities[probabilities < NEGLIGIBLE * probabilities.sum()] = 0.0
        probabilities /= probabilities.sum()
        self._kernels = [
            _Kernel(probability=float(p), **f[1]) for p, f in zip(probabilities, found, strict=True)
        ]
        self._degrees = max(len(losses) - 1, 1)

    @property
    def no_effect(self) -> float:
        """Posterior probability that the shares do not change this loss."""
        return self._kernels[0].probability

    def samples(self, features: np.ndarray, standard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws [draws, q] of the noise-free losses at features [q, d], from standard normals [draws, q]."""
        draws, q = standard.shape
        which = rng.choice(len(self._kernels), size=draws, p=[k.probability for k in self._kernels])
        spread = np.asarray(rng.chisquare(self._degrees, size=draws))
        out = np.empty((draws, q))
        between, to_runs = _squared(features, features), _squared(features, self._features)
        for place in np.unique(which):
            kernel, rows = self._kernels[place], which == place
            sigma = np.sqrt(kernel.sum_squares / spread[rows])[:, None]
            if kernel.length is None:
                # One unknown constant: the same at all mixtures.
                out[rows] = kernel.mean + sigma * standard[rows, :1] / np.sqrt(kernel.precision)
                continue
            mean, covariance = _predict(kernel, between, to_runs)
            root = np.linalg.cholesky(covariance + _JITTER * np.eye(q))
            out[rows] = mean + sigma * (standard[rows] @ root.T)
        return out


def _predict(kernel: _Kernel, between: np.ndarray, to_runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean [q] and covariance [q, q], in units of sigma2, the unknown mean included."""
    assert kernel.length is not None
    cross = kernel.share * np.exp(-to_runs / (2 * kernel.length**2))
    left = 1 - cross @ kernel.gram_ones
    covariance = kernel.share * np.exp(-between / (2 * kernel.length**2))
    covariance -= cross @ cho_solve(kernel.factor, cross.T)
    return kernel.mean + cross @ kernel.alpha, covariance + np.outer(left, left) / kernel.precision


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [p, q] of the rows of [p, d] and [q, d]."""
    products = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(products, 0.0)


def _condition(
    kernel: np.ndarray, share: float, length: float | None, losses: np.ndarray
) -> tuple[float, dict]:
    """Log marginal likelihood of a kernel, up to what all have in common, and its parts."""
    n = len(losses)
    factor = cho_factor(share * kernel + (1 - share + _JITTER) * np.eye(n), lower=True)
    ones = cho_solve(factor, np.ones(n))
    precision = float(ones.sum())
    mean = float(ones @ losses) / precision
    alpha = cho_solve(factor, losses - mean)
    squares = max(float((losses - mean) @ alpha), 1e-300)
    log = -np.log(np.diag(factor[0])).sum() - 0.5 * np.log(precision) - 0.5 * (n - 1) * np.log(squares)
    parts = {
        "length": length,
        "share": share,
        "mean": mean,
        "sum_squares": squares,
        "alpha": alpha,
        "factor": factor,
        "gram_ones": ones,
        "precision": precision,
    }
    return float(log), parts
