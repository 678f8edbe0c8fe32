"""The stage between pre-training and post-training: rounds of compression, beside the uncompressed set."""

from __future__ import annotations

import math
from dataclasses import replace

from mixing.compression import CompressionSettings, compress
from mixing.influence import InfluenceSettings
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.proxies import proxy_settings
from recipes.stages.training_setup import model_config, token_folders, total_steps, train_settings
from recipes.stages.weighing import mixture_named
from training.distillation_settings import Distillation
from training.huggingface import save_huggingface
from training.loop import load_checkpoint_model
from training.result import read_result
from training.tokenizer import load_tokenizer

FORWARDS_PER_DOCUMENT = 3.0


def _compression(run: Run) -> Spent:
    chosen = run.recipe.compression
    assert chosen is not None
    folder = run.path("training", "compression")
    everything = token_folders(run)
    names = chosen.sources or list(everything)
    mixture = mixture_named(run, chosen.mixture).weights
    settings = replace(
        proxy_settings(run, checkpoints=0),
        train=train_settings(chosen, chosen.tokens, seed=0, evaluations=1),
        tokens={name: everything[name] for name in names},
        # Measured on the test sets: the directions are made from the probes.
        probes={name: run.path("test", f"{name}.parquet") for name in run.recipe.capabilities},
        target_tokens=None,
    )
    result = compress(
        read_result(run.path("training", "pretrain")).final,
        {name: run.path("probes", f"{name}.parquet") for name in run.recipe.capabilities},
        settings,
        folder,
        compression=CompressionSettings(
            rounds=chosen.rounds,
            influence=InfluenceSettings(preconditioner=chosen.preconditioner, context=chosen.context),
            documents_per_source=chosen.documents_per_source,
            probe_documents=chosen.probe_documents,
            least_positive=chosen.least_positive,
            gathered=chosen.gathered,
            max_epochs=chosen.max_epochs,
            mixture={name: mixture[name] for name in names},
            teacher=_teacher(run),
        ),
        seeds=chosen.seeds,
        workers=run.workers,
    )
    arm = "compressed-taught" if chosen.distill else "compressed"
    trained = result["arms"][arm][str(chosen.seeds[0])]["trained"]
    last = (
        folder / trained[-1]["checkpoint"] if trained else read_result(run.path("training", "pretrain")).final
    )
    save_huggingface(
        load_checkpoint_model(last), folder / "model", load_tokenizer(run.path("tokenizer", "model"))
    )
    rows = [
        row for seeds in result["arms"].values() for record in seeds.values() for row in record["trained"]
    ]
    return Spent(flops=math.fsum(row["flops"] for row in rows), tokens=sum(row["tokens"] for row in rows))


def _teacher(run: Run) -> Distillation | None:
    assert run.recipe.compression is not None
    distill = run.recipe.compression.distill
    if distill is None:
        return None
    settings = Distillation(**distill.model_dump(), tokenizer=str(run.path("tokenizer", "model")), seed=0)
    if settings.cache == "none":
        return settings
    # The kept documents differ from round to round, but what a teacher said about one is not asked again.
    return replace(settings, cache_folder=str(run.path("teacher_cache", "compression")))


def _estimate(recipe: Recipe) -> Spent:
    chosen = recipe.compression
    if chosen is None:
        return Spent()
    arms = len(chosen.seeds) * (2 if chosen.distill is None else 4)
    per_round = total_steps(chosen, chosen.tokens) * chosen.sequence_tokens * chosen.batch_sequences
    tokens = arms * chosen.rounds * per_round
    config = model_config(recipe)
    scored = 0.0
    if chosen.documents_per_source is not None:
        sources = len(chosen.sources or recipe.sources)
        scored = chosen.rounds * chosen.documents_per_source * sources * chosen.context * arms / 2
    forward = config.flops_per_token(chosen.context) / 3
    return Spent(
        flops=tokens * config.flops_per_token(chosen.sequence_tokens)
        + FORWARDS_PER_DOCUMENT * scored * forward,
        tokens=tokens,
    )


COMPRESSION = Stage(
    name="compression",
    folder="training/compression",
    needs=("pretrain", "mixtures", "recommendation", "probes", "test", "tokens", "tokenizer"),
    settings=lambda recipe: [recipe.compression.model_dump() if recipe.compression else None],
    outputs=("compression.json", "model/*.safetensors", "model/*.json"),
    work=_compression,
    about="mid-training on what helps",
    estimate=_estimate,
    parallel=True,
    fixed_seconds=5,
)
