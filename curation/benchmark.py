"""Benchmarks as lists of items: local files of any format that we read, or datasets of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from curation.documents import Document, document_id
from curation.errors import DataError, RecipeError
from curation.hub import read_hub
from curation.readers import read_file
from curation.records import BrokenRecord

_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]*)?(:[\w.-]+)?")


def read_benchmarks(named: Sequence[Path | str], fields: Sequence[str] = ("text",)) -> list[Document]:
    """The items of several benchmarks, each with those of the named fields that it has.

    named  : local files (.jsonl, also .gz and .zst, .parquet, .txt) and datasets of the hub as `owner/name`,
             `owner/name:subset` or `owner/name:subset:split` (the split `test` if not said); also local folders
    fields : whose texts, one after another with a line break between, are an item; a null or empty one, or one that a
             record does not have, is left out

    An item's `source` is the benchmark's name, its id its own or `row <n>`, from 1. Raises DataError when there is
    no such file or dataset, a record is broken or has none of the fields, a benchmark has no items, or no benchmark
    has one of the fields: it is misspelt.
    """
    if not fields:
        raise RecipeError("No field of the benchmark is named", remedy="Name one, such as `question`")
    items: list[Document] = []
    unknown = dict.fromkeys(fields)
    for one in named:
        before = len(items)
        for number, records in enumerate(zip(*(_records(one, field) for field in fields), strict=True), 1):
            for field, record in zip(fields, records, strict=True):
                if not (isinstance(record, BrokenRecord) and record.no_field):
                    unknown.pop(field, None)
            found = [record for record in records if isinstance(record, Document)]
            _check(records, fields)
            if found:
                items.append(_item(found, number))
        if len(items) == before:
            raise DataError(
                "The benchmark has no items", where=str(one), remedy="Check the file and the field's name"
            )
    if unknown:
        raise DataError(
            f"No benchmark has the field {' or '.join(f'`{field}`' for field in unknown)}",
            where=", ".join(map(str, named)),
            remedy="Check the names given with --field",
        )
    return items


def read_benchmark(named: Path | str, fields: Sequence[str] = ("text",)) -> list[Document]:
    """`read_benchmarks` of one, which then has to have all the fields."""
    return read_benchmarks([named], fields)


def _check(records: Sequence[Document | BrokenRecord], fields: Sequence[str]) -> None:
    """DataError for a record that is broken, or has none of the fields."""
    broken = [record for record in records if isinstance(record, BrokenRecord) and not record.empty]
    lacking = [record for record in broken if record.no_field]
    other = next((record for record in broken if not record.no_field), None)
    if other is not None:
        raise DataError(
            f"The benchmark has a broken record: {other.why}",
            where=other.where,
            remedy="Mend it, or name the fields that hold the texts with --field",
        )
    if len(lacking) == len(records):
        has = lacking[0].why.partition("; ")[2]
        none = f"no field {' or '.join(f'`{field}`' for field in fields)}"
        raise DataError(
            f"A record of the benchmark has {none}; {has}",
            where=lacking[0].where,
            remedy="Name the fields that hold its texts with --field, repeated for each",
        )


def _item(found: list[Document], number: int) -> Document:
    first = found[0]
    own = first.id != document_id(first.source, first.text)
    return replace(
        first, id=first.id if own else f"row {number}", text="\n".join(record.text for record in found)
    )


def _records(named: Path | str, field: str) -> Iterator[Document | BrokenRecord]:
    path, text = Path(named), str(named)
    if path.is_file() or not (path.is_dir() or _HUB.fullmatch(text)) or path.suffix in (".jsonl", ".parquet"):
        return read_file(path, source=path.name, text_field=field)
    dataset, _, rest = (text, "", "") if path.is_dir() else text.partition(":")
    subset, _, split = rest.partition(":")
    return read_hub(
        dataset,
        source=Path(dataset).name,
        seed=0,
        subset=subset or None,
        split=split or "test",
        text_field=field,
    )
