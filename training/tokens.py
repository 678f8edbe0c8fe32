"""Tokenized documents of one source in a folder: memory-mapped token files and tables of their documents.

tokens-00000.bin          every document as [bos] tokens [eos], one after the other, uint16 or uint32
documents-00000.parquet   one row per document, in that order: id, tokens, text_bytes
shard.json                counts and hashes of all files, the hash of the tokenizer; written last

A large source has several of the numbered pairs. `training.tokenizing` writes such folders, and
`training.datatrove_tokens` opens datatrove's token files as the same record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_file, hash_value, read_json
from curation.errors import DataError

SCHEMA = 2
COLUMNS = pa.schema([("id", pa.string()), ("tokens", pa.int64()), ("text_bytes", pa.int64())])
# What every opening reads of a token file: all of a small one, of a large one so many blocks of so many bytes.
SAMPLED_BLOCKS, BLOCK_BYTES = 32, 1 << 15


class ShardedTokens:
    """Several token files as one array, for single indices and slices; what is asked for is all that is read."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = tuple(parts)
        self.starts = np.concatenate(([0], np.cumsum([len(part) for part in parts], dtype=np.int64)))
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> np.integer[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> np.ndarray: ...
    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            at = key + len(self) if key < 0 else key
            if not 0 <= at < len(self):
                raise IndexError(f"token {key} of {len(self)}")
            part = int(np.searchsorted(self.starts, at, side="right")) - 1
            return self.parts[part][at - self.starts[part]]
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise IndexError("tokens are read in slices without a step")
        part = int(np.searchsorted(self.starts, start, side="right")) - 1
        found = []
        while start < stop:
            first = int(self.starts[part])
            end = min(stop, int(self.starts[part + 1]))
            found.append(self.parts[part][start - first : end - first])
            start, part = end, part + 1
        if len(found) == 1:  # a document lies in one file, so this is the rule, and copies nothing
            return found[0]
        return np.concatenate(found) if found else np.empty(0, self.dtype)


class StoredIds(Sequence[str]):
    """The ids of documents, read from their tables when the first is asked for: training never asks."""

    def __init__(self, tables: Sequence[Path], documents: int) -> None:
        self._tables, self._documents = tuple(tables), documents
        self._ids: pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return self._documents

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: Any) -> Any:
        if self._ids is None:
            chunks = [pq.read_table(table, columns=["id"])["id"] for table in self._tables]
            self._ids = pa.chunked_array([chunk for column in chunks for chunk in column.chunks], pa.string())
        if isinstance(key, slice):
            return [self._ids[at].as_py() for at in range(*key.indices(self._documents))]
        return self._ids[int(key)].as_py()


@dataclass(frozen=True)
class TokenSource:
    """The tokenized documents of one source, opened with `TokenSource.open`; the tokens stay on the disk.

    name        : the source
    tokens      : memory-mapped uint16 or uint32 [total_tokens]
    offsets     : int64 [documents + 1]; document d is tokens[offsets[d]:offsets[d + 1]], bos and eos included
    ids         : the documents' ids
    text_bytes  : int64 [documents], UTF-8 bytes of each text; 0 where unknown
    hash        : hex sha256 of tokens and documents; what the data order depends on
    tokenizer   : hex sha256 of the tokenizer, see `hash_tokenizer`
    vocab_size  : tokens in that tokenizer
    """

    name: str
    tokens: np.ndarray | ShardedTokens
    offsets: np.ndarray
    ids: Sequence[str]
    text_bytes: np.ndarray
    hash: str
    tokenizer: str
    vocab_size: int

    @property
    def total_tokens(self) -> int:
        """Tokens of all documents, bos and eos included."""
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document."""
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1])]

    @staticmethod
    def open(folder: Path | str, *, verify: bool = False) -> TokenSource:
        """Open a folder that `training.tokenizing.write_tokens` made.

        Sizes, the tables of documents and sampled blocks of every token file (all of one below 1 MiB) are always
        compared with the hashes in shard.json; `verify` reads every byte. Raises DataError when the folder is
        missing, incomplete, truncated or altered.
        """
        folder = Path(folder)
        record = _read_record(folder)
        dtype = np.dtype(record["dtype"])
        lengths, text_bytes, arrays = [], [], []
        for number, part in enumerate(record["parts"]):
            tokens, table = part_files(folder, number)
            found, sizes = _check_part(folder, tokens, table, part, dtype, verify=verify)
            lengths.append(found)
            text_bytes.append(sizes)
            arrays.append(np.memmap(tokens, dtype=dtype, mode="r"))
        offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
        if len(offsets) - 1 != record["documents"] or offsets[-1] != record["tokens"]:
            raise _damaged(folder, "has tables of documents that do not fit its tokens")
        if record["hash"] != content_hash(record["parts"]):
            raise _damaged(folder, "has a shard.json whose hashes do not belong together")
        return TokenSource(
            name=record["source"],
            tokens=arrays[0] if len(arrays) == 1 else ShardedTokens(arrays),
            offsets=offsets,
            ids=StoredIds([part_files(folder, n)[1] for n in range(len(arrays))], record["documents"]),
            text_bytes=np.concatenate(text_bytes),
            hash=record["hash"],
            tokenizer=record["tokenizer"],
            vocab_size=record["vocab_size"],
        )


def part_files(folder: Path, number: int) -> tuple[Path, Path]:
    """The token file and the table of documents of one part of a source."""
    return folder / f"tokens-{number:05}.bin", folder / f"documents-{number:05}.parquet"


def content_hash(parts: Sequence[dict[str, Any]]) -> str:
    """Hash of a whole source from the records of its parts."""
    return hash_value([[part["sha256"], part["content"]] for part in parts])


def table_content(table: pa.Table) -> str:
    """Hex sha256 of a table of documents, whatever wrote its file."""
    return hash_value([table[name].to_pylist() for name in COLUMNS.names])


def sampled_hash(path: Path) -> str:
    """Hex sha256 of a file's size and of evenly spaced blocks of it, first and last included.

    A file of at most SAMPLED_BLOCKS * BLOCK_BYTES (1 MiB) is hashed as a whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        if size <= SAMPLED_BLOCKS * BLOCK_BYTES:
            digest.update(handle.read())
            return digest.hexdigest()
        for block in range(SAMPLED_BLOCKS):
            handle.seek(block * (size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1))
            digest.update(handle.read(BLOCK_BYTES))
    return digest.hexdigest()


def _check_part(
    folder: Path, tokens: Path, table: Path, part: dict[str, Any], dtype: np.dtype[Any], *, verify: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths in tokens and text bytes of a part's documents; DataError when it is not what was written."""
    try:
        size = tokens.stat().st_size
        if size != part["tokens"] * dtype.itemsize:
            wanted = part["tokens"] * dtype.itemsize
            raise _damaged(folder, f"has {size} bytes of tokens in {tokens.name} instead of {wanted}")
        if hash_file(table) != part["table"]:
            raise _damaged(folder, f"has a table of documents, {table.name}, that was changed since")
        if sampled_hash(tokens) != part["sampled"] or (verify and hash_file(tokens) != part["sha256"]):
            raise _damaged(folder, f"does not have the content in {tokens.name} that its shard.json is for")
        columns = pq.read_table(table, columns=None if verify else ["tokens", "text_bytes"])
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _damaged(folder, f"cannot be read: {error}") from error
    if verify and table_content(columns.cast(COLUMNS)) != part["content"]:
        raise _damaged(folder, f"does not have the documents in {table.name} that its shard.json is for")
    lengths = columns["tokens"].to_numpy().astype(np.int64)
    if len(lengths) != part["documents"] or lengths.sum() != part["tokens"] or lengths.min(initial=2) < 2:
        raise _damaged(folder, f"has a table of documents, {table.name}, that does not fit its tokens")
    return lengths, columns["text_bytes"].to_numpy().astype(np.int64)


_PART_FIELDS = {"tokens", "documents", "sha256", "sampled", "table", "content"}


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / "shard.json")
    except FileNotFoundError as error:
        raise DataError(
            "There are no tokens here", where=str(folder), remedy="Tokenize the source first (write_tokens)"
        ) from error
    except ValueError as error:
        raise _damaged(folder, f"has a broken shard.json: {error}") from error
    if isinstance(record, dict) and record.get("schema", SCHEMA) != SCHEMA:
        raise _damaged(folder, f"is of schema {record['schema']}, and this version reads {SCHEMA}")
    needed = {"schema", "source", "dtype", "documents", "tokens", "hash", "tokenizer", "vocab_size", "parts"}
    whole = isinstance(record, dict) and needed <= record.keys() and record["dtype"] in ("<u2", "<u4")
    parts = record["parts"] if whole else []
    listed = isinstance(parts, list) and bool(parts) and all(isinstance(part, dict) for part in parts)
    if not listed or any(_PART_FIELDS - part.keys() for part in parts):
        raise _damaged(folder, "has a shard.json without the fields that describe its tokens")
    return dict(record)


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"The token folder {why}", where=str(folder), remedy="Delete it and tokenize again")
