"""One arm of a compression study: rounds of training from one checkpoint, on what is kept or on everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from curation.atomic import read_json, write_json
from curation.documents import read_documents
from curation.errors import RecipeError
from curation.workers import Advance
from mixing.chosen_documents import choose_documents
from mixing.compression.rounds import Round, Stop, keep_positive, reason_to_stop, summarise_round
from mixing.compression.settings import CompressionSettings
from mixing.evaluations import ProbeSet
from mixing.influence import (
    CheckpointJob,
    choose_samples,
    influence_at_checkpoint,
    joint_benefit,
    read_benefits,
)
from mixing.mixture import normalised
from mixing.projection import project
from mixing.proxy import ProxySettings
from probes.likelihood import tokenize_documents
from training.loop import train
from training.model import Decoder
from training.order import DataOrder, MixtureSchedule, Phase
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

EVERY_DOCUMENT = 1 << 62


@dataclass(frozen=True)
class Arm:
    """folder, checkpoint to start from, seed, whether a teacher teaches, and what all arms share."""

    folder: Path
    start: Path
    seed: int
    taught: bool
    settings: ProxySettings
    compression: CompressionSettings
    probes: dict[str, Path]


def compressed_arm(arm: Arm, advance: Advance) -> None:
    """Score, keep, mix and train until a reason to stop; writes arm.json last."""
    raw = _raw_sources(arm)
    rounds: list[Round] = []
    trained: list[dict[str, Any]] = []
    start, stop = arm.start, None
    for number in range(1, arm.compression.rounds + 1):
        here = arm.folder / f"round-{number}"
        joint, by_capability = _score(arm, raw, start, number, here)
        rounds.append(summarise_round(number, joint, by_capability, rounds[0] if rounds else None))
        stop = reason_to_stop(
            rounds, least_positive=arm.compression.least_positive, gathered=arm.compression.gathered
        )
        if stop is None:
            sources = _kept_sources(raw, keep_positive(joint))
            weights, stop = _affordable(arm, rounds[-1], sources)
        if stop is not None:
            break
        trained.append(
            {"round": number, "weights": weights} | _train(arm, sources, weights, number, start, here)
        )
        start = Path(trained[-1]["checkpoint"])
    if stop is None:
        stop = Stop("rounds", f"All {arm.compression.rounds} rounds were made")
    _finish(
        arm,
        trained,
        rounds=[found.record() for found in rounds],
        stop={"reason": stop.reason, "text": stop.text},
    )


def original_arm(task: tuple[Arm, Path], advance: Advance) -> None:
    """Train on the whole raw set for as many rounds as the compressed arm did."""
    arm, beside = task
    raw = _raw_sources(arm)
    mixture = arm.compression.mixture or dict.fromkeys(raw, 1.0)
    weights = normalised({name: mixture.get(name, 0.0) for name in raw})
    trained: list[dict[str, Any]] = []
    start = arm.start
    for number in range(1, len(read_json(beside / "arm.json")["trained"]) + 1):
        here = arm.folder / f"round-{number}"
        trained.append({"round": number, "weights": weights} | _train(arm, raw, weights, number, start, here))
        start = Path(trained[-1]["checkpoint"])
    _finish(arm, trained)


def _finish(arm: Arm, trained: list[dict[str, Any]], **more: Any) -> None:
    last = trained[-1]["evaluation"] if trained else None
    study = arm.folder.parent.parent
    record = {
        "seed": arm.seed,
        "taught": arm.taught,
        "trained": [
            row | {key: str(Path(row[key]).relative_to(study)) for key in ("checkpoint", "evaluation")}
            for row in trained
        ],
        "last_evaluation": None if last is None else str(Path(last).relative_to(study)),
    }
    write_json(arm.folder / "arm.json", record | more)


def _raw_sources(arm: Arm) -> dict[str, TokenSource]:
    """The raw set: all documents, or as many of each source as the settings say."""
    opened = {name: TokenSource.open(folder) for name, folder in sorted(arm.settings.tokens.items())}
    limit = arm.compression.documents_per_source
    if limit is None:
        return opened
    chosen = {}
    for name, source in opened.items():
        wanted = {document.id for document in choose_samples([source], limit, seed=0)}
        chosen[name] = choose_documents(source, _indices(source, wanted))
    return chosen


def _score(
    arm: Arm, raw: dict[str, TokenSource], start: Path, number: int, here: Path
) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Joint benefit of every raw document at the current model, and the benefits by capability."""
    tokenizer = load_tokenizer(arm.settings.tokenizer)
    limit = arm.compression.probe_documents
    probes = {
        name: tokenize_documents(sorted(read_documents(file), key=lambda d: d.id)[:limit], tokenizer)
        for name, file in sorted(arm.probes.items())
    }
    job = CheckpointJob(start, "current", number, tuple(sorted(probes)))
    samples = choose_samples(raw.values(), EVERY_DOCUMENT, seed=0)
    files = influence_at_checkpoint(job, probes, samples, here / "benefits", arm.compression.influence)
    table, _ = read_benefits(files)
    by_capability = {name: joint_benefit(table, capabilities=[name]) for name in sorted(probes)}
    return joint_benefit(table), by_capability


def _kept_sources(raw: dict[str, TokenSource], kept: pa.Table) -> dict[str, TokenSource]:
    sources = {}
    for name, source in raw.items():
        wanted = set(kept.filter(pc.equal(kept["source"], name))["document"].to_pylist())
        if wanted:
            sources[name] = choose_documents(source, _indices(source, wanted))
    return sources


def _indices(source: TokenSource, wanted: set[str]) -> np.ndarray:
    return np.array([at for at, name in enumerate(source.ids) if name in wanted], dtype=np.int64)


def _affordable(
    arm: Arm, found: Round, sources: dict[str, TokenSource]
) -> tuple[dict[str, float], Stop | None]:
    """The round's weights within the limit on repetition, or the reason why there are none."""
    available = {name: source.total_tokens for name, source in sources.items()}
    try:
        weights = project(
            found.weights,
            available_tokens=available,
            budget_tokens=arm.settings.run_tokens,
            max_epochs=arm.compression.max_epochs,
        )
    except RecipeError:
        kept = sum(available.values())
        return {}, Stop(
            "too few tokens",
            f"Round {found.number}: {kept:,} tokens are kept, which read {arm.compression.max_epochs:g} times "
            f"are fewer than the {arm.settings.run_tokens:,} of a round",
        )
    return weights, None


def _train(
    arm: Arm, sources: dict[str, TokenSource], weights: dict[str, float], number: int, start: Path, here: Path
) -> dict[str, Any]:
    """Eq. 8; the arms of a seed share the data order's random numbers, round by round."""
    present = {name: weight for name, weight in weights.items() if weight > 0}
    settings, phase = arm.settings.train, f"round-{number}"
    sequences = settings.steps * settings.batch_sequences
    schedule = MixtureSchedule(
        (Phase(phase, sequences, present),), seed=arm.seed * 1000 + number, block=arm.settings.block
    )
    order = DataOrder(schedule, {n: sources[n] for n in present}, settings.sequence_tokens)
    if arm.taught and arm.compression.teacher is not None:
        settings = replace(settings, distillation={phase: arm.compression.teacher})
    settings = replace(
        settings, seed=arm.seed, evaluate_steps=tuple(sorted({*settings.evaluate_steps, settings.steps}))
    )
    measured = ProbeSet.load(arm.settings)

    def evaluate(model: Decoder, step: int) -> dict[str, float]:
        return measured.evaluate(model, here / "evaluations" / f"step-{step}.parquet")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(
            arm.settings.model, order, settings, here / "train", evaluate=evaluate, init_from=start
        )
    finally:
        torch.set_num_threads(threads)
    return {
        "tokens": result.tokens,
        "flops": result.flops,
        "epochs": {name: order.epochs(name) for name in present},
        "checkpoint": str(result.final),
        "evaluation": str(here / "evaluations" / f"step-{settings.steps}.parquet"),
        "trajectory": _trajectory(here),
    }


def _trajectory(here: Path) -> list[dict[str, Any]]:
    """Bits per byte of what is measured, by step of the round."""
    from training.run_log import read_rows

    return read_rows(here / "train" / "evaluations.jsonl")
