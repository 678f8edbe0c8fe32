"""Tables of anybody's in parquet or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curation.errors import DataError

if TYPE_CHECKING:
    import polars


def read_columns(path: Path | str, needed: tuple[str, ...]) -> polars.DataFrame:
    """The table; raises DataError when it cannot be read, has no rows, or lacks one of the `needed` columns."""
    import polars as pl

    path = Path(path)
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"The table cannot be read: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="Give a parquet or CSV file",
        ) from error
    missing = [name for name in needed if name not in frame.columns]
    if missing or frame.is_empty():
        what = (
            f"The table has no column {missing[0]!r}, but {', '.join(frame.columns)}"
            if missing
            else "The table has no rows"
        )
        raise DataError(what, where=str(path), remedy=f"It needs the columns {', '.join(needed)}")
    return frame
