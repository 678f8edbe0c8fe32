"""What a matrix of post-training says: means with intervals over seeds and problems, paired differences, costs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.atomic import write_json, write_text
from curation.errors import RecipeError
from training.matrix import Outcome

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over a table [seeds, problems] with its confidence interval.

    low, high   : for other seeds and other problems of the same kind; over the problems alone with one seed
    seeds_low, seeds_high : for other seeds on these very problems (Student's t over the seeds' means), None with one
    """

    mean: float
    low: float
    high: float
    seeds_low: float | None
    seeds_high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(table: np.ndarray, level: float = LEVEL) -> Interval:
    """The interval of the mean of `table` [seeds S, problems P], both seen as drawn at random and crossed.

    From the mean squares of the two-way layout with one value per cell (Searle, Casella & McCulloch, Variance
    Components, 1992, chapter 4): Var(mean) = (MS_seeds + MS_problems - MS_rest) / (S P), at least MS_rest / (S P),
    with Satterthwaite's degrees of freedom, but not more than P - 1. With one seed it is Student's over the problems.

    >>> str(interval(np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]])))
    '0.625 [-0.282, 1.53]'
    """
    from scipy.stats import t  # here, because training imports without scipy

    seeds, problems = table.shape
    mean = float(table.mean())
    rows, columns = table.mean(1), table.mean(0)
    if problems < 2:
        raise RecipeError("One problem gives no interval", where="matrix", remedy="Hold more problems out")
    if seeds == 1:
        half = float(t.ppf((1 + level) / 2, problems - 1)) * float(columns.std(ddof=1)) / math.sqrt(problems)
        return Interval(mean, mean - half, mean + half, None, None)
    by_seed = problems * float(rows.var(ddof=1))
    by_problem = seeds * float(columns.var(ddof=1))
    rest = table - rows[:, None] - columns[None] + mean
    freedom = (seeds - 1) * (problems - 1)
    noise = float((rest**2).sum()) / freedom
    total = max(by_seed + by_problem - noise, noise)
    parts = by_seed**2 / (seeds - 1) + by_problem**2 / (problems - 1) + noise**2 / freedom
    degrees = min(max(total**2 / parts, 1.0), problems - 1) if parts > 0 else 1.0
    half = float(t.ppf((1 + level) / 2, degrees)) * math.sqrt(total / table.size)
    alone = float(t.ppf((1 + level) / 2, seeds - 1)) * math.sqrt(by_seed / table.size)
    return Interval(mean, mean - half, mean + half, mean - alone, mean + alone)


def difference(one: Outcome, other: Outcome, measure: str, column: str = "right") -> Interval | None:
    """The interval of `one` minus `other`, paired by seed and problem; None without a common seed."""
    common = [seed for seed in one.seeds if seed in other.seeds]
    if not common:
        return None
    tables = [
        getattr(outcome, column)[measure][[outcome.seeds.index(seed) for seed in common]]
        for outcome in (one, other)
    ]
    return interval(tables[0] - tables[1])


def matrix_rows(outcomes: Sequence[Outcome], against: str | None = None) -> list[dict[str, Any]]:
    """A row for each pipeline and measure; `against` names the pipeline for the paired differences."""
    named = {outcome.pipeline: outcome for outcome in outcomes}
    if against is not None and against not in named:
        raise RecipeError(
            f"There is no pipeline {against!r} to compare with",
            where="matrix",
            remedy=f"Choose one of {', '.join(named)}",
        )
    rows = []
    for outcome in outcomes:
        for measure in outcome.right:
            row: dict[str, Any] = {
                "pipeline": outcome.pipeline,
                "measure": measure,
                "seeds": len(outcome.seeds),
                "failed": len(outcome.failures),
                "accuracy": None,
                "length": None,
                "truncated": None,
                "trained_tokens": _mean([cost.trained for cost in outcome.costs]),
                "sampled_tokens": _mean([cost.sampled for cost in outcome.costs]),
                "flops": _mean([cost.flops for cost in outcome.costs]),
            }
            if outcome.seeds:
                row["accuracy"] = interval(outcome.right[measure])
                row["length"] = interval(outcome.length[measure])
                row["truncated"] = float(outcome.truncated[measure].mean())
            if against is not None:
                other = named[against]
                usable = outcome.seeds and outcome is not other
                row["accuracy_difference"] = difference(outcome, other, measure) if usable else None
                row["length_difference"] = difference(outcome, other, measure, "length") if usable else None
            rows.append(row)
    return rows


def write_matrix(folder: Path, outcomes: Sequence[Outcome], against: str | None = None) -> dict[str, Any]:
    """Write matrix.json and matrix.csv; the former's value, with which failures and why, is returned."""
    rows = matrix_rows(outcomes, against)
    plain = [
        {key: asdict(value) if isinstance(value, Interval) else value for key, value in row.items()}
        for row in rows
    ]
    result = {
        "level": LEVEL,
        "against": against,
        "rows": plain,
        "steps": {outcome.pipeline: list(outcome.steps) for outcome in outcomes},
        "failures": {
            outcome.pipeline: {str(seed): why for seed, why in outcome.failures.items()}
            for outcome in outcomes
            if outcome.failures
        },
    }
    write_json(folder / "matrix.json", result)
    write_text(folder / "matrix.csv", _as_csv(plain))
    return result


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    flat = []
    for row in rows:
        values: dict[str, Any] = {}
        for key, value in row.items():
            if key in ("accuracy", "length", "accuracy_difference", "length_difference"):
                bounds = value or dict.fromkeys(("mean", "low", "high"))
                values |= {key: bounds["mean"], f"{key}_low": bounds["low"], f"{key}_high": bounds["high"]}
            else:
                values[key] = value
        flat.append(values)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
