"""How the errors of different capabilities go together."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve

from mixing.posterior.evidence import Evidence
from mixing.posterior.posterior import Group

PRIOR_RUNS = 5


def residual_correlation(groups: tuple[Group, ...], evidence: Evidence) -> np.ndarray:
    """Correlation [c, c] of the capabilities' residuals, each run predicted from all other evidence.

    Shrunk towards none as by PRIOR_RUNS runs without any; within a group it is not used.
    """
    runs = np.flatnonzero(evidence.runs)
    residuals = np.zeros((len(evidence.capabilities), len(runs)))
    for group in groups:
        component = max(group.components, key=lambda part: part.weight)
        problem = component.problem
        inverse = cho_solve((component.factor, True), np.eye(len(component.alpha)), check_finite=False)
        left_out = component.alpha / np.diag(inverse)
        for place, capability in enumerate(group.capabilities):
            own = (problem.capability == place) & np.isin(problem.row, runs)
            residuals[capability] = left_out[own]
    size = np.sqrt(np.square(residuals).sum(axis=1))
    unit = residuals / np.where(size > 0, size, 1.0)[:, None]
    n = len(runs)
    correlation = unit @ unit.T * n / (n + PRIOR_RUNS)
    np.fill_diagonal(correlation, 1.0)
    return correlation
