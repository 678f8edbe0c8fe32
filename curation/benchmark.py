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


def read_benchmark(named: Path | str, fields: Sequence[str] = ("text",)) -> list[Document]:
    """The items of a benchmark; an item's `source` is the benchmark's name, its id its own or `row <n>`, from 1.

    named  : a local file (.jsonl, also .gz and .zst, .parquet, .txt), or a dataset of the hub as `owner/name`,
             `owner/name:subset` or `owner/name:subset:split` (the split `test` if not said); also a local folder
    fields : whose texts, one after another with a line break between, are the item; a null or empty one is left out

    Raises DataError when there is no such file, dataset or field, a record is broken, or there is no item.
    """
    if not fields:
        raise RecipeError("No field of the benchmark is named", remedy="Name one, such as `question`")
    items: list[Document] = []
    for number, records in enumerate(zip(*(_records(named, field) for field in fields), strict=True), 1):
        found = [record for record in records if isinstance(record, Document)]
        for record in records:
            if isinstance(record, BrokenRecord) and not record.empty:
                raise DataError(
                    f"The benchmark has a broken record: {record.why}",
                    where=record.where,
                    remedy="Name the fields that hold the texts with --field",
                )
        if found:
            items.append(_item(found, number))
    if not items:
        raise DataError(
            "The benchmark has no items", where=str(named), remedy="Check the file and the field's name"
        )
    return items


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
