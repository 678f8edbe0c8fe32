"""From the recipe's blocks to the trainer's records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from curation.memory import keep_freed_memory
from recipes.pipeline import Run
from recipes.schema import Recipe
from recipes.training_settings import OptimisationSettings
from training.loop import TrainSettings
from training.model import ModelConfig
from training.tokens import TokenSource


def model_config(recipe: Recipe) -> ModelConfig:
    """The decoder of the recipe: MobileLLM-R1's family at the recipe's size."""
    model = recipe.model
    return ModelConfig(
        vocab_size=recipe.tokenizer.vocabulary,
        dim=model.dim,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.dim // model.heads,
        ffn_dim=model.ffn_dim,
        rope_theta=model.rope_theta,
        max_positions=model.max_positions,
    )


def total_steps(settings: OptimisationSettings, tokens: int) -> int:
    """Optimizer steps that read `tokens` tokens, rounded up to whole batches."""
    per_step = settings.sequence_tokens * settings.batch_sequences
    return max(1, -(-tokens // per_step))


def evenly_spaced(count: int, steps: int) -> tuple[int, ...]:
    """`count` steps, evenly spaced, the last one included.

    >>> evenly_spaced(4, 10)
    (2, 5, 8, 10)
    """
    return tuple(sorted({max(1, round(steps * (index + 1) / count)) for index in range(count)}))


def train_settings(
    settings: OptimisationSettings,
    tokens: int,
    seed: int,
    *,
    checkpoints: int = 0,
    evaluations: int = 0,
) -> TrainSettings:
    """The trainer's settings for a run of `tokens` tokens with so many kept checkpoints and evaluations."""
    steps = total_steps(settings, tokens)
    return TrainSettings(
        sequence_tokens=settings.sequence_tokens,
        batch_sequences=settings.batch_sequences,
        steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup_share * steps),
        schedule=settings.schedule,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
        clip=settings.clip,
        precision=settings.precision,
        average_from=settings.average_from,
        resume_every=settings.resume_every,
        loggers=tuple(settings.loggers),
        seed=seed,
        checkpoint_steps=evenly_spaced(checkpoints, steps) if checkpoints else (),
        evaluate_steps=evenly_spaced(evaluations, steps) if evaluations else (),
    )


def token_folders(run: Run) -> dict[str, Path]:
    """Folders of the token shards by source, in the recipe's order."""
    return {source.name: run.path("tokens", source.name) for source in run.recipe.sources}


def available_tokens(run: Run) -> dict[str, int]:
    """Training tokens of each source."""
    return {name: TokenSource.open(folder).total_tokens for name, folder in token_folders(run).items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, so that the bits of a result do not depend on the machine's number of cores."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
