"""What the proxy runs say beyond the mixtures themselves: evidence for each, and the front between capabilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from curation.atomic import write_json
from mixing.evidence import Evidence, unweighed
from mixing.fit.evidence_of import evidence_of
from mixing.fit.search import Simplex
from mixing.fit.tables import ProxyTable, read_proxy_table
from mixing.projection import share_bounds
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.proxies import mixture_budget
from recipes.stages.training_setup import available_tokens


def comparable_runs(recipe: Recipe) -> bool:
    """Whether losses of the recipe's proxy runs are losses of mixtures at one budget: not if tokens are missing."""
    return recipe.leave_one_out.reading == "replaced"


def proxy_table(run: Run) -> ProxyTable:
    """The run's own proxy runs."""
    return read_proxy_table(run.path("proxy_runs", "ratios.csv"), run.path("proxy_runs", "metrics.csv"))


def evidence_from_runs(run: Run, mixtures: Mapping[str, Mapping[str, float]]) -> dict[str, Evidence]:
    """Evidence for the run's mixtures from its proxy runs, of which most left a source out."""
    if not comparable_runs(run.recipe):
        why = "The proxy runs did not replace the tokens that they left out, so they are runs at several budgets"
        return {name: unweighed(why) for name in mixtures}
    return evidence_of(mixtures, proxy_table(run), seed=run.recipe.seed)


def _front(run: Run) -> Spent:
    from mixing.posterior import fit_posterior, pareto_front

    table = proxy_table(run)
    bounds = share_bounds(
        table.sources,
        available_tokens=available_tokens(run),
        budget_tokens=mixture_budget(run.recipe),
        max_epochs=run.recipe.proxy.max_epochs,
    )
    low, high = (np.array([b[name] for name in table.sources]) for b in (bounds.low, bounds.high))
    posterior = fit_posterior(table, seed=run.recipe.seed)
    front = pareto_front(posterior, Simplex(table.sources, low, high), seed=run.recipe.seed)
    write_json(run.path("front", "pareto.json"), {"schema": 1, "runs": len(table.run_ids), **front.record()})
    return Spent()


FRONT = Stage(
    name="front",
    folder="front",
    needs=("proxy_runs", "tokens"),
    settings=lambda recipe: [mixture_budget(recipe), recipe.proxy.max_epochs, recipe.seed],
    outputs=("pareto.json",),
    work=_front,
    about="what one capability costs in another",
    fixed_seconds=3,
)
