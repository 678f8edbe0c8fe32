"""What a model achieved on a task, and the files that keep it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import read_json
from curation.errors import DataError

RESULTS, ITEMS = "results.json", "items.parquet"
SPLIT, SIDES_TABLE = "contamination.json", "contamination.parquet"


@dataclass(frozen=True)
class TaskResult:
    """What a model achieved on a task.

    metrics : by form ("cloze", "letters"; one of the name of the scoring else) and name: value, and where they
              exist stderr, low, high
    described : settings, hashes and counts, as in results.json
    records : a row for each question and form
    reused  : whether it was there already
    contamination : what the training text holds of its questions and the scores of each side, as in
                    contamination.json; None where nobody asked
    """

    task: str
    metrics: dict[str, dict[str, dict[str, float]]]
    described: dict[str, Any]
    records: pa.Table
    reused: bool = False
    contamination: dict[str, Any] | None = None

    def headlines(self, form: str) -> list[str]:
        """The few metrics to show first. Letters are of equal length, so theirs is not normalised."""
        if "bits_per_byte" in self.metrics[form]:
            return ["bits_per_byte"]
        if form == "generation":
            measured = ("pass@", "maj@", "accuracy@")
            return [
                "accuracy",
                *(name for name in self.metrics[form] if name.startswith(measured)),
                "truncated",
                "no_answer",
            ]
        return [
            f"accuracy_{'none' if form == 'letters' else self.described['normalization']}",
            "norm_correct_prob",
        ]


def load_results(folder: str | Path) -> dict[str, TaskResult]:
    """The finished tasks of an `out` folder, by name. DataError when there are none."""
    found = {}
    for path in sorted(Path(folder).glob(f"*/{RESULTS}")):
        try:
            described = read_json(path)
            table = pq.read_table(path.with_name(ITEMS))
            split = path.with_name(SPLIT)
            found[described["task"]] = TaskResult(
                described["task"],
                described["metrics"],
                described,
                table,
                True,
                read_json(split) if split.is_file() else None,
            )
        except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
            raise DataError(
                f"The results there cannot be read: {error}",
                where=str(path),
                remedy="Evaluate the task again",
            ) from error
    if not found:
        raise DataError(
            "There are no results in this folder",
            where=str(folder),
            remedy="Give what --out of mixwright eval named",
        )
    return found
