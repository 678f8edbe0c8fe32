"""Many checkpoints and many parts, in this process, in worker processes, on Ray, or in a share of several machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curation.errors import RecipeError
from curation.workers import Advance, Job, run_jobs
from mixing.influence.benefit_tables import assemble
from mixing.influence.checkpoint_work import (
    CheckpointJob,
    CheckpointWork,
    check_held_out,
    finished,
    locked,
    make_work,
)
from mixing.influence.checkpoints import close_checkpoint, score_units
from mixing.influence.documents import Tokenized
from mixing.influence.samples import SampleStore, write_store
from mixing.influence.settings import DEFAULT_SETTINGS, InfluenceSettings
from mixing.influence.units import Units, make_units

Backend = Literal["processes", "ray"]
Task = tuple[CheckpointWork, list[np.ndarray]]


def influence_at_checkpoint(
    job: CheckpointJob,
    probes: Any,
    samples: Sequence[Tokenized],
    out: Path,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
) -> list[Path]:
    """`influence_at_checkpoints` for a single one, in this process."""
    return influence_at_checkpoints([job], probes, samples, out, settings)


def influence_at_checkpoints(
    jobs: Sequence[CheckpointJob],
    probes: Any,
    samples: Sequence[Tokenized],
    out: Path,
    settings: InfluenceSettings = DEFAULT_SETTINGS,
    workers: int = 0,
    *,
    backend: Backend = "processes",
    share: tuple[int, int] = (0, 1),
) -> list[Path]:
    """Score `samples` at every checkpoint of `jobs` for its capabilities; returns one parquet file for each
    checkpoint and capability, in their order.

    probes  : capability -> documents
    samples : a `SampleStore`, or any sequence of documents, which is then written to one below `out/.work`
    workers : processes; 0 works in this one. Where there are more workers than checkpoints, several score shares
              of one. The files do not depend on it.
    backend : "ray" runs the shares as tasks of a Ray cluster that sees the same folders
    share   : (rank, size): this call makes the parts rank, rank + size ... only, for several machines (or the
              ranks of torchrun) with one file system. The call that finds all parts made writes the tables; the
              others return nothing.
    Parts that are done survive a kill, and the same call goes on after them. Raises DataError when a probe
    document is also a sample, MachineError when a worker is killed.
    """
    out = Path(out)
    rank, _ = _checked(share)
    store = as_store(samples, out, f"samples-{rank}")
    check_held_out({c: d for job in jobs for c, d in probes.items() if c in job.capabilities}, store)
    works = [make_work(job, probes, store, out, settings) for job in jobs]
    open_works = [work for work in works if not finished(work, out)]
    if open_works:
        units = make_units(store, settings.group_documents, settings.seed)
        parts = cut_parts(units, np.arange(units.count), settings.part_documents)
        score_parts(open_works, parts, workers=workers, backend=backend, share=share)
        with locked(out / ".work"):
            for work in open_works:
                if all(work.part(part).is_file() for part in parts) and not finished(work, out):
                    assemble(work, parts, out)
    done = all(finished(work, out) for work in works)
    if done:
        for work in open_works:
            shutil.rmtree(work.folder, ignore_errors=True)
    if store.folder.parent == out / ".work" and done:
        shutil.rmtree(store.folder, ignore_errors=True)
    files = [job.file(out, capability) for job in jobs for capability in job.capabilities]
    return files if done else []


def as_store(samples: Sequence[Tokenized], out: Path, name: str) -> SampleStore:
    """The samples as a store, written below `out/.work` unless they are one."""
    if isinstance(samples, SampleStore):
        return samples
    return write_store(out / ".work" / name, iter(samples))


def cut_parts(units: Units, chosen: np.ndarray, documents: int) -> list[np.ndarray]:
    """`chosen` units in parts of about so many documents, each the same whatever runs beside it."""
    each = max(1, documents // max(1, round(len(units.members) / max(units.count, 1))))
    return [chosen[at : at + each] for at in range(0, len(chosen), each)]


def score_parts(
    works: Sequence[CheckpointWork],
    parts: Sequence[np.ndarray],
    *,
    workers: int = 0,
    backend: Backend = "processes",
    share: tuple[int, int] = (0, 1),
    description: str = "influence",
) -> None:
    """Make the parts that are missing, each checkpoint's by as few processes as keep all workers busy."""
    rank, size = _checked(share)
    tasks: list[Task] = []
    for work in works:
        missing = [p for p in list(parts)[rank::size] if not work.part(p).is_file()]
        cuts = max(1, min(len(missing), -(-max(workers, 1) // max(len(works), 1))))
        tasks += [(work, missing[at::cuts]) for at in range(cuts) if missing[at::cuts]]
    if not tasks:
        return
    total = float(sum(len(part) for _, its_parts in tasks for part in its_parts))
    if backend == "ray":
        _on_ray(tasks, workers)
        return
    named = [Job(f"{t[0].job.reference} at step {t[0].job.step}", _score_task, t) for t in tasks]
    try:
        run_jobs(named, workers=workers, description=description, total=total, unit="scores")
    finally:
        close_checkpoint()


def rank_of_environment() -> tuple[int, int]:
    """(rank, size) as torchrun tells; (0, 1) where it does not.

    A Slurm array is not asked: its tasks may as well score other models, and each would do a part only.
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _score_task(task: Task, advance: Advance) -> int:
    work, parts = task
    for part in parts:
        score_units(work, part)
        advance(len(part))
    return len(parts)


def _on_ray(tasks: Sequence[Task], workers: int) -> None:
    """The tasks as Ray tasks of one core each; a cluster that runs already is joined."""
    try:
        import ray
    except ImportError as error:
        raise RecipeError(
            "Ray is not installed", where="influence", remedy="pip install ray, or use processes"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=workers or None, include_dashboard=False, log_to_driver=False)
    try:
        remote: Callable[..., Any] = ray.remote(num_cpus=1, max_retries=2)(_ray_task).remote
        ray.get([remote(task) for task in tasks])
    finally:
        if started:
            ray.shutdown()


def _ray_task(task: Task) -> int:
    try:
        return _score_task(task, lambda _: None)
    finally:
        close_checkpoint()


def _checked(share: tuple[int, int]) -> tuple[int, int]:
    rank, size = share
    if not 0 <= rank < size:
        raise RecipeError(
            f"There is no share {rank} of {size}",
            where="share",
            remedy="Shares are numbered from 0 to size - 1",
        )
    return rank, size
