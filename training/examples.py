"""Reading files of chats and prompts: rows of JSON, with broken ones counted and named."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from curation.errors import DataError, MachineError

BROKEN_TOLERANCE = 0.01  # share of broken rows above which a file is refused
NAMED = 5  # broken rows that are named


@dataclass(frozen=True)
class Row:
    """One JSON object of a file and where it stands (file and line)."""

    value: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Broken:
    """One row that could not be used, and why."""

    where: str
    why: str


def read_rows(path: Path | str) -> Iterator[Row | Broken]:
    """The rows of a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, in order; empty lines are passed over."""
    path = Path(path)
    if not path.is_file():
        raise DataError(
            "The data file is missing",
            where=str(path),
            remedy="Check the path; a .jsonl or .parquet file is needed",
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        for at, value in enumerate(parquet.read_table(path).to_pylist()):
            yield Row({key: item for key, item in value.items() if item is not None}, f"{path}, row {at}")
        return
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Broken(where, f"it is not JSON: {error}")
                continue
            yield Row(value, where) if isinstance(value, dict) else Broken(where, "it is not a JSON object")


def check_broken(
    broken: list[Broken], rows: int, path: Path | str, tolerance: float = BROKEN_TOLERANCE
) -> None:
    """Raise DataError when a file has no usable row, or more than the share `tolerance` of them is broken."""
    named = "; ".join(f"{b.where}: {b.why}" for b in broken[:NAMED])
    if rows == 0:
        raise DataError(
            "The file has no rows" if not broken else f"No row of the file can be used ({named})",
            where=str(path),
            remedy='Give rows such as {"messages": [...]} or {"prompt": "...", "answer": "..."}',
        )
    if len(broken) > tolerance * (rows + len(broken)):
        raise DataError(
            f"{len(broken)} of {rows + len(broken)} rows cannot be used ({named})",
            where=str(path),
            remedy=f"Mend or remove them; up to {tolerance:.0%} are passed over and counted",
        )


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a plain or compressed file; a wrong encoding becomes broken JSON, not an end of reading."""
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise MachineError(
                "Reading a .zst file needs the package zstandard", where=str(path), remedy="Install it"
            ) from error
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8", errors="replace")
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as text:
            yield text
    else:
        with path.open(encoding="utf-8", errors="replace") as text:
            yield text
