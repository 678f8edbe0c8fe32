"""Exact and MinHash deduplication across sources, before anything is scored: what is a copy need not be judged.

Of equal or nearly equal documents the first in keep-order stays: that of the source named first, then the smaller id.
Nothing is removed here; the table `near_duplicates.parquet` (`dropped, kept_instead, kind, similarity`) says what the
cascade is to leave out, and the report beside it how much that is. `kept_instead` always names a document that is
kept: when the first of equal texts is itself a near-duplicate, its copies name what that one duplicates.

Three passes over shards (row groups of the files, `curation.shards`), each a job of our worker pool: hashes and
signatures; shingles of the documents in a cluster, written by batches of whole clusters; and the comparison of each
batch. The signatures of a killed run are used again. Memory: a few tens of bytes per document for ids and hashes,
datatrove's union-find of the documents in clusters (some 200 bytes each), and one batch per worker.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value, read_json, replacing, replacing_folder, write_json, writing_to
from curation.documents import Document
from curation.errors import RecipeError
from curation.exact_duplicates import DUPLICATES, exact_duplicates, text_hash
from curation.minhash import MinhashSettings, clusters, greedy, match_bucket, shingles, write_signatures
from curation.shards import Shard, shard_documents, shards_of
from curation.workers import Advance, Job, run_jobs

BATCH_DOCUMENTS = 50_000
"""Documents of whole clusters that are compared as one job; a larger cluster is a batch of its own."""
CHUNK_DOCUMENTS = 10_000
FEW_DOCUMENTS = 2_000
"""Up to so many, the work is done in this process: starting others takes longer."""
FEW_SIGNATURES = 200_000
"""The same for matching signatures, which takes microseconds each."""

_FOUND = pa.schema([("id", pa.string()), ("hash", pa.binary(16)), ("characters", pa.int64())])
_MEMBERS = pa.schema(
    [
        ("batch", pa.uint32()),
        ("cluster", pa.uint32()),
        ("priority", pa.uint32()),
        ("id", pa.string()),
        ("shingles", pa.list_(pa.uint64())),
    ]
)


@dataclass(frozen=True)
class NearDuplicateSettings:
    """Which steps run: exact deduplication, with or without regard to case, and MinHash (None: not)."""

    exact: bool = True
    fold_case: bool = True
    minhash: MinhashSettings | None = field(default_factory=MinhashSettings)


@dataclass(frozen=True)
class _Work:
    """What every job needs: settings, the folder of intermediate files, and which documents count."""

    settings: NearDuplicateSettings
    folder: Path
    counts: Callable[[Document], bool] | None


def find_near_duplicates(
    sources: Mapping[str, Path],
    out: Path,
    settings: NearDuplicateSettings,
    *,
    counts: Callable[[Document], bool] | None = None,
    counts_key: Any = None,
    workers: int = 0,
    shard_size: int | None = None,
) -> pl.DataFrame:
    """Write `out/near_duplicates.parquet` and `out/report.json`, and return the table, sorted by `dropped`.

    sources    : folder or file of documents by source; their order is the priority
    counts     : picklable; documents for which it is false are as if they were not there
    counts_key : JSON-able; stands for `counts` when a killed run asks whether its signatures are still right
    workers    : processes; 0 works in this one. The result does not depend on it, nor on `shard_size` (rows)

    Raises RecipeError for impossible settings, DataError when two documents have one id or a file is not readable.
    """
    check_near_duplicate_settings(settings)
    shards = shards_of(sources, shard_size)
    work = _Work(settings, out / ".work", counts)
    _open_work(work, shards, counts_key)
    missing = [shard for shard in shards if not _shard_folder(work, shard).is_dir()]
    if sum(shard.documents for shard in shards) <= FEW_DOCUMENTS:
        workers = 0
    run_jobs(
        [Job(f"{s.source} {s.number}", _sign, (work, s)) for s in missing],
        workers=workers,
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
        near, compared = _minhash(work, shards, table, exact, workers)
    found = _resolved(exact, near)
    with replacing(out / "near_duplicates.parquet") as temporary:
        found.write_parquet(temporary, compression="zstd")
    write_json(out / "report.json", _report(table, found, list(sources), settings, compared))
    shutil.rmtree(work.folder)
    return found


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


def _open_work(work: _Work, shards: Sequence[Shard], counts_key: Any) -> None:
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
    for name in ("signatures", "matches", "clusters", "members"):
        shutil.rmtree(work.folder / name, ignore_errors=True)


def _shard_folder(work: _Work, shard: Shard) -> Path:
    return work.folder / f"shard-{shard.number:05d}"


def _read(work: _Work, shard: Shard) -> Any:
    wanted = work.counts
    return (d for d in shard_documents(shard) if wanted is None or wanted(d))


def _sign(argument: tuple[_Work, Shard], advance: Advance) -> None:
    """Ids, hashes and signatures of a shard's documents."""
    work, shard = argument
    ids: list[str] = []
    hashes: list[bytes] = []
    characters: list[int] = []

    def texts() -> Any:
        for document in _read(work, shard):
            ids.append(document.id)
            hashes.append(text_hash(document.text, fold_case=work.settings.fold_case))
            characters.append(len(document.text))
            advance(1)
            yield document.text

    with replacing_folder(_shard_folder(work, shard)) as folder:
        if work.settings.minhash is not None:
            write_signatures(texts(), folder / "signatures", shard.number, work.settings.minhash)
        else:
            for _ in texts():
                pass
        columns = {"id": ids, "hash": hashes, "characters": characters}
        pq.write_table(pa.Table.from_pydict(columns, schema=_FOUND), folder / "documents.parquet")


def _ids(work: _Work, shards: Sequence[Shard]) -> pl.DataFrame:
    """`shard, row, source, priority, id, hash, characters` of every document."""
    parts = []
    for shard in shards:
        found = pl.read_parquet(_shard_folder(work, shard) / "documents.parquet")
        parts.append(
            found.with_row_index("row").with_columns(
                pl.lit(shard.number, pl.UInt32).alias("shard"),
                pl.lit(shard.priority, pl.UInt32).alias("priority"),
                pl.lit(shard.source).alias("source"),
            )
        )
    return pl.concat(parts)


def _minhash(
    work: _Work, shards: Sequence[Shard], table: pl.DataFrame, exact: pl.DataFrame, workers: int
) -> tuple[pl.DataFrame, int]:
    """Near-duplicates among what is not an exact one, and how many documents were compared."""
    members = _candidates(work, shards, workers).join(
        table.select("shard", "row", "id"), on=["shard", "row"], how="inner"
    )
    members = members.join(exact.select(pl.col("dropped").alias("id")), on="id", how="anti")
    members = members.filter(pl.len().over("cluster") > 1)
    if not members.height:
        return pl.DataFrame(schema=DUPLICATES), 0
    members = members.join(_batches(members), on="cluster")
    by_shard = {shard.number: shard for shard in shards}
    parts = members.partition_by("shard", as_dict=True)
    if members.height <= FEW_DOCUMENTS:
        workers = 0
    run_jobs(
        [
            Job(
                f"shingles of shard {shard}",
                _gather,
                (work, by_shard[int(str(shard))], part.drop("id", "shard")),
            )
            for (shard,), part in parts.items()
        ],
        workers=workers,
        description="reading candidates",
        unit="shards",
    )
    numbers = members["batch"].unique().sort().to_list()
    results = run_jobs(
        [Job(f"batch {number}", _compare, (work, number)) for number in numbers],
        workers=workers,
        description="comparing candidates",
        unit="batches",
    )
    rows = [row for found in results for row in found]
    return pl.DataFrame(rows, schema=DUPLICATES, orient="row"), members.height


def _candidates(work: _Work, shards: Sequence[Shard], workers: int) -> pl.DataFrame:
    """datatrove's clusters: `shard, row, cluster`."""
    settings = work.settings.minhash
    assert settings is not None
    flat = work.folder / "signatures"
    for bucket in range(settings.buckets):
        name = f"bucket_{bucket:03d}"
        (flat / name).mkdir(parents=True)
        for shard in shards:
            file = f"{shard.number:05d}.minhash.sig"
            (flat / name / file).symlink_to(
                (_shard_folder(work, shard) / "signatures" / name / file).resolve()
            )
    if sum(shard.documents for shard in shards) <= FEW_SIGNATURES:
        workers = 0
    run_jobs(
        [Job(f"bucket {bucket}", _match, (work, bucket)) for bucket in range(settings.buckets)],
        workers=workers,
        description="matching signatures",
        unit="buckets",
    )
    return clusters(work.folder / "matches", work.folder / "clusters", settings)


def _match(argument: tuple[_Work, int], advance: Advance) -> None:
    work, bucket = argument
    assert work.settings.minhash is not None
    match_bucket(work.folder / "signatures", work.folder / "matches", bucket, work.settings.minhash)


def _batches(members: pl.DataFrame) -> pl.DataFrame:
    """`cluster, batch`: whole clusters, about `BATCH_DOCUMENTS` documents to a batch."""
    sizes = members.group_by("cluster").len().sort("cluster")
    return sizes.select(
        "cluster",
        ((pl.col("len").cum_sum() - pl.col("len")) // BATCH_DOCUMENTS).cast(pl.UInt32).alias("batch"),
    )


def _gather(argument: tuple[_Work, Shard, pl.DataFrame], advance: Advance) -> None:
    """Write the shingles of a shard's candidates, a row group for each batch."""
    work, shard, wanted = argument
    assert work.settings.minhash is not None
    where = {
        row: (batch, cluster) for row, cluster, batch in wanted.select("row", "cluster", "batch").iter_rows()
    }
    rows: list[tuple[int, int, int, str, np.ndarray]] = []
    written = 0

    def flush() -> None:
        nonlocal written, rows
        rows.sort(key=lambda row: (row[0], row[1], row[3]))
        folder = work.folder / "members"
        folder.mkdir(exist_ok=True)
        with pq.ParquetWriter(folder / f"{shard.number:05d}-{written:05d}.parquet", _MEMBERS) as writer:
            for batch in sorted({row[0] for row in rows}):
                columns = zip(*(row for row in rows if row[0] == batch), strict=True)
                arrays = [list(column) for column in columns]
                writer.write_table(pa.table(dict(zip(_MEMBERS.names, arrays, strict=True)), schema=_MEMBERS))
        written, rows = written + 1, []

    for row, document in enumerate(_read(work, shard)):
        if row in where:
            found = shingles(document.text, work.settings.minhash)
            rows.append((*where[row], shard.priority, document.id, found))
            if len(rows) >= CHUNK_DOCUMENTS:
                flush()
    if rows:
        flush()


def _compare(argument: tuple[_Work, int], advance: Advance) -> list[tuple[str, str, str, float]]:
    """The near-duplicates of a batch of clusters."""
    work, batch = argument
    assert work.settings.minhash is not None
    files = sorted((work.folder / "members").glob("*.parquet"))
    tables = [pq.read_table(file, filters=[("batch", "=", batch)]) for file in files]
    found = pl.DataFrame(pa.concat_tables(tables)).sort("cluster", "priority", "id")
    rows = []
    for members in found.partition_by("cluster", maintain_order=True):
        ids = members["id"].to_list()
        sets = [np.asarray(value, dtype=np.uint64) for value in members["shingles"]]
        for dropped, kept, jaccard in greedy(sets, work.settings.minhash.similarity):
            rows.append((ids[dropped], ids[kept], "minhash", jaccard))
    return rows


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
