"""Influence from files (`mixwright influence`): Hugging Face folders, samples, a file for each probe."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value
from curation.errors import DataError, RecipeError
from mixing.influence.adapters import adapt
from mixing.influence.adaptive import adaptive_influence
from mixing.influence.adaptive_sample import SampledWeights, Stopping
from mixing.influence.bootstrap import resampled_table, resampled_weights
from mixing.influence.checkpoints import CheckpointJob, make_work, read_record, write_benefits
from mixing.influence.directions import Preconditioner, load_adam_moments
from mixing.influence.documents import SampleDocument
from mixing.influence.file_documents import read_probe, stream_samples
from mixing.influence.joint import benefit_matrix, column_factors
from mixing.influence.loading import learning_rate_at, load_reference, load_tokenizer_of, step_of
from mixing.influence.samples import SampleStore, write_store
from mixing.influence.score import BENEFIT_SCHEMA
from mixing.influence.settings import DEFAULT_SETTINGS, AssemblySettings, CheckpointRule, InfluenceSettings
from mixing.influence.weights import SourceWeight
from mixing.influence.workers import Backend, influence_at_checkpoints

WORSE_THAN_GUESSING = 1.0  # nats above a uniform guess, from which the tokenizer is suspected


@dataclass(frozen=True)
class FileInfluence:
    """What `influence_of_files` found.

    table          : the rows of `BENEFIT_SCHEMA`: of every document, or of those that were sampled
    weights        : Eq. 6, with intervals
    by_capability  : densities of every source for every capability, with intervals
    records        : how each checkpoint was scored
    forward_tokens : tokens times forward passes that it took; `full_tokens` what scoring everything would take
    passes         : forward passes per token of all samples, all checkpoints together, everything included
    level          : of the intervals of the weights
    record         : what stands in the table's metadata
    sampled        : the adaptive sample, where one was asked for
    notes          : what the reader should know
    """

    table: pa.Table
    weights: list[SourceWeight]
    by_capability: list[dict[str, Any]]
    records: list[dict[str, Any]]
    forward_tokens: float
    full_tokens: float
    passes: float
    level: float
    record: dict[str, Any]
    sampled: SampledWeights | None = None
    notes: list[str] = field(default_factory=list)


def score_files(
    model_dir: Path | str,
    samples_file: Path | str,
    probes: Mapping[str, Path | str],
    preconditioner: Preconditioner = "identity",
    out: Path | str | None = None,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    tokenizer_dir: Path | str | None = None,
) -> pa.Table:
    """Benefit of every document of `samples_file` for every probe: the rows of `BENEFIT_SCHEMA`, written to
    `out`.

    model_dir      : a Hugging Face folder of a causal model with its tokenizer, a name on the hub, or a
                     checkpoint folder of our trainer (then `tokenizer_dir` is needed)
    samples_file   : documents `{"id"?, "text", "source"?}` in a .jsonl, .jsonl.gz, .jsonl.zst, .parquet or
                     .txt file
    probes         : capability -> such a file
    preconditioner : "adam" needs optimizer.safetensors and state.json in `model_dir`
    Samples are `[bos] + tokens + [eos]` where the tokenizer has them, probes `[bos] + tokens`. Raises DataError
    for files without documents and for a tokenizer that does not fit the model, RecipeError for "adam" without an
    optimizer state. `influence_of_files` has more options and gives the weights too.
    """
    settings = replace(settings, preconditioner=preconditioner)
    found = influence_of_files(
        {None: model_dir}, [samples_file], probes, out, settings, tokenizer_dir=tokenizer_dir
    )
    assert found is not None
    return found.table


def influence_of_files(
    checkpoints: Mapping[int | None, Path | str],
    sample_files: Sequence[Path | str],
    probes: Mapping[str, Path | str],
    out: Path | str | None = None,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    assembly: AssemblySettings | None = None,
    *,
    stopping: Stopping | None = None,
    tokenizer_dir: Path | str | None = None,
    workers: int = 0,
    backend: Backend = "processes",
    share: tuple[int, int] = (0, 1),
) -> FileInfluence | None:
    """Benefits and source weights from files; None from a share that does not finish the work.

    checkpoints : step -> folder or name of a checkpoint; None as the only step takes it from the folder, else 0
    stopping    : samples adaptively until the weights are known so well, in place of scoring everything
    share       : see `influence_at_checkpoints`; does not go with `stopping`
    The table goes to `out`, how it was made into its metadata and the JSON beside it. Work in progress is kept in
    a hidden folder beside `out`, from which the same call goes on after a kill.
    """
    _check_request(checkpoints, sample_files, probes, stopping, share)
    folders = _stepped(checkpoints)
    for folder in folders.values() if settings.preconditioner == "adam" else ():
        load_adam_moments(folder)
    assembly = assembly or AssemblySettings()
    assembly = replace(
        assembly,
        checkpoint_weights=_rule(assembly.checkpoint_weights, folders),
        normalise="cosine" if settings.cosine else assembly.normalise,
    )
    rates = _learning_rates(folders) if assembly.checkpoint_weights == "learning_rate" else None
    with ExitStack() as held:
        target = Path(out) if out is not None else None
        # What a kill leaves is found again beside the output; without an output there is nothing to go on from.
        work = (
            target.with_name(f".{target.name}.work")
            if target is not None
            else Path(held.enter_context(tempfile.TemporaryDirectory(prefix="influence-")))
        )
        store, documents, notes = _read(
            folders, sample_files, probes, tokenizer_dir, settings, work, share[0]
        )
        name = Path(next(iter(folders.values()))).name if len(folders) == 1 else "checkpoints"
        jobs = [CheckpointJob(f, name, step, tuple(probes)) for step, f in folders.items()]
        inputs = _inputs(jobs, documents, store, work, settings, assembly, stopping)
        if target is not None and _made_before(target, inputs):
            shutil.rmtree(work, ignore_errors=True)
            return _report(pq.read_table(target).cast(BENEFIT_SCHEMA), read_record(target), assembly, rates)
        common: dict[str, Any] = {"workers": workers, "backend": backend}
        if stopping is not None:
            found = adaptive_influence(
                jobs, documents, store, work, settings, assembly, stopping, learning_rates=rates, **common
            )
            table, records, sampled = found.table, found.records, found.sampled.record()
            full = found.full_tokens
        else:
            files = influence_at_checkpoints(jobs, documents, store, work, settings, share=share, **common)
            if not files:
                return None
            table = pa.concat_tables([pq.read_table(file).cast(BENEFIT_SCHEMA) for file in files])
            records, sampled = _records(files, len(probes)), None
            full = sum(r["forward_tokens"] for r in records)
        record = _record(inputs, records, sampled, full, notes, store)
        if target is not None:
            write_benefits(target, [table], record)
            shutil.rmtree(work, ignore_errors=True)
    return _report(table, record, assembly, rates)


def _read(
    folders: Mapping[int, Path | str],
    sample_files: Sequence[Path | str],
    probes: Mapping[str, Path | str],
    tokenizer_dir: Path | str | None,
    settings: InfluenceSettings,
    work: Path,
    rank: int,
) -> tuple[SampleStore, dict[str, list[SampleDocument]], list[str]]:
    """The samples on the disk, the probes, and notes."""
    notes: list[str] = []
    tokenizer = load_tokenizer_of(next(iter(folders.values())), tokenizer_dir)
    for folder in folders.values():
        _check_vocabulary(folder, tokenizer, settings)
    documents = {name: read_probe(file, tokenizer, notes, name) for name, file in probes.items()}
    samples = stream_samples(sample_files, tokenizer, documents, notes)
    store = write_store(work / f"samples-{rank}", samples, notes=notes, rename=True)
    return store, documents, notes


def _check_request(
    checkpoints: Mapping[int | None, Path | str],
    sample_files: Sequence[Path | str],
    probes: Mapping[str, Path | str],
    stopping: Stopping | None,
    share: tuple[int, int],
) -> None:
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


def _stepped(checkpoints: Mapping[int | None, Path | str]) -> dict[int, Path | str]:
    """Checkpoints by step, rising; the step of a single one may be unknown."""
    found: dict[int, Path | str] = {}
    for given, folder in checkpoints.items():
        step = given if given is not None else step_of(folder)
        found[0 if step is None else step] = folder
    return dict(sorted(found.items()))


def _rule(rule: CheckpointRule, folders: Mapping[int, Any]) -> CheckpointRule:
    """The rule, but a single checkpoint has all the weight, whatever its step."""
    return dict.fromkeys(folders, 1.0) if len(folders) == 1 else rule


def _learning_rates(folders: Mapping[int, Path | str]) -> dict[int, float]:
    rates = {step: learning_rate_at(folder) for step, folder in folders.items()}
    return {step: rate for step, rate in rates.items() if rate is not None}


def _check_vocabulary(folder: Path | str, tokenizer: Any, settings: InfluenceSettings) -> None:
    """DataError when the tokenizer has tokens that the model lacks."""
    vocabulary = vocabulary_of(folder, settings)
    if len(tokenizer) > vocabulary:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: they do not match",
            where=str(folder),
            remedy="Use the tokenizer that the model was trained with",
        )


def vocabulary_of(folder: Path | str, settings: InfluenceSettings) -> int:
    """Token ids that a checkpoint has; loads it, the only way that is right for every kind of model."""
    return adapt(load_reference(folder, device="cpu", dtype=settings.dtype)).vocabulary


def _inputs(
    jobs: Sequence[CheckpointJob],
    probes: Mapping[str, Sequence[SampleDocument]],
    store: SampleStore,
    work: Path,
    settings: InfluenceSettings,
    assembly: AssemblySettings,
    stopping: Stopping | None,
) -> str:
    works = [make_work(job, probes, store, work, settings).fingerprint for job in jobs]
    return hash_value([works, None if stopping is None else [asdict(stopping), asdict(assembly)]])


def _made_before(target: Path, inputs: str) -> bool:
    beside = target.with_suffix(".json")
    return target.is_file() and beside.is_file() and read_record(target).get("inputs") == inputs


def _records(files: Sequence[Path], capabilities: int) -> list[dict[str, Any]]:
    """One record for each checkpoint, from the tables of its capabilities."""
    found = []
    for at in range(0, len(files), capabilities):
        its = [read_record(file) for file in files[at : at + capabilities]]
        record = {k: v for k, v in its[0].items() if k not in ("direction", "capability")}
        found.append(record | {"directions": {r["capability"]: r["direction"] for r in its}})
    return found


def _record(
    inputs: str,
    records: Sequence[Mapping[str, Any]],
    sampled: Mapping[str, Any] | None,
    full_tokens: float,
    notes: Sequence[str],
    store: SampleStore,
) -> dict[str, Any]:
    """The record of the whole table: the first checkpoint's in full, what differs for all of them."""
    first = records[0]
    every = dict.fromkeys([*(n for r in records for n in r["notes"]), *notes, *_suspicions(records)])
    return {
        **first,
        "inputs": inputs,
        "pilot": worst_pilot(records),
        "checkpoints": [
            {k: r[k] for k in ("checkpoint", "step", "engine", "pilot", "directions", "forward_tokens")}
            for r in records
        ],
        "forward_tokens": sum(r["forward_tokens"] for r in records),
        "flops": sum(r["flops"] for r in records),
        "full_forward_tokens": full_tokens,
        "sample_tokens": int(np.minimum(store.lengths, first["context"] + 1).sum() - len(store))
        if first["windows"] == "first"
        else int(store.lengths.sum() - len(store)),
        "sampled": sampled,
        "notes": list(every),
    }


def worst_pilot(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The pilot with the least agreement within sources; None where gradients were made."""
    pilots = [r["pilot"] for r in records if r["pilot"]]
    return min(pilots, key=lambda p: (p["within_source"], p["signs_clear"])) if pilots else None


def _suspicions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note for a model that is worse on a probe than a guess: its tokenizer is probably another."""
    notes = []
    for record in records:
        for name, direction in record["directions"].items():
            guess = math.log(record["vocabulary"])
            if direction["probe_loss"] > guess + WORSE_THAN_GUESSING:
                notes.append(
                    f"On the probe {name} the model at step {record['step']} loses "
                    f"{direction['probe_loss']:.1f} nats, more than a guess ({guess:.1f}): is it its tokenizer?"
                )
    return notes


def _report(
    table: pa.Table,
    record: Mapping[str, Any],
    assembly: AssemblySettings,
    rates: Mapping[int, float] | None,
) -> FileInfluence:
    matrix = benefit_matrix(table, normalise=assembly.normalise)
    losses = {
        (c, r["step"]): d["probe_loss"] for r in record["checkpoints"] for c, d in r["directions"].items()
    }
    options = (assembly.checkpoint_weights, rates, losses)
    capabilities = list(dict.fromkeys(c for c, _ in matrix.columns))
    own = {c: column_factors([k for k in matrix.columns if k[0] == c], *options) for c in capabilities}
    sampled = SampledWeights.from_record(record["sampled"]) if record["sampled"] else None
    return FileInfluence(
        table,
        sampled.weights
        if sampled
        else resampled_weights(matrix, column_factors(matrix.columns, *options), assembly),
        resampled_table(matrix, own, assembly),
        list(record["checkpoints"]),
        record["forward_tokens"],
        record["full_forward_tokens"],
        record["forward_tokens"] / max(record["sample_tokens"], 1),
        assembly.level,
        dict(record),
        sampled,
        list(record["notes"]),
    )
