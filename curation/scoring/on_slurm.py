"""Scoring on a Slurm cluster: datatrove's job array is submitted, and submitted again for what is missing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor import SlurmPipelineExecutor

from curation.errors import MachineError, RecipeError
from curation.progress import progress
from curation.scoring.execution import Execution, Work, task_count, title

GRACE_SECONDS = 60.0
"""A shared folder may show another machine's files a little late."""


class SlurmRunner:
    """Submits with `sbatch`, watches with `squeue`; the run folder must be on a disk that every node sees."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._jobs: list[str] = []

    def __enter__(self) -> SlurmRunner:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and (left := [job for job in self._jobs if _in_queue(job)]):
            subprocess.run(["scancel", *left], check=False, capture_output=True)

    def tasks(self, units: int) -> int:
        return task_count(self.execution, units, per_worker=1)

    def run(self, works: Sequence[Work]) -> None:
        check_slurm(self.execution)
        missing, lost = [work.missing() for work in works], [0] * len(works)
        with progress(title(works), sum(work.total for work in works), works[0].unit) as task:
            while any(missing) and not any(work.failed() for work in works):
                again = [at for at, left in enumerate(missing) if left]
                for at in again:
                    executor = slurm_executor(self.execution, works[at])
                    executor.run()
                    self._jobs.append(str(executor.job_id))
                while any(_in_queue(job) for job in self._jobs):
                    task.advance(max(0, sum(work.done() for work in works) - task.done))
                    time.sleep(self.execution.poll_seconds)
                self._jobs = []
                for at in again:
                    left = _settled(works[at], self.execution.poll_seconds)
                    lost[at] = 0 if left < missing[at] else lost[at] + 1
                    missing[at] = left
                    if left and lost[at] > self.execution.retries:
                        raise MachineError(
                            f"The Slurm job of {works[at].name} ended {lost[at]} times without progress; {left} "
                            "parts are missing",
                            where=str(works[at].logs),
                            remedy="Its logs are in that folder, under `slurm_logs`. Give the tasks more memory "
                            "or time and run again: what was done is kept",
                        )


class JobArray(SlurmPipelineExecutor):
    """datatrove's executor without its job that merges statistics, which would wait for ever if a task failed."""

    def launch_merge_stats(self) -> None:
        pass


def slurm_executor(execution: Execution, work: Work) -> JobArray:
    """The job array of these settings; `run` submits it."""
    memory = execution.memory_gigabytes
    return JobArray(
        list(work.pipeline),
        tasks=work.tasks,
        workers=min(execution.workers, work.tasks),
        time=execution.time,
        partition=execution.partition or "",
        qos=execution.qos or "",
        cpus_per_task=execution.cpus_per_task,
        gpus_per_task=execution.gpus_per_task,
        mem_per_cpu_gb=2 if memory is None else max(1, round(memory / execution.cpus_per_task)),
        job_name=work.name.replace(" ", "_").replace(":", ""),
        env_command=execution.setup or _this_python(),
        sbatch_args=dict(execution.sbatch),
        logging_dir=str(work.logs),
        slurm_logs_folder=str(work.logs / "slurm_logs"),
        skip_completed=False,
        requeue=False,
        requeue_signals=None,
    )


def _this_python() -> str:
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    folder = shlex.quote(str(Path(sys.executable).parent))
    return f'export PATH={folder}:"$PATH" PYTHONPATH={shlex.quote(paths)}'


def check_slurm(execution: Execution) -> None:
    """RecipeError and MachineError for what would keep a job from being submitted."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise RecipeError(
            "A Slurm job array cannot be started from inside another",
            where="executor slurm",
            remedy="Start it on the login node, or in a job that is no array",
        )
    if not execution.partition:
        raise RecipeError(
            "Slurm needs a partition",
            where="executor slurm",
            remedy="Set `partition` in the `executor` block",
        )
    for command in ("sbatch", "squeue"):
        if shutil.which(command) is None:
            raise MachineError(
                f"There is no command `{command}` here",
                where="executor slurm",
                remedy="Run on a login node of the cluster, or choose another executor",
            )


def _in_queue(job: str) -> bool:
    """Whether Slurm still has the job; one that it no longer knows has ended."""
    command = ["squeue", "--noheader", "--jobs", job]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return True  # the controller may be busy for a while; the job is not lost for that
    return bool(answer.stdout.strip())


def _settled(work: Work, poll_seconds: float) -> int:
    """Missing parts, after waiting for a slow shared folder as long as it keeps showing new ones."""
    deadline, missing = time.monotonic() + min(GRACE_SECONDS, 12 * poll_seconds), work.missing()
    while missing and not work.failed() and time.monotonic() < deadline:
        time.sleep(poll_seconds)
        seen = work.missing()
        if seen == missing:
            break
        missing = seen
    return missing
