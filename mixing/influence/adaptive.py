"""Source weights at many checkpoints from an adaptive sample (`adaptive_sample`), with what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.atomic import read_json
from curation.errors import RecipeError
from mixing.influence.adaptive_sample import Measured, SampledWeights, Stopping, sample_weights
from mixing.influence.benefit_tables import part_table, work_record, write_benefits
from mixing.influence.checkpoint_work import (
    CheckpointJob,
    CheckpointWork,
    check_held_out,
    make_work,
    read_part,
)
from mixing.influence.documents import Tokenized
from mixing.influence.joint import Column, column_factors
from mixing.influence.settings import DEFAULT_SETTINGS, AssemblySettings, InfluenceSettings
from mixing.influence.units import Units, make_units
from mixing.influence.weights import RowsMap, positive_rows
from mixing.influence.workers import Backend, as_store, cut_parts, score_parts


@dataclass(frozen=True)
class AdaptiveInfluence:
    """Weights from a sample, the rows that were scored for it, how they were made, and the cost.

    records        : how each checkpoint was scored, as in the metadata of a table
    forward_tokens : tokens times forward passes that the sample took, directions and pilots included
    full_tokens    : what scoring every unit would take, estimated from the tokens that were read
    """

    sampled: SampledWeights
    table: pa.Table
    records: list[dict[str, Any]]
    forward_tokens: float
    full_tokens: float


def adaptive_influence(
    jobs: Sequence[CheckpointJob],
    probes: Mapping[str, Sequence[Tokenized]],
    samples: Sequence[Tokenized],
    out: Path,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    assembly: AssemblySettings | None = None,
    stopping: Stopping | None = None,
    *,
    to_weights: RowsMap | None = None,
    learning_rates: Mapping[int, float] | None = None,
    workers: int = 0,
    backend: Backend = "processes",
) -> AdaptiveInfluence:
    """Weights of the sources of `samples` at the checkpoints of one reference model, scored no further than their
    intervals ask for.

    The interval is of the weights that scoring all of `samples` at these checkpoints would give. Every unit of the
    sample is scored at all checkpoints. Parts are kept below `out/.work` and survive a kill. Raises RecipeError
    for the normalisation "rms", whose divisor is not known before everything is scored.
    """
    assembly = assembly or AssemblySettings()
    if assembly.normalise == "rms":
        raise RecipeError(
            "The normalisation rms needs the benefits of all documents, so it does not go with an adaptive sample",
            where="influence.normalise",
            remedy="Choose none or cosine, or score everything",
        )
    out = Path(out)
    store = as_store(samples, out, "samples")
    check_held_out(probes, store)
    works = [make_work(job, probes, store, out, settings) for job in jobs]
    units = make_units(store, settings.group_documents, settings.seed)
    parts: list[np.ndarray] = []

    def measure(fresh: dict[str, np.ndarray]) -> Measured:
        chosen = np.sort(np.concatenate(list(fresh.values())))
        cut = cut_parts(units, chosen, settings.part_documents)
        score_parts(works, cut, workers=workers, backend=backend, description=f"look {len(parts) + 1}")
        parts.extend(cut)
        return _joint_of(works, units, cut, fresh, assembly, learning_rates)

    def positive(rho: np.ndarray) -> np.ndarray:
        return positive_rows(rho, assembly.floor)

    sampled = sample_weights(units.by_source, measure, stopping, to_weights or positive)
    records = [work_record(work, parts) for work in works]
    tables = [
        part_table(work, units, part, list(enumerate(work.job.capabilities)))
        for work in works
        for part in parts
    ]
    spent = sum(r["forward_tokens"] for r in records)
    share = units.count / max(sum(len(p) for p in parts), 1)
    more = sum(r["forwards_per_token"] * r["tokens_read"] * (share - 1) for r in records)
    return AdaptiveInfluence(sampled, pa.concat_tables(tables), records, spent, spent + more)


def write_sampled(found: AdaptiveInfluence, jobs: Sequence[CheckpointJob], out: Path) -> list[Path]:
    """The sampled rows as the files that `influence_at_checkpoints` writes, one for each checkpoint and capability."""
    files = []
    for job, record in zip(jobs, found.records, strict=True):
        here = found.table.filter(pc.equal(found.table["checkpoint"], job.step))
        for capability in job.capabilities:
            own = {k: v for k, v in record.items() if k != "directions"}
            own |= {
                "direction": record["directions"][capability],
                "capability": capability,
                "sampled": found.sampled.record(),
            }
            file = job.file(out, capability)
            write_benefits(file, [here.filter(pc.equal(here["capability"], capability))], own)
            files.append(file)
    return files


def probe_losses(works: Sequence[CheckpointWork]) -> dict[Column, float]:
    """The mean loss on each probe at each checkpoint, from the directions that are on the disk."""
    return {
        (capability, work.job.step): read_json(work.folder / "directions.json")[capability]["probe_loss"]
        for work in works
        for capability in work.job.capabilities
    }


def _joint_of(
    works: Sequence[CheckpointWork],
    units: Units,
    parts: Sequence[np.ndarray],
    fresh: Mapping[str, np.ndarray],
    assembly: AssemblySettings,
    learning_rates: Mapping[int, float] | None,
) -> Measured:
    """Joint benefits and targets of the units of `parts`, by source."""
    columns = [(c, work.job.step) for work in works for c in work.job.capabilities]
    rule = assembly.checkpoint_weights
    losses = probe_losses(works) if rule == "best" else None
    factors = column_factors(columns, rule, learning_rates, losses)
    benefit, targets = np.zeros(units.count), np.zeros(units.count)
    for work in works:
        for part in parts:
            values = read_part(work, part)
            targets[part] = values[:, 1]
            for at, capability in enumerate(work.job.capabilities):
                benefit[part] += factors[capability, work.job.step] * values[:, 2 + at]
    return {name: (benefit[numbers], targets[numbers]) for name, numbers in fresh.items()}
