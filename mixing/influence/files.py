"""Influence from files (`mixwright influence`): Hugging Face folders, samples, a file for each probe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value
from mixing.influence.adaptive import adaptive_influence
from mixing.influence.adaptive_sample import SampledWeights, Stopping
from mixing.influence.benefit_tables import read_record, write_benefits
from mixing.influence.bootstrap import resampled_table, resampled_weights
from mixing.influence.checkpoint_work import CheckpointJob, make_work
from mixing.influence.directions import Preconditioner, load_adam_moments
from mixing.influence.documents import SampleDocument
from mixing.influence.file_documents import read_probe, stream_samples
from mixing.influence.file_record import checkpoint_records, whole_record
from mixing.influence.file_request import (
    by_step,
    check_request,
    check_vocabulary,
    checkpoint_rule,
    learning_rates,
)
from mixing.influence.joint import benefit_matrix, column_factors
from mixing.influence.loading import load_tokenizer_of
from mixing.influence.samples import SampleStore, write_store
from mixing.influence.score import BENEFIT_SCHEMA
from mixing.influence.settings import DEFAULT_SETTINGS, AssemblySettings, InfluenceSettings
from mixing.influence.weights import SourceWeight
from mixing.influence.workers import Backend, influence_at_checkpoints


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
    check_request(checkpoints, sample_files, probes, stopping, share)
    folders = by_step(checkpoints)
    for folder in folders.values() if settings.preconditioner == "adam" else ():
        load_adam_moments(folder)
    assembly = assembly or AssemblySettings()
    assembly = replace(
        assembly,
        checkpoint_weights=checkpoint_rule(assembly.checkpoint_weights, folders),
        normalise="cosine" if settings.cosine else assembly.normalise,
    )
    rates = learning_rates(folders) if assembly.checkpoint_weights == "learning_rate" else None
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
            records, sampled = checkpoint_records(files, len(probes)), None
            full = sum(r["forward_tokens"] for r in records)
        record = whole_record(inputs, records, sampled, full, notes, store)
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
        check_vocabulary(folder, tokenizer, settings)
    documents = {name: read_probe(file, tokenizer, notes, name) for name, file in probes.items()}
    samples = stream_samples(sample_files, tokenizer, documents, notes)
    store = write_store(work / f"samples-{rank}", samples, notes=notes, rename=True)
    return store, documents, notes


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
