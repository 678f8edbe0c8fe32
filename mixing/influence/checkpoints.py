"""Influence at many checkpoints: one resumable file for each reference model, capability and step.

`influence/<reference>-<capability>-step-<N>.parquet` holds `document, source, capability, reference,
checkpoint, tokens, benefit`; the `.json` beside it, written last, holds how it was made. A file whose
inputs and settings have not changed is not made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from curation.atomic import hash_file, hash_value, read_json, replacing, write_json
from curation.errors import DataError, RecipeError
from mixing.influence.directions import Direction, Preconditioner, load_adam_moments, probe_directions
from mixing.influence.documents import (
    Reduction,
    SampleDocument,
    Tokenized,
    Windows,
    spread_over_sources,
)
from mixing.influence.score import BENEFIT_SCHEMA, Engine, Scores, score


@dataclass(frozen=True)
class InfluenceSettings:
    """How benefits are computed; every field is stored with the result.

    preconditioner      : identity, adam, datainf or ekfac
    parameters          : "all" or "embedding_and_output"
    curvature_documents : samples, spread over the sources, that datainf and ekfac measure the curvature on
    The others are those of `score`.
    """

    preconditioner: Preconditioner = "identity"
    parameters: str = "all"
    engine: Engine = "auto"
    reduction: Reduction = "mean"
    context: int = 1024
    windows: Windows = "first"
    batch_tokens: int = 4096
    pilot_documents: int = 32
    curvature_documents: int = 64
    damping: float = 0.1


DEFAULT_SETTINGS = InfluenceSettings()


@dataclass(frozen=True)
class CheckpointJob:
    """One checkpoint and the capabilities whose probes it is asked about.

    checkpoint : a folder `step-N` of the trainer (model.safetensors, optimizer.safetensors, state.json)
    reference  : the name of the reference model: "domain" for the domain models of the paper, which give each
                 checkpoint one capability; "uniform" for a proxy on the uniform mixture, which gives all of
                 them
    """

    checkpoint: Path
    reference: str
    step: int
    capabilities: tuple[str, ...]

    def file(self, out: Path, capability: str) -> Path:
        """Where the benefits for `capability` go."""
        return out / f"{self.reference}-{capability}-step-{self.step}.parquet"


class TokenizedSource(Protocol):
    """What `training.tokens.TokenSource` offers."""

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> Any: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def ids(self) -> Sequence[str]: ...


def choose_samples(
    sources: Iterable[TokenizedSource], per_source: int, seed: int, exclude: Iterable[str] = ()
) -> list[SampleDocument]:
    """At most `per_source` documents of each source, drawn without replacement, in the order of the source.

    The draw of a source depends on the seed and its name alone. `exclude` gives ids that may not be drawn,
    such as those of the probes.
    """
    left_out = set(exclude)
    chosen = []
    for source in sources:
        rng = np.random.default_rng([seed, int(hash_value(source.name)[:16], 16)])
        allowed = np.array([i for i, name in enumerate(source.ids) if name not in left_out], dtype=np.int64)
        picks = np.sort(rng.permutation(allowed)[:per_source])
        for index in picks.tolist():
            start, stop = int(source.offsets[index]), int(source.offsets[index + 1])
            ids = np.asarray(source.tokens[start:stop], dtype=np.int64)
            chosen.append(SampleDocument(source.ids[index], source.name, ids))
    return chosen


def influence_at_checkpoint(
    job: CheckpointJob,
    probes: Mapping[str, Sequence[Tokenized]],
    samples: Sequence[Tokenized],
    out: Path,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
) -> list[Path]:
    """Score `samples` for every capability of `job`; returns the parquet files, one per capability.

    Uses one torch thread of the process it runs in, so that the numbers do not depend on the machine's cores.
    Raises DataError when a probe document is also a sample.
    """
    out = Path(out)
    files = [job.file(out, capability) for capability in job.capabilities]
    wanted = {c: probes[c] for c in job.capabilities if c in probes}
    if len(wanted) < len(job.capabilities):
        missing = sorted(set(job.capabilities) - set(wanted))[0]
        raise RecipeError(
            f"There is no probe set for the capability {missing!r}",
            where="influence",
            remedy=f"Give one, or choose among {', '.join(sorted(probes)) or 'none'}",
        )
    check_held_out(wanted, samples)
    fingerprint = _fingerprint(job, wanted, samples, settings)
    if all(_finished(file, fingerprint) for file in files):
        return files
    from training.checkpoint import load_checkpoint_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The weights of that very step, which the optimizer's moments belong to, not the mean of the last.
        model = load_checkpoint_model(job.checkpoint, averaged=False)
        directions = probe_directions(
            model,
            wanted,
            settings.preconditioner,
            parameters=settings.parameters,  # type: ignore[arg-type]
            moments=load_adam_moments(job.checkpoint) if settings.preconditioner == "adam" else None,
            curvature=[samples[i] for i in spread_over_sources(samples, settings.curvature_documents)],
            damping=settings.damping,
            context=settings.context,
            batch_tokens=settings.batch_tokens,
        )
        scores = score_with(model, samples, directions, settings)
    finally:
        torch.set_num_threads(threads)
    for capability, file in zip(job.capabilities, files, strict=True):
        write_benefits(
            file,
            scores.table(capability, reference=job.reference, checkpoint=job.step),
            _record(scores, directions[capability], job, settings, fingerprint),
        )
    return files


def read_benefits(files: Iterable[Path]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows of several files as one table, and the pilot agreement of each."""
    tables, pilots = [], []
    for file in files:
        tables.append(pq.read_table(file).cast(BENEFIT_SCHEMA))
        record = read_json(Path(file).with_suffix(".json"))
        pilots.append({"file": Path(file).name, **(record["pilot"] or {})})
    if not tables:
        raise DataError(
            "There are no influence files", where="influence", remedy="Score some checkpoints first"
        )
    return pa.concat_tables(tables), pilots


def check_held_out(probes: Mapping[str, Sequence[Tokenized]], samples: Sequence[Tokenized]) -> None:
    """DataError that names a document which is both probe and sample: it would praise itself."""
    sampled = {s.id for s in samples}
    for capability, documents in probes.items():
        both = sorted({d.id for d in documents} & sampled)
        if both:
            raise DataError(
                f"{len(both)} documents are both probes and samples, among them {both[0]!r}",
                where=f"probe {capability}",
                remedy="Leave the probe documents out of the samples",
            )


def score_with(
    model: torch.nn.Module,
    samples: Sequence[Tokenized],
    directions: Mapping[str, Direction],
    settings: InfluenceSettings,
    label: str | None = None,
) -> Scores:
    """`score` with the settings' options."""
    return score(
        model,
        samples,
        directions,
        engine=settings.engine,
        reduction=settings.reduction,
        context=settings.context,
        windows=settings.windows,
        batch_tokens=settings.batch_tokens,
        pilot_documents=settings.pilot_documents,
        label=label,
    )


def write_benefits(file: Path, table: pa.Table, record: Mapping[str, Any]) -> None:
    """The parquet file and then, as the sign that it is whole, the JSON beside it."""
    with replacing(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_json(file.with_suffix(".json"), {**record, "table": hash_file(file)})


def _record(
    scores: Scores,
    direction: Direction,
    job: CheckpointJob,
    settings: InfluenceSettings,
    fingerprint: str,
) -> dict[str, Any]:
    record = dict(scores.record)
    record["direction"] = direction.record()
    record.pop("directions")
    cost = record["forward_tokens"] + direction.forward_tokens * len(scores.probes)
    return {
        **record,
        "forward_tokens": cost,
        "capability": direction.probe,
        "capabilities_scored_together": list(job.capabilities),
        "reference": job.reference,
        "step": job.step,
        "settings": asdict(settings),
        "inputs": fingerprint,
    }


def _fingerprint(
    job: CheckpointJob,
    probes: Mapping[str, Sequence[Tokenized]],
    samples: Sequence[Tokenized],
    settings: InfluenceSettings,
) -> str:
    weights = job.checkpoint / "model.safetensors"
    if not weights.is_file():
        raise DataError(
            "The checkpoint has no weights",
            where=str(weights),
            remedy="Train the reference model first, or correct the path",
        )
    inputs: dict[str, Any] = {
        "model": hash_file(weights),
        "job": [job.reference, job.step, job.capabilities],
        "probes": {c: _documents_hash(d) for c, d in probes.items()},
        "samples": _documents_hash(samples),
        "settings": asdict(settings),
    }
    if settings.preconditioner == "adam" and (job.checkpoint / "optimizer.safetensors").is_file():
        inputs["optimizer"] = hash_file(job.checkpoint / "optimizer.safetensors")
    return hash_value(inputs)


def _documents_hash(documents: Sequence[Tokenized]) -> str:
    return hash_value([(d.id, d.source, hash_value(np.asarray(d.ids).tolist())) for d in documents])


def _finished(file: Path, fingerprint: str) -> bool:
    beside = file.with_suffix(".json")
    return file.is_file() and beside.is_file() and read_json(beside).get("inputs") == fingerprint
