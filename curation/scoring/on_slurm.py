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
from typing import Any

from datatrove.executor import SlurmPipelineExecutor

from curation.errors import MachineError, RecipeError
from curation.progress import progress
from curation.scoring.execution import Execution, Work, task_count

GRACE_SECONDS = 60.0
"""A shared folder may show another machine's files a little late."""


class SlurmRunner:
    """Submits with `sbatch`, watches with `squeue`; the run folder must be on a disk that every node sees."""

    def __init__(self, execution: Execution) -> None:
        self.execution, self._job = execution, ""

    def __enter__(self) -> SlurmRunner:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self._job and _in_queue(self._job):
            subprocess.run(["scancel", self._job], check=False, capture_output=True)

    def tasks(self, units: int) -> int:
        return task_count(self.execution, units, per_worker=1)

    def run(self, pipeline: Sequence[Any], work: Work) -> None:
        _check(self.execution)
        missing, lost = work.missing(), 0
        with progress(work.name, work.total, work.unit) as task:
            while missing and not work.failed():
                executor = slurm_executor(self.execution, pipeline, work)
                executor.run()
                self._job = str(executor.job_id)
                while _in_queue(self._job):
                    task.advance(max(0, work.done() - task.done))
                    time.sleep(self.execution.poll_seconds)
                self._job = ""
                left = _settled(work, self.execution.poll_seconds)
                lost = 0 if left < missing else lost + 1
                missing = left
                if missing and lost > self.execution.retries:
                    raise MachineError(
                        f"The Slurm job of {work.name} ended {lost} times without progress; {missing} parts are "
                        "missing",
                        where=str(work.logs),
                        remedy="Its logs are in that folder, under `slurm_logs`. Give the tasks more memory or "
                        "time and run again: what was done is kept",
                    )


class JobArray(SlurmPipelineExecutor):
    """datatrove's executor without its job that merges statistics, which would wait for ever if a task failed."""

    def launch_merge_stats(self) -> None:
        pass


def slurm_executor(execution: Execution, pipeline: Sequence[Any], work: Work) -> JobArray:
    """The job array of these settings; `run` submits it."""
    memory = execution.memory_gigabytes
    return JobArray(
        list(pipeline),
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


def _check(execution: Execution) -> None:
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
