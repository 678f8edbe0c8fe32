"""Documents of files as token ids: streamed samples, and probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from curation.documents import Document
from curation.errors import DataError
from curation.readers import BrokenRecord, extension_of, read_file
from mixing.influence.documents import SampleDocument
from training.text_encoding import text_encoder

BROKEN_SHARE = 0.01  # of a file's records that may be unreadable
READ_DOCUMENTS = 512  # tokenized at a time


def stream_samples(
    files: Sequence[Path | str],
    tokenizer: Any,
    probes: Mapping[str, Sequence[SampleDocument]],
    notes: list[str],
) -> Iterator[SampleDocument]:
    """The documents of files as token ids, `[bos] + tokens + [eos]`, in memory that does not grow with the files.

    At the end `notes` gains a sentence that names what could not be read, and one for each probe set that shares
    texts with the samples: such documents praise themselves. Raises DataError when a file has no document, or
    more than BROKEN_SHARE of its records cannot be read.
    """
    begin, end, encode = _ends(tokenizer)
    probe_of = {
        d.ids.tobytes(): (name, d.id.removeprefix(_prefix(name))) for name, its in probes.items() for d in its
    }
    shared: dict[str, list[str]] = {}
    for file in files:
        named = unnamed = 0
        stem = Path(file).name[: -len(extension_of(file))]
        for batch in _batches(_documents(file, notes)):
            for document, ids in zip(batch, encode([d.text for d in batch]), strict=True):
                tokens = np.asarray([*begin, *ids], np.int64)
                if tokens.tobytes() in probe_of:
                    probe, name = probe_of[tokens.tobytes()]
                    shared.setdefault(probe, []).append(f"{name} (sample {document.id})")
                unnamed += document.source == stem
                named += document.source != stem
                yield SampleDocument(document.id, document.source, np.asarray([*begin, *ids, *end], np.int64))
        if named and unnamed:
            notes.append(
                f"{unnamed} of {named + unnamed} records of {file} name no source; they count as {stem!r}"
            )
    for probe, ids in shared.items():
        notes.append(
            f"{len(ids)} documents of the probe {probe} are samples too, among them {ids[0]}: they praise themselves"
        )


def read_probe(file: Path | str, tokenizer: Any, notes: list[str], name: str) -> list[SampleDocument]:
    """The documents of a probe file as `[bos] + tokens`."""
    begin, _, encode = _ends(tokenizer)
    documents = list(_documents(file, notes))
    encoded = encode([d.text for d in documents])
    return [
        # Ids such as row numbers may stand in several files; what a document is called here is its own.
        SampleDocument(_prefix(name) + d.id, d.source, np.asarray([*begin, *ids], np.int64))
        for d, ids in zip(documents, encoded, strict=True)
    ]


def _documents(file: Path | str, notes: list[str]) -> Iterator[Document]:
    broken: list[BrokenRecord] = []
    count = 0
    for record in read_file(Path(file)):
        if isinstance(record, BrokenRecord):
            broken.append(record)
        else:
            count += 1
            yield record
    first = f"{broken[0].why}, at {broken[0].where}" if broken else ""
    if not count:
        raise DataError(
            f"The file has no documents{f' that can be read: {first}' if first else ''}",
            where=str(file),
            remedy='Give records such as {"text": "..."}',
        )
    if len(broken) > BROKEN_SHARE * (len(broken) + count):
        raise DataError(
            f"{len(broken)} of {len(broken) + count} records cannot be read: {first}",
            where=str(file),
            remedy="Mend or remove them",
        )
    if broken:
        notes.append(f"{len(broken)} records of {file} were left out: {first}")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(islice(documents, READ_DOCUMENTS)):
        yield batch


def _ends(tokenizer: Any) -> tuple[list[int], list[int], Any]:
    """What a document begins and ends with, as the trainer stores it: eos where there is no bos."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return end if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], end, text_encoder(tokenizer)


def _prefix(name: str) -> str:
    return f"probe {name}: "
