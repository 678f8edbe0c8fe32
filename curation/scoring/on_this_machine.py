"""Scoring in processes of this machine: datatrove's task of each rank is a job of `curation.workers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.atomic import writing_to
from curation.errors import RecipeError
from curation.progress import progress
from curation.scoring.execution import Execution, Work, task_count, title
from curation.workers import Advance, Job, Workers


class LocalRunner:
    """Worker processes of this machine, or this process."""

    def __init__(self, execution: Execution) -> None:
        self.execution, self.workers = execution, Workers(execution.workers)

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.close()

    def tasks(self, units: int) -> int:
        return task_count(self.execution, units)

    def run(self, works: Sequence[Work]) -> None:
        total, unit = sum(work.total for work in works), works[0].unit
        if self.execution.workers == 0:
            with progress(title(works), total, unit) as task:
                for work in works:
                    for rank in range(work.tasks):
                        _listen(work.pipeline, task.advance)
                        _exhaust(work.pipeline, rank, work.tasks)
            return
        jobs = [job for work in works for job in _jobs(work)]
        self.workers.run(
            jobs, description=title(works), total=total, unit=unit, retries=self.execution.retries
        )


def _jobs(work: Work) -> list[Job]:
    from datatrove.executor import LocalPipelineExecutor

    _importable(work.pipeline)
    executor = LocalPipelineExecutor(
        list(work.pipeline), tasks=work.tasks, logging_dir=str(work.logs), skip_completed=False
    )
    return [
        Job(f"{work.name}, task {rank} of {work.tasks}", run_task, (executor, rank))
        for rank in range(work.tasks)
    ]


def run_task(argument: tuple[Any, int], advance: Advance) -> None:
    """Run datatrove's task of one rank in this process."""
    executor, rank = argument
    _listen(executor.pipeline, advance)
    with writing_to(Path(executor.logging_dir.path)):  # logs and statistics fill a disk, too
        executor._run_for_rank(rank, local_rank=1)  # every local rank but 0 keeps its log out of the terminal


def _listen(pipeline: Sequence[Any], advance: Advance) -> None:
    for step in pipeline:
        if hasattr(step, "advance"):
            step.advance = advance


def _exhaust(pipeline: Sequence[Any], rank: int, world_size: int) -> None:
    data = None
    for step in pipeline:
        data = step(data, rank, world_size)
    for _ in data or ():
        pass


def _importable(pipeline: Sequence[Any]) -> None:
    """Refuse a scorer that is defined where workers cannot import it from."""
    for step in pipeline:
        scorer: Any = getattr(step, "scorer", None)
        if type(scorer).__module__ == "__main__":
            raise RecipeError(
                f"The scorer {scorer.name} is defined in the script that is running, where workers cannot "
                "import it",
                where="executor",
                remedy="Move it into a module, or score with 0 workers",
            )
