"""The runner of each kind of executor."""

from __future__ import annotations

from contextlib import AbstractContextManager

from curation.errors import RecipeError
from curation.scoring.execution import Execution, Runner
from curation.scoring.on_this_machine import LocalRunner


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


def check_execution(execution: Execution) -> None:
    """Raise what can be known before anything has run, such as that there is no Slurm here, or no Ray there."""
    if execution.kind == "slurm":
        from curation.scoring.on_slurm import check_slurm

        check_slurm(execution)
    if execution.kind == "ray":
        from curation.scoring.on_ray import check_ray

        check_ray(execution)
