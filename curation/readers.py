"""Readers of user files: .jsonl, .jsonl.gz, .jsonl.zst, .parquet and .txt, with every broken record named.

datatrove reads these formats too, but it skips unparsable lines and empty texts with a log message and no
count, makes ids from file names and line numbers, and passes the first part of a truncated gzip on as if it
were whole. A corpus that loses a tenth of itself in silence gives wrong mixtures, so here each record is
either a document or a `BrokenRecord` that says where and why, and reading goes on after it.

A record is `{"text", "id"?, "source"?, "url"?}`. The text is looked for under one name only (`text_field`,
`text` if not said otherwise); a record without it is broken and the message lists the fields it has. Other
fields that hold a short string, a finite number or a truth value are kept in `meta`; an object under `meta`
or `metadata` is flattened into it. Lines end at "\\n" and nowhere else: U+2028 is text.
"""

from __future__ import annotations

import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from curation.documents import Document
from curation.errors import DataError
from curation.records import BROKEN_EXAMPLES, BrokenRecord, ReadCounts, RecordMaker

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_RECORD_BYTES = 256 * 2**20
"""A longer line is broken: it is nearly always a file that is not JSON lines, or a decompression bomb."""
TEXT_PART_BYTES = 16 * 2**20
"""A .txt file is one document; a longer one is given in parts that end at a line break."""

_ADVICE = {
    ".json": "Write one JSON object per line and call the file .jsonl",
    ".csv": "Convert it to .parquet or .jsonl, with the text in a field `text`",
    ".tsv": "Convert it to .parquet or .jsonl, with the text in a field `text`",
    ".md": "Rename it to .txt",
    ".gz": "If it holds JSON lines, name it .jsonl.gz",
    ".zst": "If it holds JSON lines, name it .jsonl.zst",
    ".zip": "Unpack it first",
    ".tar": "Unpack it first",
}


def read_file(
    path: Path | str, *, source: str | None = None, text_field: str = "text", label: str | None = None
) -> Iterator[Document | BrokenRecord]:
    """Stream the records of one file in their order, in memory that does not grow with the file.

    source     : the documents' source; by default the record's own `source`, else the file's name
    text_field : the field (column) that holds the text
    label      : the file's name in messages; the path by default

    A document's id is the record's own `id` if it has one, else `document_id(source, text)`.
    Raises DataError when there is no such file, it may not be read, or its extension is unknown.
    """
    path = Path(path)
    extension = extension_of(path)
    if not path.is_file():
        found = "This is a folder, not a file" if path.is_dir() else "There is no such file"
        raise DataError(found, where=str(path), remedy="Check the path")
    record = RecordMaker(label or str(path), source, path.name[: -len(extension)], text_field)
    try:
        handle = path.open("rb")
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror}", where=str(path)) from error
    if extension == ".parquet":
        return _read_parquet(handle, record)
    if extension == ".txt":
        return _read_text(handle, record)
    return _read_json_lines(handle, extension, record)


def read_files(
    paths: Iterable[Path | str], *, broken_tolerance: float = 0.01, source: str | None = None
) -> tuple[list[Document], ReadCounts]:
    """All documents of several files, and the counts; DataError as `read_file` and `ReadCounts.check`."""
    documents: list[Document] = []
    total = ReadCounts()
    for path in paths:
        counts = ReadCounts()
        documents += counts.documents(read_file(path, source=source))
        counts.check(str(path), broken_tolerance, option=None)
        total = ReadCounts(
            total.read + counts.read,
            total.broken + counts.broken,
            total.empty + counts.empty,
            (total.examples + counts.examples)[: 2 * BROKEN_EXAMPLES],
        )
    return documents, total


def extension_of(path: Path | str) -> str:
    """The known extension of a file; DataError with a suggestion if there is none."""
    name = Path(path).name.lower()
    for extension in EXTENSIONS:
        if name.endswith(extension):
            return extension
    last = Path(name).suffix
    close = difflib.get_close_matches("." + name.split(".", 1)[-1], EXTENSIONS, n=1)
    advice = _ADVICE.get(last) or (
        f"Did you mean {close[0]}?" if close else "Convert it to one of these"
    ).rstrip("?")
    raise DataError(
        f"Files named {last or 'without an extension'} are not read; known are {', '.join(EXTENSIONS)}",
        where=str(path),
        remedy=advice,
    )


def _read_json_lines(
    handle: BinaryIO, extension: str, record: RecordMaker
) -> Iterator[Document | BrokenRecord]:
    number = 0
    with handle:
        try:
            for number, line in _lines(_decompressed(handle, extension)):
                if line is None:
                    yield record.broken(f"line {number}", f"longer than {MAX_RECORD_BYTES // 2**20} MiB")
                elif line.strip():
                    yield _json_record(line, number, record)
        except (EOFError, OSError, zlib.error) as error:
            why = f"the file is damaged or cut short here, the rest of it is lost: {_reason(error)}"
            yield record.broken(f"after line {number}", why)


def _json_record(line: bytes, number: int, record: RecordMaker) -> Document | BrokenRecord:
    place = f"line {number}"
    try:
        fields = json.loads(line.rstrip(b"\r\n").decode("utf-8"), parse_constant=lambda name: None)
    except UnicodeDecodeError as error:
        return record.broken(
            place, f"not UTF-8: byte {error.start + 1} of the line is {line[error.start]:#04x}"
        )
    except json.JSONDecodeError as error:
        return record.broken(place, f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return record.broken(place, "the JSON is nested too deeply")
    except ValueError as error:  # a number of more than 4300 digits
        return record.broken(place, f"not readable: {_reason(error)}")
    if not isinstance(fields, dict):
        return record.broken(place, f"not a JSON object but {type(fields).__name__}")
    return record(place, fields)


def _lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers from 1; None for one that is too long, which is skipped without being held."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) <= MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            continue
        while (rest := stream.readline(2**20)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def _decompressed(handle: BinaryIO, extension: str) -> io.BufferedIOBase:
    if extension == ".jsonl.gz":
        return gzip.GzipFile(fileobj=handle)
    if extension == ".jsonl.zst":
        # Arrow's decoder and not zstandard's: at a truncated frame zstandard's stream_reader just ends.
        return io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(handle, "r"), "zstd")))
    return cast(io.BufferedIOBase, handle)


def _read_text(handle: BinaryIO, record: RecordMaker) -> Iterator[Document | BrokenRecord]:
    """One document, or consecutive parts of at most about `TEXT_PART_BYTES` bytes that end with a line."""
    with handle:
        offset = 0
        while part := handle.read(TEXT_PART_BYTES):
            if len(part) == TEXT_PART_BYTES:
                part += handle.readline(TEXT_PART_BYTES)
            place = f"from byte {offset + 1}" if offset else ""
            part_text = part.removeprefix(BYTE_ORDER_MARK) if not offset else part
            offset += len(part)
            if part_text.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield record.broken(place, "not UTF-8 but UTF-16; convert it, for instance with iconv")
                return
            if b"\0" in part_text[:8192]:
                yield record.broken(place, "not a text file: it holds NUL bytes")
                return
            try:
                yield record(place, {record.text_field: part_text.decode("utf-8")})
            except UnicodeDecodeError as error:
                at = offset - len(part_text) + error.start + 1
                yield record.broken(
                    place, f"not UTF-8: byte {at} of the file is {part_text[error.start]:#04x}"
                )
        if not offset:
            yield record.broken("", "the file is empty", empty=True)


def _read_parquet(handle: BinaryIO, record: RecordMaker) -> Iterator[Document | BrokenRecord]:
    with handle:
        try:
            parquet = pq.ParquetFile(handle)
        except (pa.ArrowException, OSError) as error:
            yield record.broken("", f"not a readable parquet file: {_reason(error)}")
            return
        schema = parquet.schema_arrow
        if record.text_field not in schema.names:
            yield record("", dict.fromkeys(schema.names))
            return
        columns = [f.name for f in schema if f.name == record.text_field or _is_flat(f.type)]
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            try:
                for number, fields in _parquet_rows(parquet, group, columns, first):
                    place = f"row {number}"
                    yield record.broken(place, fields) if isinstance(fields, str) else record(place, fields)
            except (pa.ArrowException, OSError) as error:
                why = f"rows {first + 1} to {first + rows} cannot be read: {_reason(error)}"
                yield record.broken(f"row group {group + 1}", why)
            first += rows


def _parquet_rows(
    parquet: pq.ParquetFile, group: int, columns: list[str], first: int
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Row numbers from 1 with the fields of the row, or with why it cannot be read."""
    number = first
    for batch in parquet.iter_batches(batch_size=256, row_groups=[group], columns=columns):
        try:
            rows: list[dict[str, Any] | None] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [None] * batch.num_rows
        for position, row in enumerate(rows):
            number += 1
            if row is not None:
                yield number, row
                continue
            try:
                yield number, {name: batch.column(name)[position].as_py() for name in columns}
            except UnicodeDecodeError as error:
                yield number, f"not UTF-8: {error.reason}"


def _is_flat(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
    )


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n", 1)[0].rstrip(". ")
