"""The recipe's block about where documents are scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from curation.scoring.execution import Execution
from recipes.settings import Count, Positive, Settings


class ExecutorSettings(Settings):
    """Where documents are scored; the results do not depend on it. `executor: ray` is short for `kind: ray`."""

    kind: Literal["local", "ray", "slurm"] = "local"
    """`local`: processes of this machine; `ray`: a Ray cluster; `slurm`: a job array submitted with sbatch. For the
    latter two the run folder, the models and this Python must be where every node sees them."""
    workers: Count | None = None
    """Tasks that run at the same time; the recipe's `workers` when absent."""
    tasks: Count | None = None
    """Tasks that the units of a source are divided into; when absent 16 for each worker, for Slurm one."""
    retries: int = Field(default=3, ge=0)
    """How often in a row a task may be lost (killed, out of memory) without progress before the run stops."""
    cpus_per_task: Count = 1
    """Processors that Ray and Slurm reserve for a task."""
    gpus_per_task: int = Field(default=0, ge=0)
    """GPUs that Ray and Slurm reserve for a task."""
    memory_gigabytes: Positive | None = None
    """Memory that Ray and Slurm reserve for a task; when absent no limit for Ray, 2 GB a processor for Slurm."""
    ray_address: str | None = None
    """Address of a running Ray cluster, or `auto`; when absent that of RAY_ADDRESS, or a new one on this machine."""
    time: str = "24:00:00"
    """Slurm's time limit of a task."""
    partition: str | None = None
    """Slurm's partition."""
    qos: str | None = None
    """Slurm's quality of service."""
    sbatch: dict[str, str] = Field(default_factory=dict)
    """Other options of sbatch, such as `account: my-project`."""
    setup: str | None = None
    """Shell commands before each Slurm task; when absent the paths of the Python that submits."""
    poll_seconds: Positive = 5.0
    """How often Ray and Slurm are asked how far they are."""

    def execution(self, workers: int) -> Execution:
        """The curation floor's record; `workers` where the recipe names none."""
        settings = self.model_dump()
        return Execution(**settings | {"workers": settings["workers"] or workers})

    @model_validator(mode="before")
    @classmethod
    def _one_word_is_the_kind(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _slurm_has_a_partition(self) -> ExecutorSettings:
        if self.kind == "slurm" and self.partition is None:
            raise ValueError("`kind: slurm` needs a `partition`")
        return self
