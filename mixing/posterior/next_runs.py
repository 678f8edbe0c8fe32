"""Proposed runs as rows for `ratios.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from curation.atomic import write_text


def next_run_ids(known: Collection[str], runs: int) -> list[str]:
    """Names of new runs that no known run has.

    >>> next_run_ids(["run-0001", "a"], 2)
    ['run-0003', 'run-0004']
    """
    taken, number = set(known), len(known)
    found: list[str] = []
    while len(found) < runs:
        number += 1
        if (name := f"run-{number:04d}") not in taken:
            found.append(name)
    return found


def write_next_runs(
    path: Path | str, ids: Sequence[str], sources: Sequence[str], weights: np.ndarray
) -> None:
    """Write `run_id` and a share for each source [runs, m], as `ratios.csv` has them; exact numbers."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["run_id", *sources])
    out.writerows([name, *map(repr, row)] for name, row in zip(ids, weights.tolist(), strict=True))
    write_text(path, text.getvalue())
