"""What `mixwright influence` is asked for, checked before anything is scored: steps and tokenizers of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.errors import DataError, RecipeError
from mixing.influence.adapters import adapt
from mixing.influence.adaptive_sample import Stopping
from mixing.influence.loading import learning_rate_at, load_reference, step_of
from mixing.influence.settings import CheckpointRule, InfluenceSettings


def check_request(
    checkpoints: Mapping[int | None, Path | str],
    sample_files: Sequence[Path | str],
    probes: Mapping[str, Path | str],
    stopping: Stopping | None,
    share: tuple[int, int],
) -> None:
    """RecipeError for what is missing from a request, and for shares of an adaptive sample."""
    for what, option, given in (
        ("probe", "--probe", probes),
        ("checkpoint", "--model", checkpoints),
        ("file of samples", "--samples", sample_files),
    ):
        if not given:
            raise RecipeError(f"There is no {what}", where=option, remedy="Give at least one")
    if stopping is not None and share != (0, 1):
        raise RecipeError(
            "An adaptive sample is not scored in shares: what to score next depends on all that was scored",
            where="--share",
            remedy="Use worker processes, or score everything",
        )


def by_step(checkpoints: Mapping[int | None, Path | str]) -> dict[int, Path | str]:
    """Checkpoints by step, rising; the step of a single one may be unknown."""
    found: dict[int, Path | str] = {}
    for given, folder in checkpoints.items():
        step = given if given is not None else step_of(folder)
        found[0 if step is None else step] = folder
    return dict(sorted(found.items()))


def checkpoint_rule(rule: CheckpointRule, folders: Mapping[int, Any]) -> CheckpointRule:
    """The rule, but a single checkpoint has all the weight, whatever its step."""
    return dict.fromkeys(folders, 1.0) if len(folders) == 1 else rule


def learning_rates(folders: Mapping[int, Path | str]) -> dict[int, float]:
    """Learning rates by step, of the checkpoints that tell theirs."""
    rates = {step: learning_rate_at(folder) for step, folder in folders.items()}
    return {step: rate for step, rate in rates.items() if rate is not None}


def check_vocabulary(folder: Path | str, tokenizer: Any, settings: InfluenceSettings) -> None:
    """DataError when the tokenizer has tokens that the model lacks."""
    vocabulary = _vocabulary_of(folder, settings)
    if len(tokenizer) > vocabulary:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: they do not match",
            where=str(folder),
            remedy="Use the tokenizer that the model was trained with",
        )


def _vocabulary_of(folder: Path | str, settings: InfluenceSettings) -> int:
    """Token ids that a checkpoint has; loads it, the only way that is right for every kind of model."""
    return adapt(load_reference(folder, device="cpu", dtype=settings.dtype)).vocabulary
