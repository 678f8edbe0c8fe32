"""Many checkpoints side by side, in worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from curation.workers import Advance, Job, run_jobs
from mixing.influence.checkpoints import (
    DEFAULT_SETTINGS,
    CheckpointJob,
    InfluenceSettings,
    influence_at_checkpoint,
)
from mixing.influence.documents import SampleDocument, Tokenized

_Task = tuple[CheckpointJob, dict[str, list[SampleDocument]], list[SampleDocument], Path, InfluenceSettings]


def influence_at_checkpoints(
    jobs: Sequence[CheckpointJob],
    probes: Mapping[str, Sequence[Tokenized]],
    samples: Sequence[Tokenized],
    out: Path,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    workers: int = 0,
) -> list[Path]:
    """`influence_at_checkpoint` for every job, side by side in `workers` processes; 0 works in this one.

    The files do not depend on the number of workers. Raises MachineError when a worker is killed; what is
    finished stays and is not computed again.
    """
    plain = _plain(samples)
    wanted = {capability: _plain(documents) for capability, documents in probes.items()}
    tasks: list[_Task] = [
        (job, {c: wanted[c] for c in job.capabilities if c in wanted}, plain, Path(out), settings)
        for job in jobs
    ]
    named = [Job(f"{t[0].reference} at step {t[0].step}", _score_checkpoint, t) for t in tasks]
    made = run_jobs(named, workers=workers, description="influence", unit="checkpoints")
    return [file for files in made for file in files]


def _plain(documents: Sequence[Tokenized]) -> list[SampleDocument]:
    """Records that pickle without what they came from (memory maps, texts)."""
    return [SampleDocument(d.id, d.source, np.asarray(d.ids, dtype=np.int32)) for d in documents]


def _score_checkpoint(task: _Task, advance: Advance) -> list[Path]:
    return influence_at_checkpoint(*task)
