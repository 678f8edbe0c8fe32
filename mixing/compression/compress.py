"""The rounds of compression on disk, beside training on the uncompressed set with equal tokens.

    seed-S/<arm>/round-R/benefits/        the benefits of every raw document, before the round's training
    seed-S/<arm>/round-R/train/           what `training.loop.train` writes
    seed-S/<arm>/round-R/evaluations/     likelihood of every measured document
    compression.json                      rounds, why they ended, and the comparison of the arms

An arm is `compressed` or `original`, and, where a teacher is given, `compressed-taught` and `original-taught`. All
arms of a seed start from one checkpoint, train the same number of tokens and read each source in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.atomic import read_json, write_json
from curation.errors import RecipeError
from curation.workers import Job, run_jobs
from mixing.comparison import compare_tables
from mixing.compression.arms import Arm, compressed_arm, original_arm
from mixing.compression.settings import CompressionSettings
from mixing.evaluations import EVALUATION_SCHEMA
from mixing.proxy import ProxySettings

COMPRESSED, ORIGINAL, TAUGHT = "compressed", "original", "-taught"


def compress(
    start: Path,
    probes: Mapping[str, Path],
    settings: ProxySettings,
    folder: Path | str,
    *,
    compression: CompressionSettings | None = None,
    seeds: Sequence[int] = (1,),
    workers: int = 0,
) -> dict[str, Any]:
    """Compress the raw set `settings.tokens` from the checkpoint `start`; returns the content of compression.json.

    start    : a checkpoint folder of the trainer (with its optimizer, for the adam preconditioner)
    probes   : files of the probing sets that make the directions, by capability
    settings : model, training of ONE round, raw tokens, and in `settings.probes` what is measured: text that no
               direction was made from
    Killed, it goes on where it was. Raises RecipeError for settings that cannot be; a raw set in which nothing helps
    is not an error: it ends after the first scoring, and nothing is trained.
    """
    folder, chosen = Path(folder), compression or CompressionSettings()
    _check(chosen, settings, seeds)
    arms = [""] if chosen.teacher is None else ["", TAUGHT]
    tasks = [
        Arm(
            folder / f"seed-{seed}" / (COMPRESSED + taught),
            Path(start),
            seed,
            bool(taught),
            settings,
            chosen,
            dict(probes),
        )
        for taught in arms
        for seed in seeds
    ]
    run_jobs(
        [Job(f"{arm.folder.name}, seed {arm.seed}", compressed_arm, arm) for arm in tasks],
        workers=workers,
        description="compressing",
        unit="arms",
    )
    plain = [
        (replace(arm, folder=arm.folder.parent / arm.folder.name.replace(COMPRESSED, ORIGINAL)), arm.folder)
        for arm in tasks
    ]
    run_jobs(
        [Job(f"{arm.folder.name}, seed {arm.seed}", original_arm, (arm, beside)) for arm, beside in plain],
        workers=workers,
        description="uncompressed",
        unit="arms",
    )
    result = _collect(folder, arms, seeds, chosen)
    write_json(folder / "compression.json", result)
    return result


def _collect(
    folder: Path, arms: Sequence[str], seeds: Sequence[int], settings: CompressionSettings
) -> dict[str, Any]:
    records: dict[str, Any] = {}
    for taught in arms:
        for seed in seeds:
            for kind in (COMPRESSED, ORIGINAL):
                arm = folder / f"seed-{seed}" / (kind + taught)
                records.setdefault(kind + taught, {})[str(seed)] = read_json(arm / "arm.json")
    comparison = {(taught or "plain").lstrip("-"): _compared(folder, taught, seeds) for taught in arms}
    return {
        "schema": 1,
        "sign": "benefit: positive lowers the probes' loss",
        "unit": "bits per byte; negative differences: the compressed set is better",
        "rules": {
            "rounds": settings.rounds,
            "least_positive": settings.least_positive,
            "gathered": settings.gathered,
            "max_epochs": settings.max_epochs,
        },
        "seeds": list(seeds),
        "arms": records,
        "comparison": comparison,
    }


def _compared(folder: Path, taught: str, seeds: Sequence[int]) -> dict[str, Any] | None:
    """Compressed against original at the end of training; None when nothing was trained."""
    tables: dict[str, dict[int, dict[str, pa.Table]]] = {}
    for kind in (COMPRESSED, ORIGINAL):
        for seed in seeds:
            arm = folder / f"seed-{seed}" / (kind + taught)
            last = read_json(arm / "arm.json")["last_evaluation"]
            if last is None:
                return None
            tables.setdefault(kind, {})[seed] = _tables(folder / last)
    return compare_tables(tables, against=ORIGINAL)


def _tables(path: Path) -> dict[str, pa.Table]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, schema=EVALUATION_SCHEMA)
    names = sorted(set(table["probe"].to_pylist()))
    return {n: table.filter(pc.equal(table["probe"], n)).drop_columns(["probe"]) for n in names}


def _check(compression: CompressionSettings, settings: ProxySettings, seeds: Sequence[int]) -> None:
    wrong = {
        "rounds": compression.rounds < 1,
        "seeds": not seeds or len(set(seeds)) != len(seeds),
        "least_positive": not 0 <= compression.least_positive < 1,
        "gathered": not 0 <= compression.gathered < 1,
        "max_epochs": compression.max_epochs <= 0,
        "documents_per_source": (compression.documents_per_source or 1) < 1,
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise RecipeError(
            f"`{name}` cannot be {seeds if name == 'seeds' else getattr(compression, name)!r}",
            where=f"compression.{name}",
            remedy="See CompressionSettings for its range",
        )
    unknown = sorted(set(compression.mixture or {}) - set(settings.tokens))
    if unknown:
        raise RecipeError(
            f"The mixture names source {unknown[0]!r}, which has no tokens",
            where="compression.mixture",
            remedy=f"Sources with tokens: {', '.join(sorted(settings.tokens))}",
        )
