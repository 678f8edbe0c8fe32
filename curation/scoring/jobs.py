"""Jobs of `curation.workers` on any runner: a datatrove block calls them, and each leaves its result in a file.

So what is no scoring (MinHash) runs on Ray and Slurm as scoring does. A job must be one that may run twice, since a
task whose worker was lost runs again, and its result must be JSON.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from curation.atomic import read_json, write_json
from curation.errors import MachineError
from curation.scoring.blocks import KeepSentence, raise_kept_sentence
from curation.scoring.execution import Runner, Work
from curation.workers import Job


class CallJobs(PipelineStep):
    """Call the jobs of this task that have no result yet; yields nothing."""

    type = "🧰 - JOBS"
    name = "🧰 Jobs"

    def __init__(self, jobs: Sequence[Job], results: Path | str) -> None:
        super().__init__()
        self.jobs, self.results = list(jobs), str(results)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for number in range(rank, len(self.jobs), world_size):
            path, job = _result(self.results, number), self.jobs[number]
            if not path.is_file():
                with self.track_time("job"):
                    write_json(path, job.function(job.argument, lambda _: None))
        yield from ()


def run_jobs_on(
    runner: Runner, jobs: Sequence[Job], folder: Path, *, description: str, unit: str = "jobs"
) -> list[Any]:
    """Results in the order of the jobs; tuples come back as lists.

    folder : on a disk that every machine sees; emptied first. MachineError when results are missing in the end
    """
    if not jobs:
        return []
    shutil.rmtree(folder, ignore_errors=True)
    paths = [_result(folder / "results", number) for number in range(len(jobs))]
    for place in ("results", "errors"):
        (folder / place).mkdir(parents=True)

    def done() -> int:
        return sum(path.is_file() for path in paths)

    work = Work(
        [CallJobs(jobs, folder / "results"), KeepSentence(folder / "errors")],
        name=description,
        tasks=runner.tasks(len(jobs)),
        logs=folder / "logs",
        total=len(jobs),
        missing=lambda: len(jobs) - done(),
        done=done,
        failed=lambda: any((folder / "errors").glob("*.json")),
        unit=unit,
    )
    runner.run([work])
    raise_kept_sentence(folder / "errors")
    lost = [job.name for job, path in zip(jobs, paths, strict=True) if not path.is_file()]
    if lost:
        raise MachineError(
            f"The executor has ended, but {len(lost)} of {len(jobs)} jobs left no result, the first {lost[0]!r}",
            where=str(folder / "logs"),
            remedy="Look into these logs, and run the same command again",
        )
    return [read_json(path) for path in paths]


def _result(folder: Path | str, number: int) -> Path:
    return Path(folder) / f"{number:05d}.json"
