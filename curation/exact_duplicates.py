"""Exact deduplication: documents whose normalised texts are equal, of which the first in keep-order stays.

A text is normalised to Unicode NFC, every run of white space becomes one space, white space at the ends goes, and
case is folded unless that is turned off. Nothing else: punctuation and digits count, so that two sums with
other numbers are two documents. Texts are compared by 128-bit hashes; one false hit among 1e12 documents has
a chance of 1e-15.
"""

from __future__ import annotations

import hashlib
import unicodedata

import polars as pl

from curation.errors import DataError

DUPLICATES = {"dropped": pl.String, "kept_instead": pl.String, "kind": pl.String, "similarity": pl.Float64}
"""Columns of every table of duplicates that are found before scoring."""


def normalised(text: str, *, fold_case: bool = True) -> str:
    """The text as it is compared.

    >>> normalised("  Two\\n\\twords ")
    'two words'
    """
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", plain.casefold()) if fold_case else plain


def text_hash(text: str, *, fold_case: bool = True) -> bytes:
    """16 bytes that are equal for equal normalised texts."""
    return hashlib.blake2b(normalised(text, fold_case=fold_case).encode(), digest_size=16).digest()


def exact_duplicates(table: pl.DataFrame) -> pl.DataFrame:
    """The table `dropped, kept_instead, kind, similarity`, sorted by `dropped`.

    table : `id, priority, hash`, a row for each document; of equal hashes the one with the smallest
            (priority, id) is kept

    Raises DataError when an id is there twice: the table could not say which of the two was dropped.
    """
    if table["id"].n_unique() != table.height:
        twice = table.filter(pl.col("id").is_duplicated())["id"].sort()[0]
        raise DataError(
            f"Two documents have the id `{twice}`",
            remedy="Leave the ids out of the files; then they are made from source and text",
        )
    ordered = table.select("id", "priority", "hash").sort("hash", "priority", "id")
    kept = ordered.with_columns(pl.col("id").first().over("hash").alias("kept_instead"))
    return (
        kept.filter(pl.col("id") != pl.col("kept_instead"))
        .select(
            pl.col("id").alias("dropped"),
            "kept_instead",
            pl.lit("exact").alias("kind"),
            pl.lit(1.0).alias("similarity"),
        )
        .sort("dropped")
    )
