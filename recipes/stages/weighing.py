"""The stages that turn evidence into mixtures: influence, the mixtures, the recommendation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from curation.atomic import hash_file, read_json, write_json, write_text
from mixing.influence import (
    CheckpointJob,
    InfluenceSettings,
    choose_samples,
    influence_at_checkpoints,
    read_benefits,
)
from mixing.influence.summary import summarise
from mixing.leave_one_out import loo_weights
from mixing.mixture import Mixture, make_mixture, write_mixture
from probes.capability import read_probes
from probes.likelihood import TokenizedDocument, tokenize_documents
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.front import evidence_from_runs
from recipes.stages.proxies import domain_run, uniform_weights
from recipes.stages.training_setup import (
    available_tokens,
    evenly_spaced,
    model_config,
    token_folders,
    total_steps,
)
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

REFERENCES = {"domain_models": "domain", "uniform_proxy": "uniform"}
FORWARDS_PER_DOCUMENT = 3.0
"""What a plan counts for scoring a document against a direction, in forward passes; the run measures it."""


def influence_jobs(run: Run) -> dict[str, list[CheckpointJob]]:
    """The checkpoints to be asked, by reference: each domain model about its own probe, the proxy about all."""
    recipe = run.recipe
    steps = evenly_spaced(recipe.influence.checkpoints, total_steps(recipe.proxy, recipe.proxy.tokens))
    jobs: dict[str, list[CheckpointJob]] = {}
    if "domain_models" in recipe.influence.references:
        jobs["domain"] = [
            CheckpointJob(
                _checkpoint(run, "domain_models", domain_run(run, c).run_id, step), "domain", step, (c,)
            )
            for c in recipe.capabilities
            for step in steps
        ]
    if "uniform_proxy" in recipe.influence.references:
        baseline = read_json(run.path("proxy_runs", "baseline.json"))["run_id"]
        jobs["uniform"] = [
            CheckpointJob(
                _checkpoint(run, "proxy_runs", baseline, step), "uniform", step, recipe.capabilities
            )
            for step in steps
        ]
    return jobs


def _checkpoint(run: Run, stage: str, run_id: str, step: int) -> Path:
    return run.path(stage, run_id, "train", "checkpoints", f"step-{step}")


def probe_documents(run: Run) -> dict[str, list[TokenizedDocument]]:
    """The first documents of each probe by id, as many as the recipe asks for."""
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    limit = run.recipe.influence.probe_documents
    chosen = {}
    for capability, documents in read_probes(run.path("probes")).items():
        first = sorted(documents, key=lambda document: document.id)[:limit]
        chosen[capability] = tokenize_documents(first, tokenizer)
    return chosen


def _influence(run: Run) -> Spent:
    recipe, folder = run.recipe, run.path("influence")
    settings = InfluenceSettings(
        preconditioner=recipe.influence.preconditioner, context=recipe.influence.context
    )
    samples = choose_samples(
        [TokenSource.open(path) for path in token_folders(run).values()],
        recipe.influence.documents_per_source,
        recipe.seed,
    )
    probes = probe_documents(run)
    by_reference = influence_jobs(run)
    jobs = [job for reference in by_reference.values() for job in reference]
    influence_at_checkpoints(jobs, probes, samples, folder, settings, workers=run.workers)
    tables, pilots = {}, []
    for reference, its_jobs in by_reference.items():
        files = [job.file(folder, capability) for job in its_jobs for capability in job.capabilities]
        tables[reference], agreement = read_benefits(files)
        pilots += agreement
    summary = summarise(
        tables,
        checkpoints=recipe.influence.checkpoint_weights,
        floor=recipe.influence.floor,
        trust_step=recipe.influence.bounded_step,
        current=uniform_weights(run),
        noise=[source.name for source in recipe.sources if not source.capabilities],
        effects=read_json(run.path("leave_one_out", "leave_one_out.json"))["effects"],
        pilots=pilots,
        resamples=recipe.probes.resamples,
        seed=recipe.seed,
    )
    if recipe.influence.choose != "auto":
        summary |= {"chosen": recipe.influence.choose, "why": "The recipe asks for it by `influence.choose`."}
    write_json(folder / "summary.json", summary)
    return _influence_cost(recipe, len(samples))


def _influence_cost(recipe: Recipe, samples: int) -> Spent:
    config, settings = model_config(recipe), recipe.influence
    directions = len(recipe.capabilities) * settings.checkpoints * len(settings.references)
    tokens = directions * samples * settings.context
    forward = config.flops_per_token(settings.context) / 3
    return Spent(flops=FORWARDS_PER_DOCUMENT * forward * tokens, tokens=tokens)


def _mixtures(run: Run) -> Spent:
    recipe = run.recipe
    available = available_tokens(run)
    summary_file = run.path("influence", "summary.json")
    effects_file = run.path("leave_one_out", "leave_one_out.json")
    summary, effects = read_json(summary_file), read_json(effects_file)
    chosen = summary["references"][summary["chosen"]]["weights"]
    left_out = {row["source"]: row for row in effects["weights"]}
    proposals: dict[str, dict[str, Any]] = {
        "uniform": {"proposal": dict.fromkeys(available, 1.0)},
        "proportional": {"proposal": {name: float(tokens) for name, tokens in available.items()}},
        "influence": {
            "proposal": {row["source"]: row["weight"] for row in chosen},
            "intervals": {row["source"]: (row["low"], row["high"]) for row in chosen},
            "notes": (f"Influence at `{summary['chosen']}`: {summary['why']}",),
            "inputs": {"influence/summary.json": hash_file(summary_file)},
        },
        "leave_one_out": {
            "proposal": loo_weights(effects["effects"], shrink=recipe.leave_one_out.shrink),
            "intervals": {name: (row["low"], row["high"]) for name, row in left_out.items()},
            "notes": tuple(effects["notes"]),
            "inputs": {"leave_one_out/leave_one_out.json": hash_file(effects_file)},
        },
    }
    mixtures = {
        method: make_mixture(
            method=method.replace("_", "-"),
            available_tokens=available,
            budget_tokens=recipe.proxy.tokens,
            max_epochs=recipe.proxy.max_epochs,
            seed=recipe.seed,
            **proposal,
        )
        for method, proposal in proposals.items()
    }
    evidence = evidence_from_runs(run, {name: mixture.weights for name, mixture in mixtures.items()})
    for name, mixture in mixtures.items():
        weighed = replace(mixture, evidence=evidence[name])
        write_mixture(run.path("mixtures", name, "mixture.json"), weighed)
    return Spent()


def _recommendation(run: Run) -> Spent:
    """The mixture with the fewest bits per byte on the probes, over the seeds of the comparison.

    The choice is made on the probes, so that the test set of `comparison.json` stays unseen by any choice.
    """
    rows = read_json(run.path("comparison", "on_probes.json"))["differences"]
    means = {row["mixture"]: row["difference"] for row in rows if row["capability"] == "mean"} | {
        "uniform": 0.0
    }
    best = min(means, key=lambda name: (means[name], name))
    text = run.path("mixtures", best, "mixture.json").read_text(encoding="utf-8")
    write_text(run.path("recommendation", "mixture.json"), text)
    write_json(
        run.path("recommendation", "recommendation.json"),
        {
            "mixture": best,
            "why": "It has the fewest bits per byte on the probes, in the mean over the capabilities and the seeds of "
            "the comparison. The test set, on which the mixtures are compared, had no say in it.",
            "difference_to_uniform_on_probes": means,
        },
    )
    write_text(run.path("mixture.json"), text)
    return Spent()


def mixture_named(run: Run, name: str) -> Mixture:
    """A mixture of this run by method, or the recommended one."""
    from mixing.mixture import read_mixture

    folder = run.path("recommendation") if name == "recommended" else run.path("mixtures", name)
    return read_mixture(folder / "mixture.json")


INFLUENCE = Stage(
    name="influence",
    folder="influence",
    needs=("domain_models", "proxy_runs", "leave_one_out", "probes", "tokens"),
    settings=lambda recipe: [recipe.influence.model_dump(), recipe.probes.resamples, recipe.seed],
    outputs=("*.parquet", "summary.json"),
    work=_influence,
    about="what each document does for each probe",
    estimate=lambda recipe: _influence_cost(
        recipe, recipe.influence.documents_per_source * len(recipe.sources)
    ),
    parallel=True,
    fixed_seconds=25,
)

MIXTURES = Stage(
    name="mixtures",
    folder="mixtures",
    needs=("influence", "leave_one_out", "proxy_runs", "tokens"),
    settings=lambda recipe: [
        recipe.leave_one_out.shrink,
        recipe.proxy.tokens,
        recipe.proxy.max_epochs,
        recipe.seed,
    ],
    outputs=("*/mixture.json",),
    work=_mixtures,
    about="weights within the limits on epochs",
    fixed_seconds=1,
)

RECOMMENDATION = Stage(
    name="recommendation",
    folder="recommendation",
    needs=("comparison", "mixtures"),
    settings=lambda recipe: None,
    outputs=("mixture.json", "recommendation.json"),
    work=_recommendation,
    about="choose a mixture, on the probes",
    fixed_seconds=1,
)
