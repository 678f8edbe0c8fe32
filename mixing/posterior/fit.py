"""Fit the posterior to all evidence: `fit_posterior`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curation.errors import DataError, RecipeError
from mixing.fit.tables import ProxyTable
from mixing.posterior.correlation import residual_correlation
from mixing.posterior.evidence import Effects, Evidence, Influence, gather
from mixing.posterior.hyperparameters import plausible
from mixing.posterior.model import make_problem
from mixing.posterior.posterior import Group, LossPosterior

EPSILONS = (0.003, 0.02, 0.15)
"""Tried smallest shares that matter: from sparse designs to nearly linear effects."""
COMPONENTS = 8


def fit_posterior(
    table: ProxyTable,
    loo: Effects | None = None,
    influence: Influence | Sequence[Influence] = (),
    *,
    epsilon: float | None = None,
    coupled: bool = False,
    components: int = COMPONENTS,
    seed: int = 0,
) -> LossPosterior:
    """The posterior over each capability's loss from runs, leave-one-out differences and influence.

    table      : runs; absolute losses, lower is better
    loo        : differences to a base mixture, when its runs are not rows of the table themselves
    influence  : benefits of the sources at one mixture or several
    epsilon    : smallest share that matters; None: EPSILONS, in proportion to their evidence
    coupled    : capabilities share a process and noise (cubic in runs times capabilities)
    components : draws of the hyperparameters that are averaged; 1: their mode alone
    The order of rows and sources does not change the result. Raises DataError with fewer than two runs.
    """
    if len(table.run_ids) < 2:
        raise DataError("A posterior needs at least two runs", where="ratios", remedy="Train more mixtures")
    if epsilon is not None and not 0 < epsilon < 1:
        raise RecipeError(f"An epsilon of {epsilon} is not possible", where="epsilon", remedy="Choose 0 to 1")
    records = [influence] if isinstance(influence, Influence) else list(influence)
    evidence = gather(table, loo, records)
    everything = tuple(range(len(table.metrics)))
    split = [everything] if coupled else [(c,) for c in everything]
    groups = []
    for place, group in enumerate(split):
        problems = [
            make_problem(_select(evidence, group), value, coupled)
            for value in (EPSILONS if epsilon is None else (epsilon,))
        ]
        seeds = np.random.SeedSequence([seed, 0xF17, place])
        groups.append(Group(group, *plausible(problems, components, seeds)))
    correlation = residual_correlation(tuple(groups), evidence)
    return LossPosterior(table.sources, table.metrics, evidence, tuple(groups), correlation)


def _select(evidence: Evidence, group: tuple[int, ...]) -> Evidence:
    fields = dict(evidence.__dict__)
    fields["capabilities"] = tuple(evidence.capabilities[c] for c in group)
    fields["observed"] = evidence.observed[list(group)]
    return Evidence(**fields)
