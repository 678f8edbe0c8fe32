"""The stage of DoReMi's two runs, in the manner of the proxy runs."""

from __future__ import annotations

from mixing import doremi_run
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.proxies import data_settings, estimate_runs, proxy_settings, uniform_weights
from recipes.stages.training_setup import one_thread
from recipes.training_settings import DoremiSettings

FORWARDS = 2 / 3
"""What the proxy's two more forward passes add, in updates."""


def _chosen(recipe: Recipe) -> DoremiSettings:
    return recipe.doremi or DoremiSettings()


def _doremi(run: Run) -> Spent:
    chosen = _chosen(run.recipe)
    with one_thread():
        found = doremi_run.run_doremi(
            proxy_settings(run, checkpoints=0),
            run.path("doremi"),
            reference=uniform_weights(run),
            doremi=doremi_run.DoremiSettings(seed=chosen.seed, eta=chosen.eta, smoothing=chosen.smoothing),
        )
    return Spent(flops=found["flops"], tokens=2 * found["budget_tokens"])


def _estimate(recipe: Recipe) -> Spent:
    one, two = estimate_runs(recipe, 1), estimate_runs(recipe, 2)
    return Spent(flops=two.flops + FORWARDS * one.flops, tokens=two.tokens)


DOREMI = Stage(
    name="doremi",
    folder="doremi",
    needs=("tokens", "probes"),
    settings=lambda recipe: [data_settings(recipe), _chosen(recipe).model_dump()],
    outputs=("doremi.json", "runs/ratios.csv", "runs/metrics.csv"),
    work=_doremi,
    about="DoReMi: a reference model, then weights from a proxy's excess losses",
    estimate=_estimate,
    fixed_seconds=4,
)
