"""Parts: one small score table for each unit of work, at its final name whole or not at all.

The name of a part is a hash of the ids in it and of the scorer's fingerprint. So a part of other settings or
of other documents is never taken for this one, and it does not matter who makes a part, how often, or how the
units were shared out.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_value, writing_to
from curation.errors import DataError
from curation.scorer import Scorer, column_kind

NAME_DIGITS = 32


def scorer_facts(scorer: Scorer, unit_documents: int) -> dict[str, Any]:
    """Everything that scores depend on besides the texts, for people to read."""
    return {"columns": list(scorer.columns), "unit_documents": unit_documents, **scorer.fingerprint()}


def fingerprint_of(scorer: Scorer, unit_documents: int) -> str:
    """Hash of `scorer_facts`. The size of the units is one of them: it decides what is padded beside what."""
    return hash_value(scorer_facts(scorer, unit_documents))


def with_texts(fingerprint: str, texts: Sequence[str]) -> str:
    """`fingerprint` for documents whose ids do not follow from their texts."""
    return hash_value([fingerprint, [text_hash(text) for text in texts]])


def text_hash(text: str) -> str:
    """Hex sha256 of a text, also of one that is no valid Unicode."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def part_name(ids: Sequence[str], fingerprint: str) -> str:
    """Name of the part of these documents, without its suffix; 128 bits."""
    return hashlib.sha256("\0".join([fingerprint, *ids]).encode()).hexdigest()[:NAME_DIGITS]


def part_schema(columns: Sequence[str]) -> pa.Schema:
    """`id` and a scorer's columns, of the kinds that `column_kind` says."""
    types = {"float32": pa.float32(), "bool": pa.bool_(), "int64": pa.int64(), "string": pa.string()}
    return pa.schema([("id", pa.string()), *[(name, types[column_kind(name)]) for name in columns]])


def write_part(
    folder: Path, ids: Sequence[str], scores: Mapping[str, np.ndarray], scorer: Scorer, name: str, where: str
) -> None:
    """Write a part, atomically; DataError for a score that is not finite, MachineError when the disk refuses.

    The temporary name is the writer's own: after a machine was thought lost, two may write one part.
    """
    for column in scorer.columns:
        values = np.asarray(scores[column])
        if column_kind(column) == "string" and len(values) == len(ids):
            continue
        if len(values) != len(ids) or not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0]) if len(values) == len(ids) else 0
            raise DataError(
                f"The scorer {scorer.name} gave no finite `{column}` for the document {ids[bad]}",
                where=where,
                remedy="Check the model: its weights may be damaged, or its number format may overflow",
            )
    columns: dict[str, Any] = {"id": list(ids)}
    columns.update({column: np.ascontiguousarray(scores[column]) for column in scorer.columns})
    path = part_path(folder, name)
    temporary = folder / f".{name}.{uuid.uuid4().hex[:12]}.partial"
    with writing_to(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as handle:
                pq.write_table(pa.Table.from_pydict(columns, schema=part_schema(scorer.columns)), handle)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def part_path(folder: Path, name: str) -> Path:
    """File of a part."""
    return folder / f"{name}.parquet"


def read_part(folder: Path, name: str, columns: Sequence[str], fingerprint: str) -> pa.Table | None:
    """The part if it is there and holds the documents and columns that its name says; else None."""
    try:
        table = pq.read_table(part_path(folder, name))
    except (pa.ArrowException, OSError):
        return None
    if table.schema.names != ["id", *columns]:
        return None
    return table if part_name(table["id"].to_pylist(), fingerprint) == name else None
