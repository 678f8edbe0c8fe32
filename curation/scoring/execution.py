"""Where pipelines run: processes of this machine, Ray, or Slurm, by datatrove's executors with a guard around
them.

    local   datatrove's task of one rank as a job of `curation.workers`. datatrove's own pool waits for ever
            for a worker that was killed; ours notices at once, starts another and gives it the rank again
    ray     Ray tasks that call datatrove's task of one rank. datatrove's own way, an actor that forks a pool,
            waits for ever for a killed child as well, and loads the model again for each task
    slurm   datatrove's job array; ranks whose parts are missing when the job has left the queue go again

What was done is seen from the parts alone, never from datatrove's markers, so that every executor may run a
rank again, and the number of tasks may change between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from curation.errors import RecipeError
from curation.workers import Advance, Job, Workers

Kind = Literal["local", "ray", "slurm"]
TASKS_PER_WORKER = 16
"""Tasks are a few times the workers, so that the last of them do not wait for one long task."""


@dataclass(frozen=True)
class Execution:
    """Where and how widely to run.

    workers : tasks that run at the same time; 0, for `local`, is this very process
    tasks   : what the units are divided into; None is 16 for each worker (Slurm: one), at most one for a unit
    retries : how often in a row a task may be lost without having finished anything new before giving up
    cpus_per_task, gpus_per_task, memory_gigabytes : what Ray and Slurm reserve for a task; None, Ray: no limit,
        Slurm: datatrove's 2 GB for each CPU
    ray_address : of a running cluster; None joins the one that Ray knows of, or starts one on this machine
    time, partition, qos, sbatch : Slurm's; `sbatch` holds any other options of sbatch
    setup   : shell commands before each Slurm task, such as activating an environment; by default the paths of
        this very Python
    poll_seconds : how often Ray and Slurm are asked how far they are
    """

    kind: Kind = "local"
    workers: int = 0
    tasks: int | None = None
    retries: int = 3
    cpus_per_task: int = 1
    gpus_per_task: int = 0
    memory_gigabytes: float | None = None
    ray_address: str | None = None
    time: str = "24:00:00"
    partition: str | None = None
    qos: str | None = None
    sbatch: Mapping[str, str] = field(default_factory=dict)
    setup: str | None = None
    poll_seconds: float = 5.0


@dataclass(frozen=True)
class Work:
    """One pipeline and what is to come of it.

    name    : how messages call it
    tasks   : what it is divided into
    logs    : datatrove's logging folder
    total   : documents
    missing : how many of the results are not there yet
    done    : how many of the `total` documents are scored
    failed  : whether a task has left a sentence, so that it is pointless to wait for the others
    """

    name: str
    tasks: int
    logs: Path
    total: int
    missing: Callable[[], int]
    done: Callable[[], int]
    failed: Callable[[], bool]


class Runner(Protocol):
    """Runs pipelines; closing it ends what it started."""

    def tasks(self, units: int) -> int:
        """Tasks for so many units."""
        ...

    def run(self, pipeline: Sequence[Any], work: Work) -> None:
        """Return when all tasks have ended; MachineError when some were lost too often."""
        ...


def open_runner(execution: Execution) -> AbstractContextManager[Runner]:
    """A runner to be used in a `with` block; its workers, and the models they loaded, live as long as that."""
    if execution.workers < (0 if execution.kind == "local" else 1):
        raise RecipeError(
            f"{execution.workers} workers are not possible",
            where=f"executor {execution.kind}",
            remedy="Give 1 or more",
        )
    if execution.kind == "ray":
        from curation.scoring.on_ray import RayRunner

        return RayRunner(execution)
    if execution.kind == "slurm":
        from curation.scoring.on_slurm import SlurmRunner

        return SlurmRunner(execution)
    if execution.kind == "local":
        return LocalRunner(execution)
    raise RecipeError(f"There is no executor `{execution.kind}`", remedy="Choose local, ray or slurm")


def task_count(execution: Execution, units: int, per_worker: int = TASKS_PER_WORKER) -> int:
    """The tasks asked for, or `per_worker` for each worker; never more than units."""
    return max(1, min(units, execution.tasks or per_worker * max(1, execution.workers)))


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

    def run(self, pipeline: Sequence[Any], work: Work) -> None:
        if self.execution.workers == 0:
            from curation.progress import progress

            with progress(work.name, work.total, "documents") as task:
                for rank in range(work.tasks):
                    _listen(pipeline, task.advance)
                    _exhaust(pipeline, rank, work.tasks)
            return
        from datatrove.executor import LocalPipelineExecutor

        _importable(pipeline)
        executor = LocalPipelineExecutor(
            list(pipeline), tasks=work.tasks, logging_dir=str(work.logs), skip_completed=False
        )
        jobs = [
            Job(f"{work.name}, task {rank} of {work.tasks}", run_task, (executor, rank))
            for rank in range(work.tasks)
        ]
        self.workers.run(
            jobs, description=work.name, total=work.total, unit="documents", retries=self.execution.retries
        )


def run_task(argument: tuple[Any, int], advance: Advance) -> None:
    """Run datatrove's task of one rank in this process."""
    executor, rank = argument
    _listen(executor.pipeline, advance)
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
        scorer = getattr(step, "scorer", None)
        if type(scorer).__module__ == "__main__":
            raise RecipeError(
                f"The scorer {scorer.name} is defined in the script that is running, where workers cannot "
                "import it",
                where="executor",
                remedy="Move it into a module, or score with 0 workers",
            )
