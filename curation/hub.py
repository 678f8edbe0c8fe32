"""Datasets of the Hugging Face hub, or of any folder that `datasets` loads, as streams of records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from curation.documents import Document
from curation.errors import DataError
from curation.records import BrokenRecord, RecordMaker

SHUFFLE_BUFFER = 1000
"""Rows; with the order of the shards, what makes the first part of a dataset a sample of it."""


def read_hub(
    dataset: str,
    *,
    source: str,
    seed: int,
    subset: str | None = None,
    split: str = "train",
    data_files: Any = None,
    revision: str | None = None,
    text_field: str = "text",
) -> Iterator[Document | BrokenRecord]:
    """Stream the rows of a dataset, its shards shuffled by the seed, because it is seldom read to the end.

    The arguments are those of `datasets.load_dataset`, which is called with `streaming=True` and never runs
    code of the dataset. Raises DataError when the dataset cannot be found or a shard of it cannot be read:
    unlike our own readers, `datasets` cannot go on after a broken line.
    """
    import datasets

    record = RecordMaker(dataset, source, source, text_field)
    number = 0
    try:
        rows = datasets.load_dataset(
            dataset, subset, split=split, data_files=data_files, revision=revision, streaming=True
        )
        for number, row in enumerate(rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), 1):
            yield record(f"row {number}", row)
    except Exception as error:  # whatever the network, the hub and the formats of files come up with
        reason = (str(error) or type(error).__name__).split("\n", 1)[0].rstrip(". ")
        beyond = f" beyond row {number}" if number else ""
        raise DataError(
            f"The dataset `{dataset}` cannot be read{beyond}: {reason}",
            where=f"source {source}",
            remedy="Check the name, the subset and the split, and whether this machine reaches the hub",
        ) from error
