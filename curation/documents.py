"""Documents: the record that every stage reads and writes, and its parquet files.

A document file has the columns `id, text, source, url, meta`; `meta` is a JSON object as a string, or null.
Equal documents give equal file bytes, so that a hash of the file says whether a corpus has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing
from curation.errors import DataError

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("meta", pa.string()),
    ]
)
"""Stated, never inferred: a schema taken from the first document breaks on the first null or new key."""

# A row group is closed at whichever comes first; small enough to stream, large enough to compress well.
ROW_GROUP_DOCUMENTS = 8192
ROW_GROUP_CHARACTERS = 32_000_000

_REQUIRED = ("id", "text", "source")


@dataclass(frozen=True)
class Document:
    """One text of one source.

    id     : stable name, see `document_id`; equal source and text have equal ids on every machine
    text   : the text, valid Unicode (no lone surrogates), not empty
    source : name of the source (corpus) in the recipe
    url    : where it comes from; the pieces of one origin share `url` up to its last `#`
    meta   : JSON-able extras, such as `{"origin": ..., "piece": 3}`
    """

    id: str
    text: str
    source: str
    url: str | None = None
    meta: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def origin(self) -> str:
        """What this text was cut from: all pieces of one file share it. The id if nothing is known."""
        if self.meta and isinstance(self.meta.get("origin"), str):
            return str(self.meta["origin"])
        return self.url if self.url else self.id


def document_id(source: str, text: str) -> str:
    """The first 20 hex digits of sha256(source, NUL, text): 80 bits, the same on every machine and run.

    >>> document_id("wiki", "A text.")
    '3a5f03057dac3d59d904'
    """
    return hashlib.sha256(f"{source}\0{text}".encode()).hexdigest()[:20]


def write_documents(path: Path | str, documents: Iterable[Document]) -> int:
    """Write documents to one parquet file, atomically and in order, in bounded memory; return how many.

    Raises MachineError when the disk refuses, and ValueError on text that is not valid Unicode (readers
    report such records as broken, so they never come this far).
    """
    count = 0
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, DOCUMENT_SCHEMA, compression="zstd") as writer,
    ):
        for group in _row_groups(documents):
            writer.write_table(_table(group))
            count += len(group)
    return count


def iterate_documents(path: Path | str) -> Iterator[Document]:
    """Stream the documents of a parquet file, or of all those of a folder in the order of their names.

    Files with more columns (scores beside the text) are read too. Raises DataError when there is no such
    file, the folder holds none, the file is not parquet, or a needed column is missing.
    """
    for file in document_files(path):
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"This is not a readable parquet file: {_first_line(error)}",
                where=str(file),
                remedy="Remove it and run the stage that writes it again",
            ) from error
        with parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in _REQUIRED if name not in names]
            if missing:
                raise DataError(
                    f"A document file has columns id, text and source, but {', '.join(missing)} is missing",
                    where=str(file),
                    remedy="Read user files with a source of kind `local`, which makes ids",
                )
            columns = [name for name in DOCUMENT_SCHEMA.names if name in names]
            for batch in parquet.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    yield _document(row)


def read_documents(path: Path | str) -> list[Document]:
    """All documents of a parquet file or of a folder of them; errors as `iterate_documents`."""
    return list(iterate_documents(path))


def document_files(path: Path | str) -> list[Path]:
    """The parquet files that `path` names: itself, or those directly in the folder by name; none hidden."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            "There are no documents here",
            where=str(path),
            remedy="Check the path, or run the stage that writes it",
        )
    files = sorted(p for p in path.glob("*.parquet") if not p.name.startswith("."))
    if not files:
        raise DataError(
            "The folder holds no parquet files",
            where=str(path),
            remedy="Check the path, or run the stage that writes it",
        )
    return files


def _row_groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if len(group) >= ROW_GROUP_DOCUMENTS or characters >= ROW_GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _table(documents: list[Document]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "id": [d.id for d in documents],
        "text": [d.text for d in documents],
        "source": [d.source for d in documents],
        "url": [d.url for d in documents],
        "meta": [None if d.meta is None else _canonical(d.meta) for d in documents],
    }
    return pa.Table.from_pydict(columns, schema=DOCUMENT_SCHEMA)


def _document(row: dict[str, Any]) -> Document:
    meta = row.get("meta")
    return Document(row["id"], row["text"], row["source"], row.get("url"), json.loads(meta) if meta else None)


def _canonical(meta: dict[str, Any]) -> str:
    return json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n", 1)[0].rstrip(". ")
