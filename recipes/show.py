"""One document with everything a run found out about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from curation.errors import DataError


def find_document(run: Path, start: str) -> dict[str, Any]:
    """Text, source, split and every score of the document whose id begins with `start`.

    Raises DataError when no document or more than one matches.
    """
    files = sorted(run.glob("documents/*/*.parquet"))
    if not files:
        raise DataError("The run has no documents yet", where=str(run), remedy="Run `mixwright curate` first")
    matches = pl.concat(
        [pl.scan_parquet(file).filter(pl.col("id").str.starts_with(start)).collect() for file in files]
    )
    if matches.height != 1:
        problem = "No document has" if matches.height == 0 else f"{matches.height} documents have"
        raise DataError(
            f"{problem} an id that begins with `{start}`",
            where=str(run),
            remedy="Ids stand in documents/, representative/ and the report; give more of its characters",
        )
    found: dict[str, Any] = dict(matches.row(0, named=True))
    text = found.pop("text")
    for file in sorted(run.glob("scores/**/*.parquet")) + sorted(run.glob("representative/*.parquet")):
        table = pl.scan_parquet(file)
        if "id" not in table.collect_schema().names():
            continue
        for row in table.filter(pl.col("id") == found["id"]).collect().iter_rows(named=True):
            name = file.relative_to(run).with_suffix("").as_posix()
            found |= {
                f"{name}: {key}": value
                for key, value in row.items()
                if key not in ("id", "text", "url", "source")
            }
    for split in ("probes", "test"):
        for file in sorted(run.glob(f"{split}/*.parquet")):
            if pl.scan_parquet(file).filter(pl.col("id") == found["id"]).collect().height:
                found[f"held out in {split}"] = file.stem
    for file in sorted(run.glob("influence/*.parquet")):
        rows = pl.scan_parquet(file).filter(pl.col("document") == found["id"]).collect()
        found |= {f"benefit: {file.stem}": row["benefit"] for row in rows.iter_rows(named=True)}
    return found | {"text": text}
