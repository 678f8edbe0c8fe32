"""Capability probes: held-out documents that stand for code, mathematics or knowledge.

A probe of a capability is the union, over the sources that carry it, of a share of each source's
representative set (MobileLLM-R1, section 5.2; the paper probes with the whole representative sets and does
not say whether they were also trained on. We take a share and never train on it). Which documents are taken
is decided by a hash of the seed and the document's id, so adding a source, or changing the order of files,
moves no other document.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing
from curation.documents import Document, read_documents
from curation.errors import DataError, RecipeError

PROBE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)


def build_probes(
    representative: Mapping[str, Sequence[Document]],
    capabilities: Mapping[str, Sequence[str]],
    *,
    share: float,
    seed: int,
    taken: Collection[str] = (),
    max_bytes_per_source: int | None = None,
) -> dict[str, list[Document]]:
    """Choose the probe documents of every capability from the representative sets.

    representative : documents by source; capabilities : capabilities by source (none, for a noise source)
    share  : share of each source's representative documents that is held out, 0 < share < 1; at least one
             document
    seed   : decides, with the ids, which; another seed gives another choice
    taken  : ids that may not be chosen, such as those of another held-out set (`test/` beside `probes/`)
    max_bytes_per_source : stop taking documents of a source beyond this much text, so that probes stay cheap

    A document of a source with two capabilities is in both probes. Documents are sorted by (source, id).
    Returns {capability: documents}. Raises RecipeError on an impossible share or an unknown source, DataError
    when a source has no document to spare.
    """
    if not 0 < share < 1:
        raise RecipeError(
            f"A probe share of {share} is not possible",
            where="share",
            remedy="Choose a number between 0 and 1, such as 0.1",
        )
    unknown = sorted(set(capabilities) - set(representative))
    if unknown:
        raise RecipeError(
            f"Source {unknown[0]!r} has capabilities but no representative documents",
            where="capabilities",
            remedy=f"Known sources: {', '.join(sorted(representative))}",
        )
    excluded = frozenset(taken)
    probes: dict[str, list[Document]] = {}
    for source in sorted(capabilities):
        if not capabilities[source]:
            continue
        chosen = _choose(source, representative[source], share, seed, excluded, max_bytes_per_source)
        for capability in dict.fromkeys(capabilities[source]):
            probes.setdefault(capability, []).extend(chosen)
    return {
        capability: sorted(probes[capability], key=lambda d: (d.source, d.id))
        for capability in sorted(probes)
    }


def held_out_ids(probes: Mapping[str, Iterable[Document]]) -> frozenset[str]:
    """The ids of all documents in the probes: none of them may be trained on."""
    return frozenset(document.id for documents in probes.values() for document in documents)


def without_held_out(
    documents: Iterable[Document], held_out: Mapping[str, Iterable[Document]]
) -> Iterator[Document]:
    """The documents that may be trained on: neither the id nor the exact text of a held-out document.

    The text counts too because one text found in two sources has two ids.
    """
    ids = held_out_ids(held_out)
    texts = {_text_hash(d.text) for chosen in held_out.values() for d in chosen}
    return (d for d in documents if d.id not in ids and _text_hash(d.text) not in texts)


def write_probes(folder: Path | str, probes: Mapping[str, Sequence[Document]]) -> dict[str, Path]:
    """Write `<folder>/<capability>.parquet` (`id, text, source`); return the files by capability."""
    files = {}
    for capability in sorted(probes):
        files[capability] = Path(folder) / f"{capability}.parquet"
        table = pa.Table.from_pydict(
            {name: [getattr(d, name) for d in probes[capability]] for name in PROBE_SCHEMA.names},
            schema=PROBE_SCHEMA,
        )
        with replacing(files[capability]) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return files


def read_probes(folder: Path | str) -> dict[str, list[Document]]:
    """Read all probes of a folder by capability. Raises DataError when there are none."""
    files = sorted(p for p in Path(folder).glob("*.parquet") if not p.name.startswith("."))
    if not files:
        raise DataError(
            "There are no probes here",
            where=str(folder),
            remedy="Run the probes stage, or name another folder",
        )
    return {file.stem: read_documents(file) for file in files}


def _choose(
    source: str,
    documents: Sequence[Document],
    share: float,
    seed: int,
    excluded: frozenset[str],
    max_bytes: int | None,
) -> list[Document]:
    # Equal ids are equal texts of one source; a copy left behind would put the probe into the training data.
    unique = {d.id: d for d in documents}
    free = sorted((d for d in unique.values() if d.id not in excluded), key=lambda d: _rank(seed, d.id))
    count = max(1, math.floor(share * len(unique) + 0.5))
    if len(unique) < 2 or not free:
        raise DataError(
            f"Too few representative documents of {source} to hold some out: {len(unique)}, of which {len(free)} are "
            "free, where 2 and 1 are the least",
            remedy=f"Give {source} more text, loosen the cuts of the funnel, or remove its capabilities",
        )
    chosen: list[Document] = []
    size = 0
    for document in free[:count]:
        size += len(document.text.encode("utf-8"))
        if chosen and max_bytes is not None and size > max_bytes:
            break
        chosen.append(document)
    return chosen


def _rank(seed: int, identifier: str) -> bytes:
    return hashlib.sha256(f"probe\0{seed}\0{identifier}".encode()).digest()


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
