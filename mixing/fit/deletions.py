"""Leave-one-out read from a table of proxy runs: which rows are a base mixture without one source."""

from __future__ import annotations

import numpy as np

from curation.errors import DataError
from mixing.deltas import weights_from_deltas
from mixing.evidence import LEVEL
from mixing.fit.proposal import Proposal, central_interval
from mixing.fit.tables import ProxyTable
from mixing.paired import student_draws

SHARE_MATCH = 5e-3
RESAMPLES = 2000


def propose_leave_one_out(table: ProxyTable, objective: np.ndarray, *, seed: int, shrink: float) -> Proposal:
    """Weights from the deletions that a table of runs contains (`mixing.leave_one_out.loo_weights`).

    The base is the mixture that most other rows are a deletion of. Seeds are paired where the table has a
    column `seed`. Raises DataError when some source of the base is never deleted.
    """
    base, deletions = find_deletions(table)
    weights, losses, rows = table.by_mixture()
    present = sorted(deletions)
    missing = [s for j, s in enumerate(table.sources) if weights[base][j] > 0 and j not in deletions]
    if not present or missing:
        raise DataError(
            "The runs are not a leave-one-out study: "
            + (
                f"no run is the base mixture without {missing[0]!r}"
                if missing
                else "no run lacks just one source"
            ),
            where="ratios",
            remedy="Add the runs, or use gaussian-process, which takes any runs",
        )
    per_seed = _paired(table, objective, rows[base], {j: rows[deletions[j]] for j in present})
    notes = ["Base mixture: " + ", ".join(table.run_ids[row] for row in rows[base])]
    intervals = None
    if per_seed is None:
        deltas = np.array([losses[deletions[j]] - losses[base] for j in present]) @ objective
        notes.append("The deletions share fewer than two seeds with the base: no interval can be given")
    else:
        deltas = per_seed.mean(axis=0)
        draws = deltas + student_draws(per_seed, seed=seed, resamples=RESAMPLES)
        drawn = weights_from_deltas(draws[:, :, None], shrink=shrink, scale="none")
        intervals = np.zeros((len(table.sources), 2))
        for place, j in enumerate(present):
            intervals[j] = central_interval(drawn[:, place], LEVEL)
    proposal = np.zeros(len(table.sources))
    proposal[present] = weights_from_deltas(deltas[:, None], shrink=shrink, scale="none")
    if np.all(deltas <= 0):
        notes.append("No source helped on average, so the weights are uniform")
    return Proposal(proposal, intervals, tuple(notes))


def find_deletions(table: ProxyTable) -> tuple[int, dict[int, int]]:
    """Which mixture (of `table.by_mixture()`) is the base, and {source: mixture without it}."""
    weights, _, _ = table.by_mixture()
    best: tuple[int, dict[int, int]] = (0, {})
    for base in range(len(weights)):
        found: dict[int, int] = {}
        for j in np.flatnonzero(weights[base] > 0):
            rest = weights[base].copy()
            rest[j] = 0
            if rest.sum() <= 0:
                continue
            distance = np.abs(weights - rest / rest.sum()).max(axis=1)
            if distance.min() < SHARE_MATCH:
                found[int(j)] = int(np.argmin(distance))
        if len(found) > len(best[1]):
            best = (base, found)
    return best


def _paired(
    table: ProxyTable, objective: np.ndarray, base: list[int], deletions: dict[int, list[int]]
) -> np.ndarray | None:
    """Deltas of the objective [seeds, deletions] over the seeds that all have; None with fewer than two."""
    if table.seeds is None:
        return None
    scores = table.mean_loss(objective)

    def by_seed(rows: list[int]) -> dict[int, float]:
        assert table.seeds is not None
        return {table.seeds[row]: float(scores[row]) for row in rows}

    reference = by_seed(base)
    others = [by_seed(deletions[j]) for j in sorted(deletions)]
    seeds = sorted(set(reference).intersection(*others))
    if len(seeds) < 2:
        return None
    return np.array([[other[s] - reference[s] for other in others] for s in seeds])
