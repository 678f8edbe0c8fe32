"""The second and third pass of near-duplicates: documents with like signatures are read again and compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.exact_duplicates import DUPLICATES
from curation.minhash import clusters, greedy, match_bucket, shingles
from curation.near_duplicate_work import FEW_DOCUMENTS, NearDuplicateWork, Where, read_shard, shard_folder
from curation.shards import Shard
from curation.workers import Advance, Job

BATCH_DOCUMENTS = 50_000
"""Documents of whole clusters that are compared as one job; a larger cluster is a batch of its own."""
CHUNK_DOCUMENTS = 10_000
FEW_SIGNATURES = 200_000
"""Up to so many, signatures are matched in this process: it takes microseconds each."""
_MEMBERS = pa.schema(
    [
        ("batch", pa.uint32()),
        ("cluster", pa.uint32()),
        ("priority", pa.uint32()),
        ("id", pa.string()),
        ("shingles", pa.list_(pa.uint64())),
    ]
)


def compared_candidates(
    work: NearDuplicateWork, shards: Sequence[Shard], table: pl.DataFrame, exact: pl.DataFrame, where: Where
) -> tuple[pl.DataFrame, int]:
    """Near-duplicates among what is not an exact one, and how many documents were compared."""
    members = _candidates(work, shards, where).join(
        table.select("shard", "row", "id"), on=["shard", "row"], how="inner"
    )
    members = members.join(exact.select(pl.col("dropped").alias("id")), on="id", how="anti")
    members = members.filter(pl.len().over("cluster") > 1)
    if not members.height:
        return pl.DataFrame(schema=DUPLICATES), 0
    members = members.join(_batches(members), on="cluster")
    by_shard = {shard.number: shard for shard in shards}
    parts = members.partition_by("shard", as_dict=True)
    few = members.height <= FEW_DOCUMENTS
    where.run(
        [
            Job(
                f"shingles of shard {shard}",
                _gather,
                (work, by_shard[int(str(shard))], part.drop("id", "shard")),
            )
            for (shard,), part in parts.items()
        ],
        few=few,
        description="reading candidates",
        unit="shards",
    )
    numbers = members["batch"].unique().sort().to_list()
    results = where.run(
        [Job(f"batch {number}", _compare, (work, number)) for number in numbers],
        few=few,
        description="comparing candidates",
        unit="batches",
    )
    rows = [row for found in results for row in found]
    return pl.DataFrame(rows, schema=DUPLICATES, orient="row"), members.height


def _candidates(work: NearDuplicateWork, shards: Sequence[Shard], where: Where) -> pl.DataFrame:
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
                (shard_folder(work, shard) / "signatures" / name / file).resolve()
            )
    where.run(
        [Job(f"bucket {bucket}", _match, (work, bucket)) for bucket in range(settings.buckets)],
        few=sum(shard.documents for shard in shards) <= FEW_SIGNATURES,
        description="matching signatures",
        unit="buckets",
    )
    return clusters(work.folder / "matches", work.folder / "clusters", settings)


def _match(argument: tuple[NearDuplicateWork, int], advance: Advance) -> None:
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


def _gather(argument: tuple[NearDuplicateWork, Shard, pl.DataFrame], advance: Advance) -> None:
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

    for row, document in enumerate(read_shard(work, shard)):
        if row in where:
            found = shingles(document.text, work.settings.minhash)
            rows.append((*where[row], shard.priority, document.id, found))
            if len(rows) >= CHUNK_DOCUMENTS:
                flush()
    if rows:
        flush()


def _compare(argument: tuple[NearDuplicateWork, int], advance: Advance) -> list[tuple[str, str, str, float]]:
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
