"""Exact and MinHash deduplication across sources, before anything is scored: what is a copy need not be judged.

Of equal or nearly equal documents the first in keep-order stays: that of the source named first, then the smaller id.
Nothing is removed here; the table `near_duplicates.parquet` (`dropped, kept_instead, kind, similarity`) says what the
cascade is to leave out, and the report beside it how much that is. `kept_instead` always names a document that is
kept: when the first of equal texts is itself a near-duplicate, its copies name what that one duplicates.

Three passes over shards (row groups of the files, `curation.shards`), each a job of our worker pool or, like scoring,
of a Ray or Slurm cluster: hashes and signatures; shingles of the documents in a cluster, written by batches of whole
clusters; and the comparison of each batch. The signatures of a killed run are used again. Memory: a few tens of bytes
per document for ids and hashes, datatrove's union-find of the documents in clusters (some 200 bytes each), and one
batch per worker.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value, read_json, replacing, replacing_folder, write_json, writing_to
from curation.documents import Document
from curation.exact_duplicates import DUPLICATES, exact_duplicates, text_hash
from curation.minhash import write_signatures
from curation.near_duplicate_candidates import compared_candidates
from curation.near_duplicate_work import (
    FEW_DOCUMENTS,
    NearDuplicateSettings,
    NearDuplicateWork,
    Where,
    check_near_duplicate_settings,
    read_shard,
    shard_folder,
)
from curation.scoring.execution import Runner
from curation.shards import Shard, shards_of
from curation.workers import Advance, Job

_FOUND = pa.schema([("id", pa.string()), ("hash", pa.binary(16)), ("characters", pa.int64())])


def find_near_duplicates(
    sources: Mapping[str, Path],
    out: Path,
    settings: NearDuplicateSettings,
    *,
    counts: Callable[[Document], bool] | None = None,
    counts_key: Any = None,
    workers: int = 0,
    runner: Runner | None = None,
    shard_size: int | None = None,
) -> pl.DataFrame:
    """Write `out/near_duplicates.parquet` and `out/report.json`, and return the table, sorted by `dropped`.

    sources    : folder or file of documents by source; their order is the priority
    counts     : picklable; documents for which it is false are as if they were not there
    counts_key : JSON-able; stands for `counts` when a killed run asks whether its signatures are still right
    workers    : processes; 0 works in this one
    runner     : in place of `workers`, see `scoring.runners.open_runner`; `out` and the sources must then be on a disk
                 that all its machines see
    shard_size : rows of a shard. The result depends on none of these three

    Raises RecipeError for impossible settings, DataError when two documents have one id or a file is not readable.
    """
    check_near_duplicate_settings(settings)
    shards = shards_of(sources, shard_size)
    work = NearDuplicateWork(settings, out / ".work", counts)
    _open_work(work, shards, counts_key)
    missing = [shard for shard in shards if not shard_folder(work, shard).is_dir()]
    few = sum(shard.documents for shard in shards) <= FEW_DOCUMENTS
    where = Where(0 if few else workers, None if few else runner, work.folder)
    where.run(
        [Job(f"{s.source} {s.number}", _sign, (work, s)) for s in missing],
        few=few,
        description="hashing documents",
        total=sum(shard.documents for shard in missing),
        unit="documents",
    )
    table = _ids(work, shards)
    exact = exact_duplicates(table)
    if not settings.exact:
        exact = exact.clear()
    near, compared = pl.DataFrame(schema=DUPLICATES), 0
    if settings.minhash is not None:
        near, compared = compared_candidates(work, shards, table, exact, where)
    found = _resolved(exact, near)
    with replacing(out / "near_duplicates.parquet") as temporary:
        found.write_parquet(temporary, compression="zstd")
    write_json(out / "report.json", _report(table, found, list(sources), settings, compared))
    shutil.rmtree(work.folder)
    return found


def _open_work(work: NearDuplicateWork, shards: Sequence[Shard], counts_key: Any) -> None:
    """Keep the signatures of an earlier attempt if they were made from these files by these settings."""
    files = {file: Path(file).stat() for shard in shards for file, _ in shard.groups}
    key = hash_value(
        [
            asdict(work.settings),
            counts_key,
            [[asdict(shard)] for shard in shards],
            [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files.items()],
        ]
    )
    record = work.folder / "key.json"
    with writing_to(work.folder):
        if not (record.is_file() and read_json(record) == key):
            shutil.rmtree(work.folder, ignore_errors=True)
            work.folder.mkdir(parents=True)
    write_json(record, key)
    for name in ("signatures", "matches", "clusters", "members", "jobs"):
        shutil.rmtree(work.folder / name, ignore_errors=True)


def _sign(argument: tuple[NearDuplicateWork, Shard], advance: Advance) -> None:
    """Ids, hashes and signatures of a shard's documents."""
    work, shard = argument
    ids: list[str] = []
    hashes: list[bytes] = []
    characters: list[int] = []

    def texts() -> Any:
        for document in read_shard(work, shard):
            ids.append(document.id)
            hashes.append(text_hash(document.text, fold_case=work.settings.fold_case))
            characters.append(len(document.text))
            advance(1)
            yield document.text

    with replacing_folder(shard_folder(work, shard)) as folder:
        if work.settings.minhash is not None:
            write_signatures(texts(), folder / "signatures", shard.number, work.settings.minhash)
        else:
            for _ in texts():
                pass
        columns = {"id": ids, "hash": hashes, "characters": characters}
        pq.write_table(pa.Table.from_pydict(columns, schema=_FOUND), folder / "documents.parquet")


def _ids(work: NearDuplicateWork, shards: Sequence[Shard]) -> pl.DataFrame:
    """`shard, row, source, priority, id, hash, characters` of every document."""
    parts = []
    for shard in shards:
        found = pl.read_parquet(shard_folder(work, shard) / "documents.parquet")
        parts.append(
            found.with_row_index("row").with_columns(
                pl.lit(shard.number, pl.UInt32).alias("shard"),
                pl.lit(shard.priority, pl.UInt32).alias("priority"),
                pl.lit(shard.source).alias("source"),
            )
        )
    return pl.concat(parts)


def _resolved(exact: pl.DataFrame, near: pl.DataFrame) -> pl.DataFrame:
    """Both tables as one, in which copies of a near-duplicate name the document that is kept."""
    ends = near.select(
        pl.col("dropped").alias("kept_instead"), pl.col("kept_instead").alias("end"), "similarity"
    )
    joined = exact.join(ends, on="kept_instead", how="left", suffix="_near")
    moved = joined.select(
        "dropped",
        pl.coalesce("end", "kept_instead").alias("kept_instead"),
        pl.when(pl.col("end").is_null()).then(pl.lit("exact")).otherwise(pl.lit("minhash")).alias("kind"),
        pl.coalesce("similarity_near", "similarity").alias("similarity"),
    )
    return pl.concat([moved, near]).sort("dropped")


def _report(
    table: pl.DataFrame,
    found: pl.DataFrame,
    sources: list[str],
    settings: NearDuplicateSettings,
    compared: int,
) -> dict[str, Any]:
    """Counts of each source: kept + exact + minhash = documents."""
    kinds = table.select("id", "source").join(
        found.select(pl.col("dropped").alias("id"), "kind"), on="id", how="left"
    )
    rows = []
    for source in sources:
        own = kinds.filter(pl.col("source") == source)
        dropped = {kind: own.filter(pl.col("kind") == kind).height for kind in ("exact", "minhash")}
        rows.append({"source": source, "documents": own.height, **dropped, "kept": own["kind"].null_count()})
    return {"settings": asdict(settings), "compared": compared, "sources": rows}
