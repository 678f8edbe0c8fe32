"""Score tables: what every scorer writes beside the documents, and the exact selections made from them.

A scorer never drops a document. Its table `scores/<source>/<scorer>.parquet` has one row per document id,
sorted by id, and a fingerprint of the model, the prompt and the settings; thresholds are applied afterwards,
so they can be changed without scoring again. A table is used again when its fingerprint matches, and only
documents that it lacks are scored. Work is written in parts of at most `CHUNK_DOCUMENTS`; a killed scoring
goes on from its parts and ends with the bytes of an undisturbed one, because the parts are a function of the
set of ids alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_folder, hash_value, read_json, replacing, write_json, writing_to
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.progress import progress
from curation.scorer import Scorer, column_kind
from curation.scoring_pool import ScoringPool

CHUNK_DOCUMENTS = 1000
_KEY = b"mixwright.fingerprint"


def score_source(
    documents: Sequence[Document],
    scorer: Scorer,
    folder: Path | str,
    *,
    chunk_documents: int = CHUNK_DOCUMENTS,
    pool: ScoringPool | None = None,
) -> pl.DataFrame:
    """Score `documents` (of one source) and return `id` and the scorer's columns for exactly these, sorted by
    id.

    folder : `scores/<source>`; the table, its JSON and, while it works, hidden part files are written there
    pool   : scores parts side by side in worker processes; the bytes do not depend on it

    The table keeps rows of earlier calls with the same fingerprint. Such a row may differ in its last bits
    from one
    scored afresh, since it was padded beside other texts. Raises DataError when two documents share an id or
    a
    score is not finite.
    """
    folder = Path(folder)
    path = folder / f"{scorer.name}.parquet"
    ordered = sorted(documents, key=lambda document: document.id)
    for first, second in pairwise(ordered):
        if first.id == second.id:
            raise DataError(
                f"Two documents have the id {first.id}",
                where=first.source,
                remedy="Give each document its own id",
            )
    facts = {"columns": list(scorer.columns), "chunk_documents": chunk_documents, **scorer.fingerprint()}
    fingerprint = hash_value(facts)
    known = _read_table(path, fingerprint)
    scored = set(known["id"].to_list()) if known is not None else set()
    missing = [document for document in ordered if document.id not in scored]
    if missing or known is None:
        fresh = _score_missing(missing, scorer, folder, fingerprint, chunk_documents, pool)
        known = (fresh if known is None else pl.concat([known, fresh])).sort("id")
        with replacing(path) as temporary:
            table = known.to_arrow().cast(_schema(scorer.columns))
            pq.write_table(table.replace_schema_metadata({_KEY: fingerprint}), temporary, compression="zstd")
    _describe(folder, scorer.name, facts, fingerprint, known)
    for parts in sorted(folder.glob(f".{scorer.name}.parts-*")):
        shutil.rmtree(parts, ignore_errors=True)
    return known.join(pl.DataFrame({"id": [d.id for d in ordered]}, schema={"id": pl.String}), on="id").sort(
        "id"
    )


def top_share(scores: pl.DataFrame, by: str, share: float, *, within: str | None = None) -> pl.DataFrame:
    """The top ceil(share x n) rows by `by`, descending; equal scores are ordered by id. Exact for any row
    order.

    With `within`, a column such as `source`, the share is taken inside each of its values. The product is
    computed
    with the decimal that `share` prints as: ceil(0.1 x 30) is 3, although 0.1 * 30 > 3 in floating point.
    Rows come back ranked. Raises RecipeError unless 0 < share <= 1.

    >>> top_share(pl.DataFrame({"id": ["c", "a", "b"], "p": [0.5, 0.1, 0.5]}), "p", 0.3)["id"].to_list()
    ['b']
    """
    return top_rows(scores, by, None, share=share, within=within)


def top_rows(
    scores: pl.DataFrame, by: str, rows: int | None, *, share: float = 1.0, within: str | None = None
) -> pl.DataFrame:
    """As `top_share`, and at most `rows` (of each group)."""
    if not 0 < share <= 1:
        raise RecipeError(
            f"The share to keep is {share}",
            remedy="Give a share above 0 and at most 1, such as 0.1 for the top 10 %",
        )
    ranked = scores.sort([by, "id"], descending=[True, False])
    sizes = ranked.group_by(within).len().rows() if within else [(None, ranked.height)]
    kept = {group: min(share_of(share, size), size if rows is None else rows) for group, size in sizes}
    if within is None:
        return ranked.head(kept[None])
    limit = pl.col(within).replace_strict(kept, return_dtype=pl.Int64)
    return ranked.filter(pl.int_range(pl.len()).over(within) < limit)


def share_of(share: float, count: int) -> int:
    """ceil(share x count), exact in the decimal that `share` prints as."""
    return math.ceil(Fraction(repr(float(share))) * count)


def model_fingerprint(model: str) -> dict[str, str]:
    """What identifies a model: the hash of its folder, or a hub id with the commit that it resolves to."""
    if Path(model).is_dir():
        files = sorted(p for p in Path(model).rglob("*") if p.is_file())
        return {"folder_sha256": _folder_hash(model, tuple((str(p), *_stamp(p)) for p in files))}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(
            f"There is no model folder or hub model of this name: {str(error).splitlines()[0].rstrip('.')}",
            where=model,
            remedy="Check the name; a model that is not on this machine must be downloaded first",
        ) from error
    return {"hub": model, "revision": str(getattr(config, "_commit_hash", None))}


@lru_cache(maxsize=64)
def _folder_hash(folder: str, stamps: tuple[tuple[Any, ...], ...]) -> str:
    return hash_folder(folder)  # gigabytes for a large judge, so not once per source


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _score_missing(
    missing: list[Document],
    scorer: Scorer,
    folder: Path,
    fingerprint: str,
    chunk: int,
    pool: ScoringPool | None,
) -> pl.DataFrame:
    identity = hash_value([fingerprint, [document.id for document in missing]])[:16]
    parts = folder / f".{scorer.name}.parts-{identity}"
    with writing_to(parts):
        parts.mkdir(parents=True, exist_ok=True)
    chunks = [missing[start : start + chunk] for start in range(0, len(missing), chunk)]
    files = [parts / f"part-{index:05d}.parquet" for index in range(len(chunks))]
    todo = [index for index, file in enumerate(files) if not file.exists()]
    source = missing[0].source if missing else folder.name
    with progress(f"{scorer.name}: {source}", total=len(missing), unit="documents") as task:
        task.advance(sum(len(chunks[i]) for i in range(len(chunks)) if i not in set(todo)))
        for position, scores in _scored(scorer, [chunks[index] for index in todo], pool):
            index = todo[position]
            _write_part(files[index], chunks[index], scores, scorer)
            task.advance(len(chunks[index]))
    tables = [pq.read_table(file) for file in files]
    return pl.DataFrame(pa.concat_tables([_schema(scorer.columns).empty_table(), *tables]))


def _scored(
    scorer: Scorer, chunks: list[list[Document]], pool: ScoringPool | None
) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
    if pool is not None:
        yield from pool.score(scorer, chunks)
        return
    for position, chunk in enumerate(chunks):
        yield position, scorer.score(chunk)


def _write_part(
    file: Path, documents: list[Document], scores: Mapping[str, np.ndarray], scorer: Scorer
) -> None:
    for name in scorer.columns:
        column = scores[name]
        if len(column) == len(documents) and column_kind(name) == "string":
            continue
        if len(column) != len(documents) or not np.isfinite(column).all():
            bad = int(np.flatnonzero(~np.isfinite(column))[0]) if len(column) == len(documents) else 0
            raise DataError(
                f"The scorer {scorer.name} gave no finite `{name}` for the document {documents[bad].id}",
                where=documents[bad].source,
                remedy="Check the model: its weights may be damaged, or its number format may overflow",
            )
    columns: dict[str, Any] = {"id": [document.id for document in documents]}
    columns.update({name: np.ascontiguousarray(scores[name]) for name in scorer.columns})
    with replacing(file) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=_schema(scorer.columns)), temporary)


def _schema(columns: tuple[str, ...]) -> pa.Schema:
    kinds = {"float32": pa.float32(), "bool": pa.bool_(), "string": pa.string()}
    types = [pa.field(name, kinds[column_kind(name)]) for name in columns]
    return pa.schema([pa.field("id", pa.string()), *types])


def _read_table(path: Path, fingerprint: str) -> pl.DataFrame | None:
    """The table at `path` if it is whole and was made by the same model and settings."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return None
    if (table.schema.metadata or {}).get(_KEY) != fingerprint.encode():
        return None
    return pl.DataFrame(table)


def _describe(folder: Path, name: str, facts: dict[str, Any], fingerprint: str, table: pl.DataFrame) -> None:
    path = folder / f"{name}.json"
    value = {
        "scorer": name,
        "fingerprint": fingerprint,
        "made_by": facts,
        "documents": table.height,
        "ids_sha256": hash_value(table["id"].to_list()),
    }
    if not path.exists() or read_json(path) != value:
        write_json(path, value)
