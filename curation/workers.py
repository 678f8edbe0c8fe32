"""A small pool of worker processes for jobs that each want one core to themselves.

Every job runs in a fresh interpreter with one torch thread, so its numbers do not depend on how many workers
there are or on which of them ran it. Workers die with their parent: the kernel kills them (Linux), and each
also watches for its parent's id to change (everywhere). A worker that is killed is noticed at once and named
in a sentence; what other jobs had finished has already been handed to the caller.

Workers are plain subprocesses that are handed a socket, rather than `multiprocessing`, which would import the
caller's `__main__` again: a script without `if __name__ == "__main__"`, or a notebook, would start itself
anew.

`Workers` keeps its processes, with the models that they have loaded, between one list of jobs and the next;
`run_jobs` is for a single list.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from curation.errors import DataError, MachineError, MixwrightError, RecipeError
from curation.progress import Task, progress

Advance = Callable[[float], None]
_ERRORS = {kind.__name__: kind for kind in (RecipeError, DataError, MachineError, MixwrightError)}
_START = "import sys; sys.path[:] = {path!r}; from curation.worker_process import serve; serve({descriptor}, {parent})"


@dataclass(frozen=True)
class Job:
    """One call to be made in a worker: `function(argument, advance)`.

    name     : how messages call it
    function : a function of an importable module
    argument : picklable
    The result must be picklable. `advance(amount)` reports progress in the units given to `run_jobs`.
    """

    name: str
    function: Callable[[Any, Advance], Any]
    argument: Any


class JobFailed(RuntimeError):
    """A job raised something that is not a sentence for the user; holds the worker's traceback."""


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    description: str = "jobs",
    total: float | None = None,
    unit: str = "jobs",
    on_result: Callable[[Job, Any], None] | None = None,
) -> list[Any]:
    """Run jobs side by side and return their results in the order of the jobs.

    workers   : processes; 0 runs everything in this process, one after another, with one torch thread
    total     : amount of progress over all jobs; one a job if not given
    on_result : called in this process, as soon as a job has finished, before anything else can fail
    Raises the first job's MixwrightError as it is, MachineError when a worker dies, JobFailed on a bug. In
    each case the other workers are stopped first.
    """
    with Workers(min(workers, len(jobs))) as pool:
        return pool.run(jobs, description=description, total=total, unit=unit, on_result=on_result)


class Workers:
    """`workers` processes, started at the first use and kept until the `with` block ends.

    What a job leaves in module-level caches, such as a loaded model, is there for the next job of its worker.
    After an error the processes are stopped; the next `run` starts new ones.
    """

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise RecipeError(f"{workers} workers are not possible", where="workers", remedy="Give 1 or more")
        self.wanted = workers
        self._alive: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process."""
        for worker in self._alive:
            worker.stop()
        self._alive = []

    def run(
        self,
        jobs: Sequence[Job],
        *,
        description: str = "jobs",
        total: float | None = None,
        unit: str = "jobs",
        on_result: Callable[[Job, Any], None] | None = None,
        retries: int = 0,
    ) -> list[Any]:
        """As `run_jobs`. A job whose worker is lost starts again in a new one, until `retries` attempts in a
        row were lost without any progress; then MachineError. For jobs that keep what they have done.
        """
        results: dict[int, Any] = {}

        def finished(index: int, result: Any) -> None:
            results[index] = result
            if on_result is not None:
                on_result(jobs[index], result)

        if not jobs:
            return []
        with progress(description, total if total is not None else len(jobs), unit) as task:
            if self.wanted == 0:
                _run_here(jobs, task, finished, count_jobs=total is None)
            else:
                try:
                    _Batch(self._alive, self.wanted, jobs, task, finished, total is None, retries).run()
                except BaseException:
                    self.close()
                    raise
        return [results[index] for index in range(len(jobs))]


def _run_here(
    jobs: Sequence[Job], task: Task, finished: Callable[[int, Any], None], *, count_jobs: bool
) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index, job in enumerate(jobs):
            finished(index, job.function(job.argument, (lambda _: None) if count_jobs else task.advance))
            if count_jobs:
                task.advance(1)
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """One subprocess and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = _START.format(path=sys.path, descriptor=theirs.fileno(), parent=os.getpid())
        environment = dict(
            os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"
        )
        environment.pop("WORLD_SIZE", None)  # a worker of a torchrun rank is no rank itself
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self.job: int | None = None

    def exit_code(self) -> int:
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def stop(self) -> None:
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class _Batch:
    """One list of jobs on its way through the workers; `alive` gains those that are started for it."""

    def __init__(
        self,
        alive: list[_Worker],
        wanted: int,
        jobs: Sequence[Job],
        task: Task,
        finished: Callable[[int, Any], None],
        count_jobs: bool,
        retries: int,
    ) -> None:
        self.alive, self.wanted, self.jobs, self.task = alive, min(wanted, len(jobs)), jobs, task
        self.finished, self.count_jobs, self.retries = finished, count_jobs, retries
        # Pickled before any worker starts: a job that cannot travel is refused before time is spent.
        self.parcels = [_parcel(job) for job in jobs]
        self.waiting = list(range(len(jobs)))[::-1]
        self.lost = [0] * len(jobs)

    def run(self) -> None:
        while len(self.alive) < self.wanted:
            self.alive.append(_Worker())
        for worker in self.alive:
            self._give(worker)
        while busy := {w.connection: w for w in self.alive if w.job is not None}:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                self._receive(busy[connection])

    def _give(self, worker: _Worker) -> None:
        worker.job = None
        if self.waiting:
            worker.job = self.waiting.pop()
            # A worker that has died is noticed when it is read from.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.connection.send_bytes(self.parcels[worker.job])

    def _receive(self, worker: _Worker) -> None:
        assert worker.job is not None
        try:
            kind, value = worker.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._replace(worker, error)
            return
        if kind == "progress":
            self.lost[worker.job] = 0
            if not self.count_jobs:
                self.task.advance(value)
        elif kind == "result":
            if self.count_jobs:
                self.task.advance(1)
            self.finished(worker.job, value)
            self._give(worker)
        elif kind == "sentence":
            name, what, where, remedy = value
            raise _ERRORS.get(name, MixwrightError)(what, where=where, remedy=remedy)
        else:
            raise JobFailed(f"{self.jobs[worker.job].name} failed in its worker:\n{value}")

    def _replace(self, worker: _Worker, error: Exception) -> None:
        assert worker.job is not None
        self.lost[worker.job] += 1
        if self.lost[worker.job] > self.retries:
            raise _death(self.jobs[worker.job].name, worker.exit_code(), self.retries) from error
        self.waiting.append(worker.job)
        worker.stop()
        fresh = self.alive[self.alive.index(worker)] = _Worker()
        self._give(fresh)


def _parcel(job: Job) -> bytes:
    if getattr(job.function, "__module__", None) == "__main__":
        raise RecipeError(
            f"The function of {job.name!r} is defined in the script that is running, where "
            "workers cannot import it",
            where="workers",
            remedy="Move it into a module, or use workers=0",
        )
    return pickle.dumps((job.function, job.argument))


def _death(name: str, code: int, retries: int) -> MachineError:
    if code < 0:
        try:
            cause = f"killed by {signal.Signals(-code).name}"
        except ValueError:
            cause = f"killed by signal {-code}"
    else:
        cause = f"ended with exit code {code}"
    again = f" {retries + 1} times without progress" if retries else ""
    memory = (
        "Most often the memory ran out: use fewer workers or smaller batches. "
        if code == -signal.SIGKILL
        else ""
    )
    return MachineError(
        f"The worker of {name!r} was lost{again}: {cause}",
        where="workers",
        remedy=f"{memory}What had finished is kept; start the same command again to continue",
    )
