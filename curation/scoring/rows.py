"""Rows of parquet files by their numbers: what is held is one batch, and row groups without any are passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import DataError

BATCH_ROWS = 8192
BATCH_BYTES = 16 * 2**20
_BUFFER_BYTES = 2**20


class RowReader:
    """Reads rows of one file; neighbouring requests go on where the last one ended."""

    def __init__(self, file: Path | str, columns: Sequence[str]) -> None:
        self.file = str(file)
        self._parquet = open_parquet(file)
        self._columns = [name for name in columns if name in self._parquet.schema_arrow.names]
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum([0, *sizes])
        self._batch_rows = rows_within(self._parquet, BATCH_BYTES, BATCH_ROWS)
        self._seek(0)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right")) - 1

    def _seek(self, group: int) -> None:
        """Start again at the first row of a row group."""
        self._first = self._next = int(self._ends[group])
        self._batch: pa.RecordBatch | None = None
        self._batches = self._parquet.iter_batches(
            self._batch_rows,
            row_groups=list(range(group, len(self._ends) - 1)),
            columns=self._columns,
            use_threads=False,
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> Iterator[pa.RecordBatch]:
        """The rows, whose numbers rise, in batches; DataError when the file is damaged."""
        rows = np.asarray(rows, dtype=np.int64)
        at = 0
        try:
            while at < len(rows):
                row = int(rows[at])
                here = self._group(self._next - (self._batch is not None))
                if row < self._first or self._group(row) > here:
                    self._seek(self._group(row))
                batch = self._batch
                while batch is None or row >= self._next:
                    batch = self._batch = next(self._batches)
                    self._first, self._next = self._next, self._next + len(batch)
                stop = int(np.searchsorted(rows, self._next))
                yield batch.take(pa.array(rows[at:stop] - self._first))
                at = stop
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.file, error) from error


def open_parquet(file: Path | str) -> pq.ParquetFile:
    """The file, to be read through a small buffer however large its row groups are; DataError if it cannot be."""
    try:
        return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def rows_within(parquet: pq.ParquetFile, most_bytes: int, most_rows: int) -> int:
    """How many rows hold about `most_bytes` of text where texts are longest, by the file's own statistics."""
    rows = most_rows
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == "text")
        rows = min(rows, most_bytes * group.num_rows // max(size, 1))
    return max(1, rows)


def iterate_batches(file: Path | str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of some columns of a parquet file, in order; DataError when it cannot be read."""
    try:
        with open_parquet(file) as parquet:
            present = [name for name in columns if name in parquet.schema_arrow.names]
            yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=present)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path | str, error: Exception) -> DataError:
    """The sentence for a document file that is damaged or not there."""
    cause: str = (str(error) or type(error).__name__).split("\n", 1)[0]
    return DataError(
        "This document file cannot be read: " + cause.rstrip(". "),
        where=str(file),
        remedy="Remove it and run the stage that writes it again",
    )
