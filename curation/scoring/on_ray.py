"""Scoring on a Ray cluster: each rank of datatrove's pipeline is a Ray task, which Ray repeats when its worker
is lost.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.atomic import writing_to
from curation.errors import MachineError, MixwrightError
from curation.progress import progress
from curation.scoring.execution import Execution, Work, task_count, title

ANSWER_SECONDS = 10.0


class RayRunner:
    """Joins the Ray cluster that there is, or starts one on this machine, which it ends again."""

    def __init__(self, execution: Execution) -> None:
        self.execution, self._started = execution, False

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            _ray().shutdown()
            self._started = False

    def tasks(self, units: int) -> int:
        return task_count(self.execution, units)

    def run(self, works: Sequence[Work]) -> None:
        ray = self._connected()
        memory = self.execution.memory_gigabytes
        remote = ray.remote(_run_rank).options(
            num_cpus=self.execution.cpus_per_task,
            num_gpus=self.execution.gpus_per_task,
            max_retries=self.execution.retries,
            retry_exceptions=False,
            **({} if memory is None else {"memory": int(memory * 2**30)}),
        )
        references = [ray.put(_executor(work)) for work in works]
        waiting = [(at, rank) for at, work in enumerate(works) for rank in range(work.tasks)][::-1]
        running: dict[Any, tuple[int, int]] = {}
        try:
            with progress(title(works), sum(work.total for work in works), works[0].unit) as task:
                while waiting or running:
                    while waiting and len(running) < self.execution.workers:
                        at, rank = waiting.pop()
                        running[remote.remote(references[at], rank)] = at, rank
                    ended, _ = ray.wait(list(running), num_returns=1, timeout=self.execution.poll_seconds)
                    for one in ended:
                        at, rank = running.pop(one)
                        _result(ray, one, rank, works[at], self.execution.retries)
                    task.advance(max(0, sum(work.done() for work in works) - task.done))
                    if any(work.failed() for work in works):
                        return
        finally:
            for one in running:
                ray.cancel(one, force=True)

    def _connected(self) -> Any:
        ray = _ray()
        if not ray.is_initialized():
            paths = os.pathsep.join(path for path in sys.path if path)
            address = self.execution.ray_address
            check_ray(self.execution)
            sizes = {} if address or "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level="ERROR",
                    runtime_env={"env_vars": {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}},
                    **sizes,
                )
            except Exception as error:  # Ray raises plain ones, too
                raise _not_connected(error, address or os.environ.get("RAY_ADDRESS")) from error
            self._started = True
        return ray


def _executor(work: Work) -> Any:
    from datatrove.executor import RayPipelineExecutor
    from loguru import logger

    logger.disable("datatrove.executor.ray")  # its advice on shared folders is in our documentation
    try:
        return RayPipelineExecutor(
            list(work.pipeline), tasks=work.tasks, logging_dir=str(work.logs), skip_completed=False
        )
    finally:
        logger.enable("datatrove.executor.ray")


def _run_rank(executor: Any, rank: int) -> None:
    with writing_to(Path(executor.logging_dir.path)):
        executor._run_for_rank(rank, 1)


def _result(ray: Any, one: Any, rank: int, work: Work, retries: int) -> None:
    try:
        ray.get(one)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, MixwrightError):
            raise type(e.cause)(e.cause.what, where=e.cause.where, remedy=e.cause.remedy) from e
        raise
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    ) as e:
        raise MachineError(
            f"Task {rank} of {work.name} was lost {retries + 1} times: {str(e).splitlines()[0].rstrip('.')}",
            where="executor ray",
            remedy="Most often the memory ran out: use fewer workers or smaller batches. What was done is "
            "kept; start the same command again to continue",
        ) from e


def check_ray(execution: Execution) -> None:
    """MachineError when nothing listens at the address of the cluster: Ray itself would try for minutes."""
    address = execution.ray_address or os.environ.get("RAY_ADDRESS") or ""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            raise _not_connected(error, address) from error


def _not_connected(error: Exception, address: str | None) -> MachineError:
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    if address is None:
        return MachineError(
            f"Ray could not be started on this machine: {cause}",
            where="executor ray",
            remedy="Try again when the machine is less busy, or use `executor: local`; what was done is kept",
        )
    return MachineError(
        f"No Ray cluster could be joined at {address}: {cause}",
        where="executor ray",
        remedy="Check `ray_address` or RAY_ADDRESS, and `ray status` there; without both a cluster is started here",
    )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MachineError(
            "Ray is not installed",
            where="executor ray",
            remedy="Install it with `pip install mixwright[ray]`",
        ) from error
    return ray
