"""The text that a model was trained on, one document at a time: the token shards of a run, or files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from curation.atomic import hash_file, hash_value
from curation.documents import Document
from curation.errors import DataError
from curation.readers import read_file
from curation.records import ReadCounts
from probes.split_by_overlap import shard_documents
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

SHARD = "shard.json"


def training_parts(given: Sequence[Path | str]) -> list[Path]:
    """The token shards and files that the given runs, shards and files are made of, in a fixed order.

    A run folder gives `tokens/*`, what its models read; one without shards its `documents/*/*.parquet`.
    Raises DataError when there is nothing of the kind.
    """
    found: list[Path] = []
    for path in map(Path, given):
        shards = sorted(file.parent for file in (*path.glob(f"tokens/*/{SHARD}"), *path.glob(SHARD)))
        here = [path] if path.is_file() else shards or sorted(path.glob("documents/*/*.parquet"))
        if not here:
            raise DataError(
                "There is no text to search here",
                where=str(path),
                remedy="Give a run folder with tokens/ or documents/, a folder of token shards, or a file of documents",
            )
        found += [part for part in here if part not in found]
    return found


def hash_parts(parts: Sequence[Path]) -> str:
    """Hex sha256 of what `training_documents` reads."""
    return hash_value([hash_file(part / SHARD if part.is_dir() else part) for part in parts])


def training_documents(parts: Sequence[Path], tokenizer: Any) -> Iterator[Document]:
    """The documents of `training_parts`, as a stream.

    tokenizer : the model's; a shard of another is read with the one in `tokenizer/model` of its run. DataError when
                neither wrote it
    """
    return chain.from_iterable(_documents(part, tokenizer) for part in parts)


def _documents(part: Path, tokenizer: Any) -> Iterator[Document]:
    if part.is_file():
        counts = ReadCounts()
        yield from counts.documents(read_file(part))
        counts.check(str(part), 0.01)
        return
    source = TokenSource.open(part)
    own = part.parent.parent / "tokenizer" / "model"
    try:
        yield from shard_documents(source, tokenizer)
    except DataError:
        if not own.is_dir():
            raise
        yield from shard_documents(source, load_tokenizer(own))
