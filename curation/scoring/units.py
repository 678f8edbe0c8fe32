"""Units of work: at most `UNIT_DOCUMENTS` documents of one file, so that one huge file is never one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing
from curation.scoring.parts import part_name
from curation.scoring.rows import open_parquet, rows_within

UNIT_DOCUMENTS = 1000
UNIT_BYTES = 16 * 2**20
"""Where documents are long, a unit has fewer of them: a worker holds the texts of one."""

_PLAN_SCHEMA = pa.schema(
    [("name", pa.string()), ("file", pa.string()), ("rows", pa.list_(pa.uint32())), ("source", pa.string())]
)


@dataclass(frozen=True, eq=False)
class Unit:
    """Documents that are scored together.

    name : of the part of the score table that it makes, see `parts.part_name`
    rows : rising numbers of the documents' rows in `file`
    """

    name: str
    file: str
    rows: np.ndarray
    source: str

    @property
    def documents(self) -> int:
        return len(self.rows)


def plan_units(
    listing: pl.DataFrame, files: Sequence[Path], source: str, fingerprint: str, unit_documents: int
) -> list[Unit]:
    """Units of the documents in `listing` (`id, file, row`), none across two files, of about `UNIT_BYTES` at most.

    A file's units are a function of its wanted documents alone: the order of the files, and what other files
    hold, change nothing.
    """
    ordered = listing.sort("file", "row")
    numbers, rows = ordered["file"].to_numpy(), ordered["row"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    units = []
    for start, stop in pairwise(edges):
        if start == stop:
            continue
        file = str(files[int(numbers[start])])
        with open_parquet(file) as parquet:
            size = rows_within(parquet, UNIT_BYTES, unit_documents)
        for first in range(int(start), int(stop), size):
            last = min(first + size, int(stop))
            ids = ordered["id"][first:last].to_list()
            units.append(Unit(part_name(ids, fingerprint), file, rows[first:last].copy(), source))
    return units


def write_units(path: Path, units: Sequence[Unit]) -> None:
    """Write a plan where every worker can read it; tasks carry its name instead of its rows."""
    columns = {name: [getattr(unit, name) for unit in units] for name in _PLAN_SCHEMA.names}
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=_PLAN_SCHEMA), temporary, compression="zstd")


def read_units(path: Path | str, rank: int = 0, world_size: int = 1) -> list[Unit]:
    """The units of one task: a run of neighbours, so that a file is read from its beginning to its end."""
    table = _plan(str(path), Path(path).stat().st_mtime_ns)
    first, last = rank * table.num_rows // world_size, (rank + 1) * table.num_rows // world_size
    part = table.slice(first, last - first)
    return [
        Unit(name, file, np.asarray(rows.values, dtype=np.int64), source)
        for name, file, rows, source in zip(
            part["name"].to_pylist(),
            part["file"].to_pylist(),
            part["rows"],
            part["source"].to_pylist(),
            strict=True,
        )
    ]


@lru_cache(maxsize=2)
def _plan(path: str, stamp: int) -> pa.Table:
    return pq.read_table(path)
