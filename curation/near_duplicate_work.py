"""What the passes of exact and MinHash deduplication share: settings, shards, the folder of intermediate files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.documents import Document
from curation.errors import RecipeError
from curation.minhash import MinhashSettings
from curation.shards import Shard, shard_documents

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
