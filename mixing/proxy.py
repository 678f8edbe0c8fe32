"""What a proxy run is, and what all runs of a study share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from curation.atomic import hash_file, hash_folder, hash_value
from curation.errors import RecipeError
from mixing.mixture import check_weights
from mixing.repetition import part_of_source
from training.loop import TrainSettings
from training.model import ModelConfig
from training.settings import deciding_settings
from training.start import start_hash
from training.tokens import TokenSource

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

Keep = Literal["all", "weights", "none"]


@dataclass(frozen=True)
class ProxyRun:
    """One training run to be made.

    run_id       : name of its folder and key of its rows
    weights      : shares of tokens by source, sum 1
    seed         : of the data order, and of the initial weights unless `init_seed` says otherwise
    budget_share : part of the settings' steps that it trains (leave-one-out without replacement trains less)
    keep         : checkpoints that this run keeps, if not those of the settings
    """

    run_id: str
    weights: dict[str, float]
    seed: int
    init_seed: int | None = None
    budget_share: float = 1.0
    keep: Keep | None = None


@dataclass(frozen=True)
class ProxySettings:
    """What all runs of a study share.

    model, train : shape and training settings; their seed is replaced by each run's
    tokens       : folder of every source (`training.tokens`)
    probes       : parquet file of every probe (`probes.capability`)
    tokenizer    : folder of the tokenizer that made the tokens
    block        : sequences after which every source's share is exact (`training.order`)
    context, stride : of the evaluation; by default the training length, and half of it
    keep         : which checkpoints a finished run keeps: "all", "weights" (without optimizer states), "none"
    init_from    : a checkpoint or Hugging Face folder that every run starts from, instead of weights drawn by
                   its seed: a trunk that the runs branch off
    target_tokens: budget that the mixtures are for; every source is then cut to the share of it that a run trains,
                   so that a mixture repeats its sources as often here as there (`mixing.repetition`)
    """

    model: ModelConfig
    train: TrainSettings
    tokens: dict[str, Path]
    probes: dict[str, Path]
    tokenizer: Path
    block: int = 128
    context: int | None = None
    stride: int | None = None
    batch_tokens: int = 8192
    keep: Keep = "weights"
    init_from: Path | None = None
    target_tokens: int | None = None

    @property
    def run_tokens(self) -> int:
        """Tokens that a whole run trains."""
        return self.train.steps * self.train.tokens_per_step

    @property
    def source_share(self) -> float:
        """Share of every source that the runs may read; 1 without `target_tokens`."""
        return 1.0 if self.target_tokens is None else self.run_tokens / self.target_tokens

    @property
    def evaluation_context(self) -> int:
        return self.context or self.train.sequence_tokens

    @property
    def evaluation_stride(self) -> int:
        return self.stride or max(1, self.evaluation_context // 2)

    def inputs(self) -> dict[str, Any]:
        """Hashes of all that the runs read."""
        found: dict[str, Any] = {
            "tokens": {name: TokenSource.open(folder).hash for name, folder in sorted(self.tokens.items())},
            "probes": {name: hash_file(file) for name, file in sorted(self.probes.items())},
            "tokenizer": hash_folder(self.tokenizer),
        }
        if self.init_from is not None:
            found["start"] = start_hash(self.init_from)
        return found


def run_settings(run: ProxyRun, settings: ProxySettings) -> TrainSettings:
    """The training settings of one run: its seed, its length, and an evaluation at the end."""
    given = settings.train
    steps = max(1, round(given.steps * run.budget_share))

    def scaled(points: Sequence[int]) -> tuple[int, ...]:
        inside = [point for point in points if point <= given.steps]
        return tuple(sorted({min(steps, max(round(p * run.budget_share), min(p, 1))) for p in inside}))

    wanted = {*given.evaluate_steps, given.steps}
    evaluate = scaled(tuple(wanted))
    if len(evaluate) != len({point for point in wanted if point <= given.steps}):
        raise RecipeError(
            f"Run {run.run_id!r} has {steps} steps, too few to be evaluated {len(wanted)} times",
            where=run.run_id,
            remedy="Train longer or evaluate less often",
        )
    return replace(
        given,
        steps=steps,
        seed=run.seed if run.init_seed is None else run.init_seed,
        warmup_steps=min(given.warmup_steps, max(steps - 1, 0)),
        checkpoint_steps=scaled(given.checkpoint_steps),
        evaluate_steps=evaluate,
    )


def check_run(run: ProxyRun, settings: ProxySettings) -> None:
    """Raise RecipeError for a run that cannot be made, before any time is spent on it."""
    if not _RUN_ID.fullmatch(run.run_id):
        raise RecipeError(
            f"{run.run_id!r} cannot be the name of a run's folder",
            where="run_id",
            remedy="Use letters, digits, '.', '_' and '-'",
        )
    check_weights(run.weights, where=f"run {run.run_id!r}")
    if not 0 < run.budget_share <= 1:
        raise RecipeError(
            f"Run {run.run_id!r} cannot train {run.budget_share:g} of the budget", where=run.run_id
        )
    if settings.source_share > 1:
        raise RecipeError(
            f"The runs train {settings.run_tokens:,} tokens, more than the {settings.target_tokens:,} that they "
            "stand for",
            where="target_tokens",
            remedy="Give the tokens of the run that the mixtures are for",
        )
    for source in sorted(run.weights):
        if source not in settings.tokens:
            raise RecipeError(
                f"Run {run.run_id!r} names source {source!r}, which has no tokens",
                where=run.run_id,
                remedy=f"Sources with tokens: {', '.join(sorted(settings.tokens))}",
            )
    if not settings.probes:
        raise RecipeError(
            "There are no probes to evaluate the runs on", where="probes", remedy="Build probes first"
        )
    run_settings(run, settings)


def open_sources(run: ProxyRun, settings: ProxySettings) -> dict[str, TokenSource]:
    """The sources that a run reads, by name, cut to the settings' share of them."""
    opened = {name: TokenSource.open(settings.tokens[name]) for name in sorted(run.weights)}
    return {name: part_of_source(source, settings.source_share) for name, source in opened.items()}


def fingerprint_of(run: ProxyRun, settings: ProxySettings, inputs: Mapping[str, Any]) -> str:
    """Hash of all that decides the numbers of a run; `inputs` from `ProxySettings.inputs`."""
    tokens = {name: inputs["tokens"].get(name) for name in sorted(run.weights)}
    return hash_value(
        {
            "weights": run.weights,
            "seeds": [run.seed, run.init_seed],
            "share": run.budget_share,
            "model": asdict(settings.model),
            "train": deciding_settings(settings.train),
            "block": settings.block,
            "evaluation": [settings.evaluation_context, settings.evaluation_stride],
            **(
                {} if settings.target_tokens is None else {"share": [run.budget_share, settings.source_share]}
            ),
            "inputs": {**inputs, "tokens": tokens},
        }
    )
