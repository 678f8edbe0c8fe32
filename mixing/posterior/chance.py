"""Could the runs look as they do if the mixture did not matter at all? An exact test by permutation.

If all mixtures had the same losses, the losses of runs could be exchanged (within a seed when seeds are shared).
The statistic is how well a fixed smooth function of the log shares explains the objective, y' S y / y' y with S the
smoother of a kernel whose one length is the median distance between runs, so nothing is fitted and no refit is
needed. Its rank among permutations is a p-value that holds whatever the posterior assumed.
"""

from __future__ import annotations

import numpy as np

from mixing.posterior.kernel import features
from mixing.posterior.posterior import LossPosterior

PERMUTATIONS = 1999
SMOOTHING = 0.5
EPSILON = 0.02


def chance_of_no_effect(posterior: LossPosterior, objective: np.ndarray, *, seed: int = 0) -> float:
    """p of no link between mixtures and the objective, over the runs with absolute losses."""
    evidence = posterior.evidence
    values = posterior.losses @ objective
    at = features(posterior.runs, EPSILON)
    return permutation_p(at, values, evidence.seed[evidence.runs], seed)


def permutation_p(at: np.ndarray, values: np.ndarray, blocks: np.ndarray, seed: int) -> float:
    """The test for features [n, m], values [n] and blocks [n] within which values may be exchanged."""
    n = len(values)
    if n < 3 or np.ptp(values) == 0:
        return 1.0
    squared = np.square(at[:, None] - at[None]).sum(-1)
    apart = squared[squared > 0]
    if not len(apart):
        return 1.0
    kernel = np.exp(-0.5 * squared / np.median(apart))
    smoother = np.linalg.solve(kernel + SMOOTHING * np.eye(n), kernel)
    smoother = (smoother + smoother.T) / 2
    centred = values.astype(np.float64).copy()
    for block in np.unique(blocks):
        centred[blocks == block] -= centred[blocks == block].mean()
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC4A]))
    permuted = np.tile(centred, (PERMUTATIONS, 1))
    for block in np.unique(blocks):
        inside = np.flatnonzero(blocks == block)
        permuted[:, inside] = rng.permuted(permuted[:, inside], axis=1)
    reference = np.einsum("pi,pi->p", permuted @ smoother, permuted)
    observed = float(centred @ smoother @ centred)
    return float((1 + np.sum(reference >= observed * (1 - 1e-12))) / (1 + PERMUTATIONS))
