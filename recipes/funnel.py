"""The funnel of a run: for each source and step, the documents and tokens that are left, and which share that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.atomic import read_json
from curation.errors import DataError


def funnel_of(run: Path) -> list[dict[str, Any]]:
    """Rows `source, stage, documents, tokens, share, of_read` in the order of the steps.

    tokens  : None where the cascade did not count them, as in runs of earlier versions
    share   : of the documents of the step before; None at the first step and behind an empty one
    of_read : of the source's first step

    Raises DataError when the run has no funnel yet.
    """
    file = run / "representative" / "funnel.json"
    if not file.is_file():
        raise DataError("The run has no funnel yet", where=str(run), remedy="Run `mixwright curate` first")
    rows: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    before: dict[str, int] = {}
    for count in read_json(file):
        source, documents = count["source"], count["documents"]
        first.setdefault(source, documents)
        rows.append(
            {
                "source": source,
                "stage": count["stage"],
                "documents": documents,
                "tokens": count.get("tokens"),
                "share": documents / before[source] if before.get(source) else None,
                "of_read": documents / first[source] if first[source] else None,
            }
        )
        before[source] = documents
    return rows
