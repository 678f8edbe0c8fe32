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

import re
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
STAGES = (0.1, 0.3)
"""Shares of the trees after which candidates that can no longer win are left out."""

Models = list[tuple[float, Any]]
"""A model of each metric, with the metric's weight in the objective."""


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
    best = _best_mean(cloud, _fit(table.weights, table.losses, objective, seed, 1))
    small = cloud[: min(RESAMPLED_CANDIDATES, len(cloud))]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x4E6]))
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.sort(rng.integers(0, len(table.weights), size=len(table.weights)))
        models = _fit(table.weights[rows], table.losses[rows], objective, seed, FASTER)
        drawn.append(_best_mean(small, models))
    return Proposal(best, weight_intervals(np.array(drawn), best), (_left_out_note(table, objective, seed),))


def _candidates(prior: np.ndarray, count: int, simplex: Simplex, seed: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x4E5]))
    return simplex.project_all(rng.dirichlet(prior, size=count))


def _best_mean(cloud: np.ndarray, models: Models) -> np.ndarray:
    """Mean of the same part of the candidates as 128 are of 100,000, whatever their number."""
    count = max(1, round(BEST / CANDIDATES * len(cloud)))
    chosen = cloud[least(cloud, models, count)]
    return chosen.mean(axis=0) / chosen.mean(axis=0).sum()


def least(cloud: np.ndarray, models: Models, count: int) -> np.ndarray:
    """Indices of the `count` candidates of least predicted objective; of equal ones the first.

    The first trees say most. A candidate that cannot be among the best whatever leaves of the other trees it ends
    in is not asked any further, so the answer is that of all trees on all candidates, for a part of the work.
    """
    alive, values = np.arange(len(cloud)), np.zeros(len(cloud))
    bounds = [_leaf_bounds(model) for _, model in models]
    trees = min(len(each) for each in bounds)
    begin = 0
    for share in STAGES:
        end = int(share * trees)
        if end <= begin or len(alive) <= count:
            continue
        for weight, model in models:
            values += weight * model.predict(cloud[alive], start_iteration=begin, num_iteration=end - begin)
        low, high = sum(w * each[end:].sum(axis=0) for (w, _), each in zip(models, bounds, strict=True))
        worst = np.partition(values, count - 1)[count - 1] + high
        kept = values + low <= worst + 1e-9 * max(1.0, abs(worst))  # sums in another order differ a little
        alive, values, begin = alive[kept], values[kept], end
    order = np.argsort(_predict(models, cloud[alive]), kind="stable")
    return alive[order[:count]]


def _leaf_bounds(model: Any) -> np.ndarray:
    """Least and greatest leaf of each tree [trees, 2]."""
    leaves = re.findall(r"^leaf_value=(.*)$", model.model_to_string(), flags=re.MULTILINE)
    each = [[float(value) for value in line.split()] for line in leaves]
    return np.array([[min(values), max(values)] for values in each])


def _predict(models: Models, points: np.ndarray) -> np.ndarray:
    """Predicted objective [q] at mixtures [q, m]."""
    total = np.zeros(len(points))
    for weight, model in models:
        total += weight * model.predict(points)
    return total


def _fit(weights: np.ndarray, losses: np.ndarray, objective: np.ndarray, seed: int, faster: int) -> Models:
    """One model a metric with its weight in the objective; metrics without weight have none."""
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
    found: Models = []
    for k in np.flatnonzero(objective):
        data = lightgbm.Dataset(weights, losses[:, k], params={"verbosity": -1, "min_data_in_bin": 1})
        model = lightgbm.train(settings, data, num_boost_round=TREES // faster)
        found.append((float(objective[k]), model))
    return found


def _left_out_note(table: ProxyTable, objective: np.ndarray, seed: int) -> str:
    n = len(table.weights)
    folds = np.random.default_rng(np.random.SeedSequence([seed, 0x4E7])).permutation(n) % min(FOLDS, n)
    predicted = np.zeros(n)
    for fold in range(min(FOLDS, n)):
        inside = folds != fold
        models = _fit(table.weights[inside], table.losses[inside], objective, seed, FASTER)
        predicted[~inside] = _predict(models, table.weights[~inside])
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
