"""Rows of a task: from a local file, or from a dataset of the hub.

Unlike a corpus, of which a broken record may be lost, a task is read whole or not at all: a score over fewer
questions is another score.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

from curation.atomic import hash_file, hash_value
from curation.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def is_local(data: str) -> bool:
    """Whether `data` names a file, rather than a dataset of the hub."""
    return data.lower().endswith(SUFFIXES) or Path(data).exists()


def read_rows(
    data: str, subset: str | None = None, split: str = "test", revision: str | None = None
) -> list[dict[str, Any]]:
    """All rows in their order, nested fields kept. DataError naming the line, or saying what the hub said."""
    return _local_rows(Path(data)) if is_local(data) else _hub_rows(data, subset, split, revision)


def hash_rows(data: str, rows: list[dict[str, Any]]) -> str:
    """Hex sha256 of the file, or of the rows that came from the hub."""
    return hash_file(data) if is_local(data) else hash_value(rows)


def _local_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError("There is no such file", where=str(path), remedy="Check the path")
    name = path.name.lower()
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"This is not a readable parquet file: {error}", where=str(path)) from error
    if not name.endswith(SUFFIXES):
        raise DataError(
            "A task's data is JSON lines or parquet",
            where=str(path),
            remedy=f"Name it with one of {', '.join(SUFFIXES)}",
        )
    try:
        content = path.read_bytes()
        if name.endswith(".gz"):
            content = gzip.decompress(content)
        elif name.endswith(".zst"):
            import zstandard

            content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
    except Exception as error:
        raise DataError(f"The file cannot be read: {error}", where=str(path)) from error
    # Split at line feeds alone: U+2028 inside a string does not end a line.
    return [_row(line, f"{path}:{n}") for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if b"\\ud" in line.lower():  # half of a surrogate pair is no text
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"The line is not JSON: {error}", where=where, remedy="Mend or remove it") from error
    if not isinstance(row, dict):
        raise DataError("The line is not a JSON object", where=where, remedy="Write one object per line")
    return row


def _hub_rows(data: str, subset: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(data, subset, split=split, revision=revision)
        return [dict(row) for row in loaded]
    except Exception as error:  # whatever the network, the hub and the formats of files come up with
        raise DataError(
            f"The dataset could not be read from the hub: {str(error).splitlines()[0] if str(error) else error!r}",
            where=f"{data}{f' ({subset})' if subset else ''}, split {split}",
            remedy="Without a network give a local copy with --data TASK=FILE (.jsonl or .parquet)",
        ) from error
