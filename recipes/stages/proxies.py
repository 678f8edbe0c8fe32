"""The stages that train small models: leave-one-out with its proxy runs, domain models, the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.atomic import write_json
from curation.scoring.runners import open_runner
from mixing.comparison import compare_tables, plan_comparison
from mixing.leave_one_out import analyse_leave_one_out, plan_leave_one_out, write_leave_one_out
from mixing.mixture import make_mixture, read_mixture
from mixing.runs import ProxyResult, ProxyRun, ProxySettings, evaluation_steps, read_evaluation, run_proxies
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.training_setup import (
    available_tokens,
    model_config,
    token_folders,
    total_steps,
    train_settings,
)

BYTES_PER_TOKEN = 3.0
"""What a plan assumes before there is a tokenizer."""


def proxy_settings(run: Run, *, checkpoints: int, test: bool = False) -> ProxySettings:
    """What the recipe's proxy runs share; with `test`, they are measured on the test sets as well."""
    recipe = run.recipe
    probes = {capability: run.path("probes", f"{capability}.parquet") for capability in recipe.capabilities}
    if test:
        held_out = {f"test-{name}": run.path("test", f"{name}.parquet") for name in recipe.capabilities}
        probes |= held_out
    train = train_settings(
        recipe.proxy,
        recipe.proxy.tokens,
        seed=0,
        checkpoints=checkpoints,
        evaluations=1 if test else recipe.proxy.evaluations,
    )
    return ProxySettings(
        model=model_config(recipe),
        train=train,
        tokens=token_folders(run),
        probes=probes,
        tokenizer=run.path("tokenizer", "model"),
        context=recipe.probes.context,
        stride=recipe.probes.stride,
        keep="all" if checkpoints else "none",
        target_tokens=recipe.final.tokens if recipe.proxy.match_repetition else None,
    )


def mixture_budget(recipe: Recipe) -> int:
    """The budget at which epochs are counted: the final training's where repetition is matched."""
    return recipe.final.tokens if recipe.proxy.match_repetition else recipe.proxy.tokens


def _make_runs(
    run: Run, runs: Sequence[ProxyRun], settings: ProxySettings, folder: Path, about: str
) -> list[ProxyResult]:
    """Make proxy runs where the recipe wants them."""
    executor = run.recipe.proxy.executor
    if executor is None:
        return run_proxies(runs, settings, folder, workers=run.workers, description=about)
    with open_runner(executor.execution(run.workers)) as runner:
        return run_proxies(runs, settings, folder, runner=runner, description=about)


def uniform_weights(run: Run, sources: list[str] | None = None) -> dict[str, float]:
    """The uniform mixture of all sources, or of some, moved as little as the limit on epochs demands."""
    available = available_tokens(run)
    chosen = sources if sources is not None else list(available)
    mixture = make_mixture(
        dict.fromkeys(chosen, 1.0),
        method="uniform",
        available_tokens={name: available[name] for name in chosen},
        budget_tokens=mixture_budget(run.recipe),
        max_epochs=run.recipe.proxy.max_epochs,
    )
    return {name: mixture.weights.get(name, 0.0) for name in available}


def spent_by(results: list[ProxyResult]) -> Spent:
    """The ledger entry of proxy runs: training and evaluation."""
    flops = math.fsum(result.flops + result.evaluation_flops for result in results)
    return Spent(flops=flops, tokens=sum(result.tokens for result in results))


def estimate_runs(recipe: Recipe, runs: int) -> Spent:
    """What so many proxy runs are expected to spend."""
    settings = recipe.proxy
    per_run = total_steps(settings, settings.tokens) * settings.sequence_tokens * settings.batch_sequences
    flops_per_token = model_config(recipe).flops_per_token(settings.sequence_tokens)
    # A forward pass over the probes is a third of the work of training on them.
    probes = (
        recipe.probes.maximum_documents * len(recipe.sources) * recipe.curation.piece_bytes / BYTES_PER_TOKEN
    )
    evaluated = settings.evaluations * probes / 3
    return Spent(flops=runs * (per_run + evaluated) * flops_per_token, tokens=runs * per_run)


def data_settings(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that decides what its small runs learn from."""
    return {
        "model": recipe.model.model_dump(),
        "proxy": recipe.proxy.model_dump(exclude={"executor"}),
        "target": recipe.final.tokens if recipe.proxy.match_repetition else None,
        "vocabulary": recipe.tokenizer.vocabulary,
        "context": [recipe.probes.context, recipe.probes.stride],
        "sources": [[source.name, *source.capabilities] for source in recipe.sources],
    }


def _proxy_runs(run: Run) -> Spent:
    plan = plan_leave_one_out(
        [source.name for source in run.recipe.sources],
        uniform_weights(run),
        run.recipe.leave_one_out.seeds,
        reading=run.recipe.leave_one_out.reading,
    )
    checkpoints = (
        run.recipe.influence.checkpoints if "uniform_proxy" in run.recipe.influence.references else 0
    )
    first = run.recipe.leave_one_out.seeds[0]
    # Influence asks the checkpoints of one run on the uniform mixture; the others keep none.
    plan.runs[None, first] = baseline = replace(plan.runs[None, first], keep="all")
    folder = run.path("proxy_runs")
    settings = replace(proxy_settings(run, checkpoints=checkpoints), keep="none")
    results = _make_runs(run, list(plan.runs.values()), settings, folder, "leave-one-out")
    write_json(folder / "baseline.json", {"run_id": baseline.run_id, "seed": first})
    return spent_by(results)


def _leave_one_out(run: Run) -> Spent:
    settings = run.recipe.leave_one_out
    plan = plan_leave_one_out(
        [source.name for source in run.recipe.sources],
        uniform_weights(run),
        settings.seeds,
        reading=settings.reading,
    )
    result = analyse_leave_one_out(
        plan, run.path("proxy_runs"), resamples=run.recipe.probes.resamples, seed=run.recipe.seed
    )
    write_leave_one_out(run.path("leave_one_out", "leave_one_out.json"), result, run.recipe.proxy.tokens)
    return Spent()


def domain_run(run: Run, capability: str) -> ProxyRun:
    """The run of a domain model: the sources of one capability, in equal parts."""
    sources = [source.name for source in run.recipe.sources if capability in source.capabilities]
    return ProxyRun(capability, uniform_weights(run, sources), seed=run.recipe.leave_one_out.seeds[0])


def _domain_models(run: Run) -> Spent:
    settings = proxy_settings(run, checkpoints=run.recipe.influence.checkpoints)
    runs = [domain_run(run, capability) for capability in run.recipe.capabilities]
    return spent_by(_make_runs(run, runs, settings, run.path("domain_models"), "domain models"))


def _comparison(run: Run) -> Spent:
    settings = run.recipe.comparison
    mixtures: dict[str, dict[str, float]] = {
        name: read_mixture(run.path("mixtures", name, "mixture.json")).weights for name in settings.mixtures
    }
    return compare_mixtures(run, mixtures, settings.seeds, run.path("comparison"))


def compare_mixtures(
    run: Run, mixtures: Mapping[str, Mapping[str, float]], seeds: Sequence[int], folder: Path
) -> Spent:
    """Train mixtures with paired seeds into `folder`, and compare them on the test sets and on the probes."""
    runs = plan_comparison(mixtures, seeds)
    shared = proxy_settings(run, checkpoints=0, test=True)
    results = _make_runs(run, list(runs.values()), shared, folder / "runs", "comparing mixtures")
    tables: dict[str, dict[str, dict[int, dict[str, pa.Table]]]] = {"test": {}, "probes": {}}
    for (name, seed), proxy in runs.items():
        step = evaluation_steps(folder / "runs", proxy.run_id)[-1]
        found = read_evaluation(folder / "runs", proxy.run_id, step)
        for kind, prefix in (("test", "test-"), ("probes", "")):
            tables[kind].setdefault(name, {})[seed] = {
                capability: found[prefix + capability] for capability in run.recipe.capabilities
            }
    write_json(folder / "comparison.json", compare_tables(tables["test"], mixtures=mixtures))
    write_json(folder / "on_probes.json", compare_tables(tables["probes"], mixtures=mixtures))
    return spent_by(results)


PROXY_RUNS = Stage(
    name="proxy_runs",
    folder="proxy_runs",
    needs=("tokens", "probes"),
    settings=lambda recipe: [
        data_settings(recipe),
        recipe.leave_one_out.model_dump(exclude={"shrink"}),
        recipe.influence.checkpoints,
        recipe.influence.references,
    ],
    outputs=("ratios.csv", "metrics.csv", "baseline.json", "*/evaluations/*.parquet"),
    work=_proxy_runs,
    about="train with all sources, and without each",
    estimate=lambda recipe: estimate_runs(
        recipe, (len(recipe.sources) + 1) * len(recipe.leave_one_out.seeds)
    ),
    parallel=True,
    fixed_seconds=8,
)

LEAVE_ONE_OUT = Stage(
    name="leave_one_out",
    folder="leave_one_out",
    needs=("proxy_runs",),
    settings=lambda recipe: [recipe.leave_one_out.model_dump(), recipe.probes.resamples, recipe.seed],
    outputs=("leave_one_out.json",),
    work=_leave_one_out,
    about="what each source is worth",
    fixed_seconds=2,
)

DOMAIN_MODELS = Stage(
    name="domain_models",
    folder="domain_models",
    needs=("tokens", "probes"),
    settings=lambda recipe: [
        data_settings(recipe),
        recipe.influence.checkpoints,
        recipe.leave_one_out.seeds[0],
    ],
    outputs=("ratios.csv", "metrics.csv", "*/train/checkpoints/*/model.safetensors"),
    work=_domain_models,
    about="train a model for each capability",
    estimate=lambda recipe: estimate_runs(recipe, len(recipe.capabilities)),
    parallel=True,
    fixed_seconds=6,
)

COMPARISON = Stage(
    name="comparison",
    folder="comparison",
    needs=("mixtures", "tokens", "test", "probes"),
    settings=lambda recipe: [data_settings(recipe), recipe.comparison.model_dump()],
    outputs=("comparison.json", "on_probes.json"),
    work=_comparison,
    about="train on each mixture, paired seeds, unseen text",
    estimate=lambda recipe: estimate_runs(
        recipe, len(recipe.comparison.mixtures) * len(recipe.comparison.seeds)
    ),
    parallel=True,
    fixed_seconds=8,
)
