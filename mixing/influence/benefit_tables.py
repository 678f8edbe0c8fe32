"""Tables of benefits: put together from a checkpoint's parts, with the record of how they were made, and read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_file, read_json, replacing, write_json
from curation.errors import DataError
from mixing.influence.checkpoint_work import CheckpointWork, read_part
from mixing.influence.score import BENEFIT_SCHEMA
from mixing.influence.units import Units, make_units

METADATA = b"mixwright"  # key of the record in a table's schema


def assemble(work: CheckpointWork, parts: Sequence[np.ndarray], out: Path) -> list[Path]:
    """The tables of a checkpoint from its parts, one per capability, written part by part."""
    units = make_units(work.store, work.settings.group_documents, work.settings.seed)
    record = work_record(work, parts)
    files = []
    for at, capability in enumerate(work.job.capabilities):
        file = work.job.file(out, capability)
        own = {**record, "direction": record["directions"][capability], "capability": capability}
        own.pop("directions")
        tables = (partial(part_table, work, units, part, [(at, capability)]) for part in parts)
        write_benefits(file, (make() for make in tables), own)
        files.append(file)
    return files


def part_table(
    work: CheckpointWork, units: Units, part: np.ndarray, wanted: Sequence[tuple[int, str]]
) -> pa.Table:
    """Rows of `BENEFIT_SCHEMA` for one part, for the given capabilities (position, name)."""
    values = read_part(work, part)
    names = [units.name(int(u)) for u in part]
    tables = []
    for at, capability in wanted:
        columns: list[Any] = [
            [name for name, _ in names],
            [source for _, source in names],
            [capability] * len(names),
            [work.job.reference] * len(names),
            [work.job.step] * len(names),
            values[:, 1].astype(np.int64),
            values[:, 2 + at],
        ]
        arrays = [pa.array(c, t) for c, t in zip(columns, BENEFIT_SCHEMA.types, strict=True)]
        tables.append(pa.table(arrays, schema=BENEFIT_SCHEMA))
    return pa.concat_tables(tables)


def work_record(work: CheckpointWork, parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """How the scores of a checkpoint were made and what they cost, for the metadata of its tables."""
    pilot, directions = read_json(work.folder / "pilot.json"), read_json(work.folder / "directions.json")
    read = sum(float(read_part(work, part)[:, 0].sum()) for part in parts)
    made = sum(d["forward_tokens"] for d in directions.values())
    forward_tokens = pilot["forwards_per_token"] * read + pilot["pilot_forward_tokens"] + made
    whole = work.settings.windows == "all"
    cut = 0 if whole else int((work.store.lengths > pilot["context"] + 1).sum())
    return {
        **pilot,
        "directions": {
            n: {k: v for k, v in d.items() if k != "forward_tokens"} for n, d in directions.items()
        },
        "reduction": work.settings.reduction,
        "windows": work.settings.windows,
        "documents": sum(len(part) for part in parts),
        "documents_cut": cut,
        "tokens_read": read,
        "forward_tokens": forward_tokens,
        "flops": 2.0 * pilot["parameters"] * forward_tokens,
        "capabilities_scored_together": list(work.job.capabilities),
        "checkpoint": Path(work.job.checkpoint).name,
        "reference": work.job.reference,
        "step": work.job.step,
        "settings": asdict(work.settings),
        "inputs": work.fingerprint,
        "notes": pilot["notes"] + work.store.notes + _cut_note(work, pilot["context"], cut),
    }


def write_benefits(file: Path, tables: Iterable[pa.Table], record: Mapping[str, Any]) -> None:
    """The parquet file, its record in the schema's metadata, and then, as the sign that it is whole, the JSON
    beside it."""
    schema = BENEFIT_SCHEMA.with_metadata({METADATA: json.dumps(record, sort_keys=True)})
    with replacing(file) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
    write_json(file.with_suffix(".json"), {**record, "table": hash_file(file)})


def read_record(file: Path | str) -> dict[str, Any]:
    """How a table was made, from the table itself."""
    metadata = pq.read_schema(file).metadata or {}
    if METADATA not in metadata:
        raise DataError(
            "The table does not say how it was made",
            where=str(file),
            remedy="Give a table that mixwright influence has written",
        )
    return json.loads(metadata[METADATA])


def read_benefits(files: Iterable[Path]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows of several files as one table, and the pilot agreement of each."""
    tables, pilots = [], []
    for file in files:
        tables.append(pq.read_table(file).cast(BENEFIT_SCHEMA))
        pilots.append({"file": Path(file).name, **(read_record(file)["pilot"] or {})})
    if not tables:
        raise DataError(
            "There are no influence files", where="influence", remedy="Score some checkpoints first"
        )
    return pa.concat_tables(tables), pilots


def _cut_note(work: CheckpointWork, context: int, cut: int) -> list[str]:
    """What the reader should know about documents that are longer than a row."""
    if not cut:
        return []
    why = (
        "the model has positions for no more" if context < work.settings.context else "the context asked for"
    )
    return [
        f"{cut} of {len(work.store)} documents are longer than {context} tokens ({why}): of those only the first "
        f'{context} are scored and counted (windows "all" reads them in pieces)'
    ]
