"""Shards: a corpus of parquet files divided into pieces of work of about equal size, inside files as well.

A piece is a list of row groups, so that one huge file is many pieces and many small files are one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from curation.documents import DOCUMENT_SCHEMA, Document, document_files

SHARD_DOCUMENTS = 16_384
MOST_SHARDS = 500
"""datatrove's bucket step opens a file of every shard at once, and systems allow about a thousand."""


@dataclass(frozen=True)
class Shard:
    """A piece of one source: row groups of its files, in order.

    groups    : pairs of a file and the number of one of its row groups
    priority  : place of the source among the sources; smaller is kept first
    documents : rows of the groups
    """

    number: int
    source: str
    priority: int
    groups: tuple[tuple[str, int], ...]
    documents: int


def shards_of(sources: Mapping[str, Path], shard_documents: int | None = None) -> list[Shard]:
    """Shards of all sources in order; a source's folder or file is read as `documents.iterate_documents` does.

    shard_documents : rows of a shard, as nearly as row groups allow; when None, what gives at most about 500 shards
    """
    rows = {
        source: [
            (str(file), group, parquet.metadata.row_group(group).num_rows)
            for file in document_files(folder)
            for parquet in [pq.ParquetFile(file)]
            for group in range(parquet.metadata.num_row_groups)
        ]
        for source, folder in sources.items()
    }
    total = sum(count for found in rows.values() for _, _, count in found)
    size = shard_documents or max(SHARD_DOCUMENTS, -(-total // MOST_SHARDS))
    shards: list[Shard] = []
    for priority, (source, found) in enumerate(rows.items()):
        groups: list[tuple[str, int]] = []
        held = 0
        for number, (file, group, count) in enumerate(found, 1):
            groups.append((file, group))
            held += count
            if held >= size or number == len(found):
                shards.append(Shard(len(shards), source, priority, tuple(groups), held))
                groups, held = [], 0
    return shards


def shard_documents(shard: Shard) -> Iterator[Document]:
    """The documents of a shard, in the order of its rows, in bounded memory."""
    for file, group in shard.groups:
        with pq.ParquetFile(file) as parquet:
            columns = [name for name in DOCUMENT_SCHEMA.names if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    meta = row.get("meta")
                    extra = json.loads(meta) if meta else None
                    yield Document(row["id"], row["text"], row["source"], row.get("url"), extra)
