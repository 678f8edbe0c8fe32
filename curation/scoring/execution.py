"""Settings of where pipelines run, and what a runner is. `runners.open_runner` makes one:

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

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

    pipeline : datatrove's steps
    name    : how messages call it
    tasks   : what it is divided into
    logs    : datatrove's logging folder
    total   : amount of work, in `unit`
    missing : how many of the results are not there yet
    done    : how much of `total` is done
    failed  : whether a task has left a sentence, so that it is pointless to wait for the others
    unit    : what `total` counts
    """

    pipeline: Sequence[Any]
    name: str
    tasks: int
    logs: Path
    total: int
    missing: Callable[[], int]
    done: Callable[[], int]
    failed: Callable[[], bool]
    unit: str = "documents"


class Runner(Protocol):
    """Runs pipelines; closing it ends what it started."""

    def tasks(self, units: int) -> int:
        """Tasks for so many units."""
        ...

    def run(self, works: Sequence[Work]) -> None:
        """Return when all tasks of all works, which may run side by side, have ended; MachineError when some were
        lost too often.
        """
        ...


def title(works: Sequence[Work]) -> str:
    """How a progress line calls them."""
    return works[0].name if len(works) == 1 else f"{works[0].name} and {len(works) - 1} more"


def task_count(execution: Execution, units: int, per_worker: int = TASKS_PER_WORKER) -> int:
    """The tasks asked for, or `per_worker` for each worker; never more than units."""
    return max(1, min(units, execution.tasks or per_worker * max(1, execution.workers)))
