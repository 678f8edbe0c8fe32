"""The stages that turn evidence into mixtures: influence, the mixtures, the recommendation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curation.atomic import hash_file, read_json, write_json, write_text
from mixing.influence import (
    AssemblySettings,
    CheckpointJob,
    InfluenceSettings,
    Stopping,
    adaptive_influence,
    choose_samples,
    influence_at_checkpoints,
    read_benefits,
    read_record,
)
from mixing.influence.adaptive import write_sampled
from mixing.influence.loading import learning_rate_at
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
    wanted = recipe.influence
    settings, assembly = influence_settings(recipe)
    samples = choose_samples(
        [TokenSource.open(path) for path in token_folders(run).values()],
        wanted.documents_per_source,
        recipe.seed,
    )
    probes = probe_documents(run)
    by_reference = influence_jobs(run)
    jobs = [job for reference in by_reference.values() for job in reference]
    rates = _learning_rates(jobs) if wanted.checkpoint_weights == "learning_rate" else None
    sampled: dict[str, Any] = {}
    if wanted.half_width:
        stopping = Stopping(
            half_width=wanted.half_width, first=min(64, max(8, wanted.documents_per_source // 4))
        )
        for reference, its_jobs in by_reference.items():
            found = adaptive_influence(
                its_jobs,
                {c: d for c, d in probes.items() if any(c in job.capabilities for job in its_jobs)},
                samples,
                folder,
                settings,
                assembly,
                stopping,
                learning_rates=rates,
                workers=run.workers,
            )
            write_sampled(found, its_jobs, folder)
            sampled[reference] = found.sampled.record()
    else:
        influence_at_checkpoints(jobs, probes, samples, folder, settings, workers=run.workers)
    tables, pilots, losses, tokens = {}, [], {}, 0.0
    for reference, its_jobs in by_reference.items():
        files = [job.file(folder, capability) for job in its_jobs for capability in job.capabilities]
        tables[reference], agreement = read_benefits(files)
        records = [read_record(file) for file in files]
        losses[reference] = {(r["capability"], r["step"]): r["direction"]["probe_loss"] for r in records}
        tokens += sum({r["inputs"]: r["forward_tokens"] for r in records}.values())
        pilots += agreement
    summary = summarise(
        tables,
        checkpoints=wanted.checkpoint_weights,
        normalise=wanted.normalise,
        floor=wanted.floor,
        trust_step=wanted.bounded_step,
        current=uniform_weights(run),
        noise=[source.name for source in recipe.sources if not source.capabilities],
        effects=read_json(run.path("leave_one_out", "leave_one_out.json"))["effects"],
        pilots=pilots,
        resamples=recipe.probes.resamples,
        seed=recipe.seed,
        resample_checkpoints=wanted.resample_checkpoints,
        learning_rates=rates,
        probe_losses=losses,
        reduction=wanted.reduction,
    )
    summary |= {"protocol": wanted.protocol, "forward_tokens": tokens}
    if rates is not None:  # what the report joins by
        summary["learning_rates"] = {str(step): rate for step, rate in rates.items()}
    if sampled:
        summary["sampled"] = sampled
    if wanted.choose != "auto":
        summary |= {"chosen": wanted.choose, "why": "The recipe asks for it by `influence.choose`."}
    write_json(folder / "summary.json", summary)
    shutil.rmtree(folder / ".work", ignore_errors=True)
    return _influence_cost(recipe, len(samples))


def influence_settings(recipe: Recipe) -> tuple[InfluenceSettings, AssemblySettings]:
    """The recipe's block as the settings of scoring and of assembling."""
    wanted = recipe.influence
    return (
        InfluenceSettings(
            preconditioner=wanted.preconditioner,
            parameters=wanted.parameters,
            engine=wanted.engine,
            reduction=wanted.reduction,
            context=wanted.context,
            windows=wanted.windows,
            curvature_documents=wanted.curvature_documents,
            damping=wanted.damping,
            group_documents=wanted.group_documents,
            cosine=wanted.normalise == "cosine",
            seed=recipe.seed,
        ),
        AssemblySettings(
            checkpoint_weights=wanted.checkpoint_weights,
            normalise=wanted.normalise,
            floor=wanted.floor,
            resamples=recipe.probes.resamples,
            resample_checkpoints=wanted.resample_checkpoints,
            seed=recipe.seed,
        ),
    )


def _learning_rates(jobs: Sequence[CheckpointJob]) -> dict[int, float]:
    """The rate at each step; the reference models of a recipe share one schedule."""
    found = {job.step: learning_rate_at(job.checkpoint) for job in jobs}
    return {step: rate for step, rate in found.items() if rate is not None}


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
            "notes": (summary["why"],),
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
