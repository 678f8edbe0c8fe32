"""Two evaluations side by side, question by question: paired differences with a bootstrap over questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curation.errors import DataError
from probes.intervals import RESAMPLES, percentile_interval, ratio_draws
from probes.metric_values import metric_values, rows_by_question
from probes.task_results import TaskResult, load_results


@dataclass(frozen=True)
class Difference:
    """`a` minus `b` of a metric over the same questions, with the percentile interval of 95 %.

    headline : whether it is among the metrics to show first (`TaskResult.headlines`)
    """

    task: str
    form: str
    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    items: int
    headline: bool


def compare_results(
    a: str | Path, b: str | Path, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Difference]:
    """Differences of every metric of every task that both `out` folders hold.

    Questions are joined by id. The interval tells how far the choice of questions matters, nothing about
    another training seed. Raises DataError when no task is in both, or a task asked other things.
    """
    left, right = load_results(a), load_results(b)
    shared = [name for name in left if name in right]
    if not shared:
        raise DataError("The two evaluations have no task in common", where=f"{a}, {b}")
    return [d for name in shared for d in compare_tasks(left[name], right[name], seed, resamples)]


def compare_tasks(a: TaskResult, b: TaskResult, seed: int, resamples: int) -> list[Difference]:
    """Differences of every metric of one task; DataError when the two were asked other things."""
    if a.described["hashes"]["prompts"] != b.described["hashes"]["prompts"]:
        raise DataError(
            f"Task {a.task} asked the two models different things",
            remedy="Evaluate both with the same task file, data, limit and seed",
        )
    found = []
    for form in a.metrics:
        rows_a, rows_b = rows_by_question(a.records, form), rows_by_question(b.records, form)
        ids = sorted(rows_a)
        if ids != sorted(rows_b):
            raise DataError(f"The records of task {a.task} do not hold the same questions", where=form)
        values_a, values_b = (metric_values([rows[i] for i in ids]) for rows in (rows_a, rows_b))
        for metric, (upper, weight) in values_a.items():
            other, _ = values_b[metric]
            draws = ratio_draws((upper - other)[None], weight, seed=seed, resamples=resamples)[:, 0]
            low, high = percentile_interval(draws, 0.95)
            mean_a, mean_b = float(upper.sum() / weight.sum()), float(other.sum() / weight.sum())
            found.append(
                Difference(
                    task=a.task,
                    form=form,
                    metric=metric,
                    a=mean_a,
                    b=mean_b,
                    difference=mean_a - mean_b,
                    low=low,
                    high=high,
                    items=len(ids),
                    headline=metric in a.headlines(form),
                )
            )
    return found
