"""The stage that asks which tokens of the best and of the worst documents help and hurt each capability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from curation.atomic import read_json, write_json
from mixing.influence import (
    CheckpointJob,
    Direction,
    SampleDocument,
    choose_samples,
    load_adam_moments,
    probe_directions,
    token_benefit,
)
from mixing.influence.pieces import text_pieces
from mixing.influence.summary import BOUNDED
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.training_setup import model_config, one_thread, token_folders
from recipes.stages.weighing import influence_jobs, probe_documents
from training.checkpoint import load_checkpoint_model
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

EACH = 2
"""Documents from either end, for each capability."""
MOST_TOKENS = 240
"""Tokens of a document that are shown one by one; the rest is one number."""
FORWARDS = 3
"""Of a gradient of the probe, and of the derivative of a document along it."""


def _token_benefits(run: Run) -> Spent:
    settings = run.recipe.influence
    summary = read_json(run.path("influence", "summary.json"))
    reference = summary["chosen"].removesuffix(BOUNDED)
    jobs = influence_jobs(run)[reference]
    last = max(job.step for job in jobs)
    samples = list(
        choose_samples(
            [TokenSource.open(path) for path in token_folders(run).values()],
            settings.documents_per_source,
            run.recipe.seed,
        )
    )
    probes = probe_documents(run)
    found: dict[str, Any] = {}
    tokens = 0
    with one_thread():
        for job in (job for job in jobs if job.step == last):
            model = load_checkpoint_model(job.checkpoint, averaged=False)
            # The directions of the influence stage, made again: they are large and were not kept.
            directions = probe_directions(
                model,
                {name: probes[name] for name in job.capabilities},
                settings.preconditioner,
                parameters=settings.parameters,
                moments=load_adam_moments(job.checkpoint) if settings.preconditioner == "adam" else None,
                curvature=_spread(samples, settings.curvature_documents),
                damping=settings.damping,
                context=settings.context,
            )
            for capability, direction in directions.items():
                tokens += direction.probe_tokens
                rows = _coloured(run, job, model, direction, samples)
                tokens += sum(row["tokens"] for row in rows)
                found[capability] = {"checkpoint": job.step, "documents": rows}
    write_json(
        run.path("token_benefits", "tokens.json"),
        {"schema": 1, "reference": reference, "capabilities": found},
    )
    config = model_config(run.recipe)
    forward = config.flops_per_token(settings.context) / 3
    return Spent(flops=FORWARDS * tokens * forward, tokens=tokens)


def _coloured(
    run: Run, job: CheckpointJob, model: Any, direction: Direction, samples: Sequence[SampleDocument]
) -> list[dict[str, Any]]:
    """The documents of most and least benefit for one capability at one checkpoint, token by token."""
    settings = run.recipe.influence
    table = pq.read_table(job.file(run.path("influence"), direction.probe), columns=["document", "benefit"])
    ranked = sorted(
        zip(table["document"].to_pylist(), table["benefit"].to_pylist(), strict=True),
        key=lambda row: (-row[1], row[0]),
    )
    by_id = {sample.id: sample for sample in samples}
    ranked = [row for row in ranked if row[0] in by_id]
    take = min(EACH, len(ranked) // 2)
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    rows = []
    for name, _ in [*ranked[:take], *ranked[len(ranked) - take :]]:
        document = by_id[name]
        values = token_benefit(
            model,
            document,
            {direction.probe: direction},
            reduction=settings.reduction,
            context=settings.context,
            windows=settings.windows,
        )[:, 0]
        # What lies beyond the first window was not scored (it predicts `context` tokens after the first), and the mark
        # of the beginning is not the document's.
        last = len(values) if settings.windows == "all" else min(settings.context + 1, len(values))
        first = int(int(document.ids[0]) in tokenizer.all_special_ids)
        shown = slice(first, min(last, MOST_TOKENS))
        rows.append(
            {
                "document": name,
                "source": document.source,
                "benefit": float(values.sum()),
                "tokens": last,
                "unscored": len(values) - last,
                "pieces": text_pieces(tokenizer, document.ids[shown], values[shown]),
                "rest": float(values[shown.stop :].sum()),
            }
        )
    return rows


def _spread(samples: Sequence[SampleDocument], count: int) -> list[SampleDocument]:
    """So many samples, evenly over all of them."""
    at = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))
    return [samples[i] for i in at]


def _estimate(recipe: Recipe) -> Spent:
    settings = recipe.influence
    documents = settings.probe_documents + 2 * EACH
    tokens = len(recipe.capabilities) * documents * settings.context
    return Spent(
        flops=FORWARDS * tokens * model_config(recipe).flops_per_token(settings.context) / 3, tokens=tokens
    )


TOKEN_BENEFITS = Stage(
    name="token_benefits",
    folder="token_benefits",
    needs=("influence", "domain_models", "proxy_runs", "probes", "tokens", "tokenizer"),
    settings=lambda recipe: [recipe.influence.model_dump(), recipe.seed],
    outputs=("tokens.json",),
    work=_token_benefits,
    about="which tokens help and which hurt",
    estimate=_estimate,
    fixed_seconds=4,
)
