"""A corpus in files: which documents take part, found by reading ids, never texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from curation.documents import Document, document_files, write_documents
from curation.errors import DataError
from curation.scoring.rows import RowReader, iterate_batches, open_parquet

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

    def rows(self, listing: pl.DataFrame, columns: Sequence[str] = ("id", "text", "url")) -> pl.DataFrame:
        """`columns` of the documents in `listing` (`id, file, row`), in no stated order; other texts are not held."""
        kept = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String))]
        for (number,), part in listing.sort("file", "row").group_by("file", maintain_order=True):
            batches = list(RowReader(self.files[number], columns).take(part["row"].to_numpy()))
            kept.append(pl.DataFrame(pa.Table.from_batches(batches)))
        return pl.concat(kept, how="diagonal")

    def texts(self, listing: pl.DataFrame, ids: Sequence[str]) -> list[str]:
        """Texts in the order of `ids`, all of which are in `listing`."""
        wanted = pl.DataFrame({"id": list(ids)}, schema={"id": pl.String})
        found = self.rows(listing.join(wanted, on="id", how="semi"), ("id", "text"))
        return wanted.join(found, on="id", how="left", maintain_order="left")["text"].to_list()


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


def _ids(file: Path, number: int) -> pl.DataFrame:
    with open_parquet(file) as parquet:
        missing = [name for name in ("id", "text") if name not in parquet.schema_arrow.names]
    if missing:
        raise DataError(
            f"A document file has columns id and text, but {' and '.join(missing)} is missing",
            where=str(file),
            remedy="Read user files with a source of kind `local`, which makes ids",
        )
    batches = [pl.Series("id", batch["id"], dtype=pl.String) for batch in iterate_batches(file, ("id",))]
    ids = pl.concat([pl.Series("id", [], dtype=pl.String), *batches])
    if ids.null_count():
        row = int(ids.is_null().arg_max() or 0)
        raise DataError(
            f"The document in row {row} has no id", where=str(file), remedy="Give each document its own id"
        )
    place = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    return ids.to_frame().select("id", pl.lit(number, dtype=pl.Int32).alias("file"), place)
