"""Documents written in the format that a file's name asks for; the counterpart of `curation.readers`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from curation.atomic import replacing
from curation.documents import Document, write_documents
from curation.errors import RecipeError
from curation.readers import extension_of


def write_file(path: Path | str, documents: Iterable[Document]) -> int:
    """Write documents to .parquet, .jsonl, .jsonl.gz or .jsonl.zst, atomically; return how many.

    JSON lines hold `id, text, source` and, if there are any, `url` and `meta`. Equal documents give equal
    bytes. Raises RecipeError for .txt, which cannot hold ids, and DataError for an unknown extension.
    """
    extension = extension_of(path)
    if extension == ".txt":
        raise RecipeError(
            "A .txt file cannot hold documents with ids",
            where=str(path),
            remedy="Name the output .jsonl or .parquet",
        )
    if extension == ".parquet":
        return write_documents(path, documents)
    count = 0
    with replacing(path) as temporary, _compressed(temporary, extension) as handle:
        for document in documents:
            handle.write(_line(document))
            count += 1
    return count


def _line(document: Document) -> bytes:
    fields: dict[str, Any] = {"id": document.id, "text": document.text, "source": document.source}
    if document.url is not None:
        fields["url"] = document.url
    if document.meta is not None:
        fields["meta"] = dict(sorted(document.meta.items()))
    return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@contextmanager
def _compressed(path: Path, extension: str) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if extension == ".jsonl.gz":
            # Without name and time of day, which would make equal contents unequal files.
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                yield packed  # type: ignore[misc]
        elif extension == ".jsonl.zst":
            import zstandard

            with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as writer:
                yield writer
        else:
            yield raw
