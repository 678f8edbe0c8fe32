"""RegMix (Liu et al., 2024, arXiv 2407.01492): boosted trees on the shares, and the mean of the best candidates.

As published: for each metric LightGBM on the shares (rate .01, 1,000 trees); 100,000 candidates from
Dirichlet(p), p the sources' shares of all tokens; the mean of the 128 with the least predicted loss.

Where we differ:
* their script stops early on the set that it then tests on; all 1,000 trees are kept here (on their own
  data this changes nothing: rank correlation .990 and .990);
* LightGBM's least number of runs in a leaf, 20, allows no split below 40 runs: it is a tenth of the runs, at
  most 20 and at least 2;
* several metrics are predicted apart and averaged (they choose one metric);
* candidates are moved to the nearest mixture that the limits allow, and the mean of allowed ones is allowed;
* without token counts p is uniform.

Trees do not extrapolate, and the mean of 128 candidates is inside them: no share that no run had is found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from curation.errors import MachineError
from mixing.fit.proposal import Proposal, weight_intervals
from mixing.fit.search import Simplex
from mixing.fit.surrogate import fit_note
from mixing.fit.tables import ProxyTable

TREES = 1000
RATE = 0.01
CANDIDATES = 100_000
BEST = 128
RESAMPLES = 40
RESAMPLED_CANDIDATES = 20_000
FOLDS = 5
FASTER = 10
"""Refits have a tenth of the trees at ten times the rate: the same total step, for a tenth of the time."""


def propose_regmix(
    table: ProxyTable,
    objective: np.ndarray,
    simplex: Simplex,
    *,
    seed: int,
    prior: np.ndarray | None = None,
    candidates: int = CANDIDATES,
) -> Proposal:
    """The mean of the best candidates under boosted trees, with intervals by a bootstrap over the runs.

    prior : shares [m] of all tokens, sum 1; None: equal ones
    Intervals draw runs with replacement, RESAMPLES times, and fit and search again; they say how far the choice
    of the runs moves the answer. Raises MachineError without LightGBM.
    """
    m = len(simplex.sources)
    centre = np.full(m, 1 / m) if prior is None else np.maximum(prior, 1e-6)
    cloud = _candidates(centre, candidates, simplex, seed)
    best = _best_mean(cloud, _predict(table.weights, table.losses, cloud, objective, seed, 1), candidates)
    small = cloud[: min(RESAMPLED_CANDIDATES, len(cloud))]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x4E6]))
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.sort(rng.integers(0, len(table.weights), size=len(table.weights)))
        values = _predict(table.weights[rows], table.losses[rows], small, objective, seed, FASTER)
        drawn.append(_best_mean(small, values, candidates))
    return Proposal(best, weight_intervals(np.array(drawn), best), (_left_out_note(table, objective, seed),))


def _candidates(prior: np.ndarray, count: int, simplex: Simplex, seed: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x4E5]))
    return simplex.project_all(rng.dirichlet(prior, size=count))


def _best_mean(cloud: np.ndarray, values: np.ndarray, candidates: int) -> np.ndarray:
    """Mean of the same part of the candidates as 128 are of 100,000, whatever their number."""
    count = max(1, round(BEST / CANDIDATES * len(cloud)))
    chosen = cloud[np.argsort(values, kind="stable")[:count]]
    return chosen.mean(axis=0) / chosen.mean(axis=0).sum()


def _predict(
    weights: np.ndarray, losses: np.ndarray, points: np.ndarray, objective: np.ndarray, seed: int, faster: int
) -> np.ndarray:
    """Predicted objective [q] at mixtures [q, m]: one model a metric, averaged with the objective's weights."""
    lightgbm = _lightgbm()
    settings = {
        "objective": "regression",
        "learning_rate": RATE * faster,
        "min_data_in_leaf": min(20, max(2, len(weights) // 10)),
        "min_data_in_bin": 1,
        "seed": seed % 2**31,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    total = np.zeros(len(points))
    for k, weight in enumerate(objective):
        if weight == 0:
            continue
        data = lightgbm.Dataset(weights, losses[:, k], params={"verbosity": -1, "min_data_in_bin": 1})
        model = lightgbm.train(settings, data, num_boost_round=TREES // faster)
        total += float(weight) * model.predict(points)
    return total


def _left_out_note(table: ProxyTable, objective: np.ndarray, seed: int) -> str:
    n = len(table.weights)
    folds = np.random.default_rng(np.random.SeedSequence([seed, 0x4E7])).permutation(n) % min(FOLDS, n)
    predicted = np.zeros(n)
    for fold in range(min(FOLDS, n)):
        inside = folds != fold
        predicted[~inside] = _predict(
            table.weights[inside], table.losses[inside], table.weights[~inside], objective, seed, FASTER
        )
    return fit_note("boosted trees, runs predicted in five folds", predicted, table.mean_loss(objective))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise MachineError(
            "RegMix needs LightGBM, which is not installed",
            where="method regmix",
            remedy="pip install 'mixwright[regmix]', or use gaussian-process, which needs nothing more",
        ) from error
    return lightgbm
