"""What a decision about the mixture needs: the posterior, the allowed mixtures, how the capabilities count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixing.fit.checks import Runs, check_losses, check_sources, objective_weights, runs_table
from mixing.fit.limits import allowed_mixtures
from mixing.fit.search import Simplex
from mixing.posterior.from_files import Benefits, Deletions, posterior_from
from mixing.posterior.posterior import LossPosterior


@dataclass(frozen=True)
class DecisionProblem:
    """posterior; simplex: allowed mixtures; objective [c]: weights of the capabilities, sum 1; run_ids so far."""

    posterior: LossPosterior
    simplex: Simplex
    objective: np.ndarray
    run_ids: tuple[str, ...]


def decision_problem(
    runs: Runs,
    *,
    sources: Sequence[str] | None = None,
    objective: Mapping[str, float] | None = None,
    available_tokens: Mapping[str, float] | None = None,
    budget_tokens: int | None = None,
    max_epochs: float | None = None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
    leave_one_out: Deletions | None = None,
    influence: Benefits | Sequence[Benefits] | None = None,
    measured_at: Mapping[str, float] | None = None,
    reference: str | None = None,
    seed: int = 0,
) -> DecisionProblem:
    """Fit one posterior to runs and other evidence; options as in `mixing.fit.fit_mixture` and `posterior_from`.

    What it gives serves `propose`, `pareto_front`, `recommend`, and as `posterior` of `fit_mixture`.
    """
    table, _ = runs_table(runs, sources)
    check_sources(table.sources, available_tokens, fixed, maximum)
    simplex = allowed_mixtures(
        table.sources,
        available_tokens=available_tokens,
        budget_tokens=budget_tokens,
        max_epochs=max_epochs,
        minimum=minimum,
        maximum=maximum,
        fixed=fixed,
    )
    weights = objective_weights(table.metrics, objective)
    check_losses(table, "posterior")
    posterior = posterior_from(
        table,
        leave_one_out=leave_one_out,
        influence=influence,
        measured_at=measured_at,
        reference=reference,
        seed=seed,
    )
    return DecisionProblem(posterior, simplex, weights, table.run_ids)
