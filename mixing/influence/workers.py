"""Many checkpoints side by side: worker processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import MachineError
from curation.progress import progress
from mixing.influence.checkpoints import (
    DEFAULT_SETTINGS,
    CheckpointJob,
    InfluenceSettings,
    influence_at_checkpoint,
)
from mixing.influence.documents import SampleDocument, Tokenized


def influence_at_checkpoints(
    jobs: Sequence[CheckpointJob],
    probes: Mapping[str, Sequence[Tokenized]],
    samples: Sequence[Tokenized],
    out: Path,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    workers: int = 1,
) -> list[Path]:
    """`influence_at_checkpoint` for every job, side by side in `workers` processes when there are several.

    The files do not depend on the number of workers. Raises MachineError when a worker is killed; what is
    finished stays and is not computed again.
    """
    files: list[Path] = []
    with progress("influence", total=len(jobs), unit="checkpoints") as task:
        if workers <= 1 or len(jobs) <= 1:
            for job in jobs:
                files += influence_at_checkpoint(job, probes, samples, out, settings)
                task.advance()
            return files
        shared = ({c: _plain(p) for c, p in probes.items()}, _plain(samples), Path(out), settings)
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=shared,
        )
        try:
            for made in pool.map(_work, jobs):
                files += made
                task.advance()
        except BrokenProcessPool as error:
            raise MachineError(
                "A worker that scored influence was killed",
                where=str(out),
                remedy="Look for a lack of memory and run again: finished checkpoints are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return files


def _plain(documents: Sequence[Tokenized]) -> list[SampleDocument]:
    """Records that pickle without what they came from (memory maps, texts)."""
    return [SampleDocument(d.id, d.source, np.asarray(d.ids, dtype=np.int32)) for d in documents]


_shared: tuple = ()


def _start_worker(*shared: Any) -> None:
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker must not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(job: CheckpointJob) -> list[Path]:
    return influence_at_checkpoint(job, *_shared)
