"""The log of a training run: a row per update and per evaluation, each once, however often it is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from curation.atomic import write_text, writing_to
from curation.errors import DataError
from training.sinks import Sinks


class RunLog:
    """metrics.jsonl and evaluations.jsonl of a run that stands at update `step` and goes on from there.

    Rows of updates that were made after the last checkpoint, and so will be made again, are dropped first.
    What is written here goes to `sinks` too, and `close` closes them.
    """

    def __init__(self, out: Path, step: int, sinks: Sinks | None = None) -> None:
        self._sinks = sinks or Sinks({})
        self._paths = (out / "metrics.jsonl", out / "evaluations.jsonl")
        for path in self._paths:
            # Before the first update there is nothing to keep: an evaluation of step 0 is made again.
            rows = [row for row in read_rows(path) if row["step"] <= step] if step else []
            write_text(path, "".join(map(_line, rows)))
        self._handles = [path.open("a", encoding="utf-8") for path in self._paths]

    def metrics(self, row: dict[str, Any]) -> None:
        """Add the row of an update; it has a "step"."""
        self._add(0, row)
        self._sinks.add("train", row)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Add the row of an evaluation; it has a "step". DataError for a value that JSON cannot hold."""
        self._add(1, row)
        self._sinks.add("evaluation", row)

    def flush(self) -> None:
        """Put all rows on the disk."""
        for handle in self._handles:
            os.fsync(handle.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all updates so far."""
        return read_rows(self._paths[0])

    def close(self) -> None:
        """Add no more rows."""
        for handle in self._handles:
            handle.close()
        self._sinks.close()

    def _add(self, which: int, row: dict[str, Any]) -> None:
        # Handed to the system row by row, so that a killed process loses none that it has written.
        with writing_to(self._paths[which]):
            self._handles[which].write(_line(row))
            self._handles[which].flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log up to the first that was not written to its end; none if there is no log."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(row, dict) or "step" not in row:
                break
            rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(
            f"A row of the log cannot be written: {error}",
            where=f"step {row.get('step')}",
            remedy="Let the evaluation return finite numbers and text only",
        ) from error
