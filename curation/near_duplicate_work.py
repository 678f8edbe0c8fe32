"""What the passes of exact and MinHash deduplication share: settings, shards, the folder of intermediate files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.documents import Document
from curation.errors import RecipeError
from curation.minhash import MinhashSettings
from curation.scoring.execution import Runner
from curation.shards import Shard, shard_documents
from curation.workers import Job, run_jobs

FEW_DOCUMENTS = 2_000
"""Up to so many, the work is done in this process: starting others takes longer."""


@dataclass(frozen=True)
class NearDuplicateSettings:
    """Which steps run: exact deduplication, with or without regard to case, and MinHash (None: not)."""

    exact: bool = True
    fold_case: bool = True
    minhash: MinhashSettings | None = field(default_factory=MinhashSettings)


@dataclass(frozen=True)
class NearDuplicateWork:
    """What every job needs: settings, the folder of intermediate files, and which documents count."""

    settings: NearDuplicateSettings
    folder: Path
    counts: Callable[[Document], bool] | None


@dataclass(frozen=True)
class Where:
    """Where the jobs run: on `runner`, or in `workers` processes of this machine (0: this very process)."""

    workers: int
    runner: Runner | None
    folder: Path

    def run(
        self, jobs: Sequence[Job], *, few: bool, description: str, unit: str, total: float | None = None
    ) -> list[Any]:
        """Results in the order of the jobs; `few` runs them in this process, since starting others takes longer."""
        if self.runner is None or few:
            workers = 0 if few else self.workers
            return run_jobs(jobs, workers=workers, description=description, total=total, unit=unit)
        from curation.scoring.jobs import run_jobs_on

        return run_jobs_on(self.runner, jobs, self.folder / "jobs", description=description)


def check_near_duplicate_settings(settings: NearDuplicateSettings) -> None:
    """Raise RecipeError for settings that mean nothing."""
    chosen = settings.minhash
    if chosen is None:
        return
    if not 0 < chosen.similarity <= 1:
        raise RecipeError(
            f"The similarity of near-duplicates is {chosen.similarity}",
            remedy="Give a Jaccard similarity above 0 and at most 1, such as 0.8",
        )
    for name in ("words", "buckets", "hashes"):
        if getattr(chosen, name) < 1:
            raise RecipeError(
                f"MinHash with {getattr(chosen, name)} {name} is impossible", remedy="Give 1 or more"
            )


def shard_folder(work: NearDuplicateWork, shard: Shard) -> Path:
    return work.folder / f"shard-{shard.number:05d}"


def read_shard(work: NearDuplicateWork, shard: Shard) -> Any:
    wanted = work.counts
    return (d for d in shard_documents(shard) if wanted is None or wanted(d))
