"""The evidence beside a mixture: what it is compared with, and the posterior that compares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixing.evidence import Evidence, unweighed
from mixing.fit.loss_posterior import LossPosterior, ProcessPosterior
from mixing.fit.search import Simplex
from mixing.fit.tables import ProxyTable
from mixing.fit.weighing import weigh
from mixing.mixture import Mixture


def rivals_of(
    table: ProxyTable | None, objective: np.ndarray | None, sizes: np.ndarray | None, simplex: Simplex
) -> dict[str, np.ndarray]:
    """Uniform, proportional and the best run, as near as the limits allow."""
    m = len(simplex.sources)
    rivals = {"uniform": simplex.project(np.full(m, 1 / m))}
    if sizes is not None:
        rivals["proportional"] = simplex.project(sizes)
    if table is not None and objective is not None:
        weights, losses, _ = table.by_mixture()
        rivals["best run"] = simplex.project(weights[int(np.argmin(losses @ objective))])
    return rivals


def judge(
    mixture: Mixture,
    table: ProxyTable | None,
    objective: np.ndarray | None,
    posterior: LossPosterior | None,
    rivals: dict[str, np.ndarray],
    seed: int,
) -> Evidence:
    """Weigh the mixture by the posterior; without runs, or with runs that are all alike, say that nobody knows."""
    if table is None or objective is None:
        return unweighed("No proxy runs were given, so nothing is known about what training on it would give")
    if posterior is None:
        found = unweighed("The metrics are the same in all runs")
        return replace(found, runs=len(table.run_ids), flops=table.flops, seconds=table.seconds)
    weights = np.array([mixture.weights[name] for name in table.sources])
    basis, doubt = _basis(posterior, objective, seed)
    return weigh(
        weights,
        posterior,
        objective,
        table.metrics,
        rivals,
        runs=len(table.run_ids),
        basis=basis,
        seed=seed,
        doubt=doubt,
        flops=table.flops,
        seconds=table.seconds,
    )


def _basis(posterior: LossPosterior, objective: np.ndarray, seed: int) -> tuple[str, str]:
    """What the posterior is, in words, and why it may claim nothing ("": it may)."""
    if isinstance(posterior, ProcessPosterior):
        return "Gaussian processes on log shares", ""
    from mixing.posterior.posterior import LossPosterior as WholePosterior  # it builds on this package

    if not isinstance(posterior, WholePosterior):
        return type(posterior).__name__, ""
    from mixing.posterior.recommend import doubt_of

    return "one posterior of " + ", ".join(posterior.evidence.kinds), doubt_of(posterior, objective, seed)
