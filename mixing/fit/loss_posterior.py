"""What the proxy runs leave open about the losses of any mixture: one posterior, the same for every method.

Probabilities and predictions beside a mixture must not depend on which method found it, so they all come from
a `LossPosterior`. `ProcessPosterior`, the Gaussian processes of `mixing.fit.gaussian_process`, is the default;
anything else with `samples` can be given to `fit_mixture` in its place.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mixing.fit.averaged_process import AveragedProcess
from mixing.fit.gaussian_process import EPSILON, LogShareProcess, fit_process, log_features
from mixing.fit.tables import ProxyTable

SHRINKING_RUNS = 10
"""The correlation of the metrics' errors is shrunk to 0 as if so many runs had shown none."""


class LossPosterior(Protocol):
    """Joint draws of all metrics' losses at any mixtures."""

    def samples(self, weights: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """Draws [draws, q, c] of the expected (noise-free) losses of metrics c at mixtures [q, m].

        Sources and metrics are in the order of the table of runs, which is that of their names.
        """
        ...


class ProcessPosterior:
    """Gaussian processes on log shares, for each metric one of greatest likelihood and one averaged over kernels.

    The first is the best guess (`mean`, `gradient`), which a search minimises; the second says what is known
    (`samples`). The errors of different metrics are correlated (runs share seeds, and what helps one capability
    often helps another), which decides how uncertain their mean is: the correlation is that of the errors of
    predicting each run from the others.
    """

    def __init__(
        self, processes: list[LogShareProcess], averaged: list[AveragedProcess], correlation: np.ndarray
    ) -> None:
        self.processes = processes
        self.averaged = averaged
        self.correlation = correlation

    @staticmethod
    def fit(table: ProxyTable, *, epsilon: float = EPSILON) -> ProcessPosterior:
        """Fit to the runs of a table; needs two that differ in the losses of at least one metric."""
        columns = range(table.losses.shape[1])
        processes = [fit_process(table.weights, table.losses[:, k], epsilon=epsilon) for k in columns]
        features = log_features(table.weights, epsilon)
        averaged = [AveragedProcess(features, table.losses[:, k]) for k in columns]
        errors = np.column_stack([p.left_out() for p in processes]) - table.losses
        return ProcessPosterior(processes, averaged, error_correlation(errors))

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """Best guess [q, c] at mixtures [q, m]."""
        return np.column_stack([p.predict(weights) for p in self.processes])

    def samples(self, weights: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """See `LossPosterior.samples`."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x6A0]))
        standard = rng.standard_normal((draws, len(weights), len(self.averaged)))
        correlated = standard @ np.linalg.cholesky(self.correlation).T
        features = log_features(weights, self.processes[0].epsilon)
        drawn = [p.samples(features, correlated[:, :, k], rng) for k, p in enumerate(self.averaged)]
        return np.stack(drawn, axis=-1)


def error_correlation(errors: np.ndarray) -> np.ndarray:
    """Correlation [c, c] of errors [n, c], shrunk to none; positive definite.

    Example: two metrics with equal errors in 10 runs have the correlation 10 / (10 + 10) = .5.
    """
    n, c = errors.shape
    size = np.sqrt(np.square(errors).mean(axis=0))
    scaled = errors / np.where(size > 0, size, 1.0)
    found = scaled.T @ scaled / n
    np.fill_diagonal(found, 1.0)
    return (n * found + SHRINKING_RUNS * np.eye(c)) / (n + SHRINKING_RUNS)
