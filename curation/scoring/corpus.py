"""A corpus in files: which documents take part, found by reading ids, never texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.documents import Document, document_files, write_documents
from curation.errors import DataError

LISTING_SCHEMA = {"id": pl.String, "file": pl.Int32, "row": pl.UInt32}


@dataclass(frozen=True, eq=False)
class Corpus:
    """The documents of one source.

    source : its name
    files  : parquet files with the columns `id` and `text`, and `source`, `url` and `meta` where there are any
    only   : ids of the documents that take part; all of them when None
    """

    source: str
    files: tuple[Path, ...]
    only: pl.Series | None = None

    def listing(self) -> pl.DataFrame:
        """A row `id, file, row` for each document that takes part; `file` counts in `files`, `row` in the file.

        Raises DataError for a file that cannot be read, a null id, and an id that two documents share.
        """
        tables = [_ids(file, number) for number, file in enumerate(self.files)]
        found = pl.concat([pl.DataFrame(schema=LISTING_SCHEMA), *tables])
        if self.only is not None:
            found = found.join(self.only.alias("id").to_frame(), on="id", how="semi")
        if found["id"].n_unique() != found.height:
            twice = found.filter(pl.col("id").is_duplicated()).sort("id").row(0, named=True)
            raise DataError(
                f"Two documents have the id {twice['id']}",
                where=f"{self.source}, {self.files[twice['file']]}",
                remedy="Give each document its own id",
            )
        return found

    def rows(self, wanted: pl.DataFrame, columns: Sequence[str] = ("id", "text", "url")) -> pl.DataFrame:
        """`columns` of the documents whose ids are in `wanted`, in no stated order; other texts are not held."""
        return pl.concat([_semi_join(file, wanted.select("id"), columns) for file in self.files])

    def texts(self, ids: Sequence[str]) -> list[str]:
        """Texts in the order of `ids`."""
        wanted = pl.DataFrame({"id": list(ids)}, schema={"id": pl.String})
        return wanted.join(self.rows(wanted, ("id", "text")), on="id", how="left")["text"].to_list()


def corpus_of(source: str, path: Path | str) -> Corpus:
    """The corpus of a document file, or of all document files of a folder."""
    return Corpus(source, tuple(document_files(path)))


def spill(documents: Sequence[Document], source: str, file: Path) -> Corpus:
    """Write documents that are in memory to `file`, sorted by id, so that their order does not matter."""
    ordered = sorted(documents, key=lambda document: document.id)
    write_documents(file, ordered)
    return Corpus(source, (file,))


def check_ids(listings: dict[str, pl.DataFrame]) -> None:
    """Ids are the keys of every table: one id in two sources would drop a document for another's sake."""
    places = [table.select("id", pl.lit(source).alias("source")) for source, table in listings.items()]
    both = pl.concat(places) if places else pl.DataFrame(schema={"id": pl.String, "source": pl.String})
    if both["id"].n_unique() == both.height:
        return
    name = both.filter(pl.col("id").is_duplicated()).sort("id")["id"][0]
    owners = both.filter(pl.col("id") == name)["source"].to_list()
    raise DataError(
        f"The id `{name}` is in two sources, {owners[0]} and {owners[1]}",
        where=owners[1],
        remedy="Leave the ids out of the files; then they are made from source and text",
    )


def iterate_batches(file: Path, columns: Sequence[str], batch_rows: int = 8192) -> Iterator[pa.RecordBatch]:
    """Batches of some columns of a parquet file, in order; DataError when it cannot be read."""
    try:
        with pq.ParquetFile(file) as parquet:
            present = [name for name in columns if name in parquet.schema_arrow.names]
            yield from parquet.iter_batches(batch_size=batch_rows, columns=present)
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


def _ids(file: Path, number: int) -> pl.DataFrame:
    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in ("id", "text") if name not in names]
            column = None if missing else parquet.read(columns=["id"])
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
    if column is None:
        raise DataError(
            f"A document file has columns id and text, but {' and '.join(missing)} is missing",
            where=str(file),
            remedy="Read user files with a source of kind `local`, which makes ids",
        )
    ids = pl.Series("id", column["id"]).cast(pl.String)
    if ids.null_count():
        row = int(ids.is_null().arg_max() or 0)
        raise DataError(
            f"The document in row {row} has no id", where=str(file), remedy="Give each document its own id"
        )
    place = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    return ids.to_frame().select("id", pl.lit(number, dtype=pl.Int32).alias("file"), place)


def _semi_join(file: Path, wanted: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Rows of one file, a batch at a time: what is held is what is kept, and one batch."""
    kept: list[pl.DataFrame] = []
    for batch in iterate_batches(file, columns):
        kept.append(pl.DataFrame(pa.Table.from_batches([batch])).join(wanted, on="id", how="semi"))
    empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return pl.concat([empty, *kept], how="diagonal")
