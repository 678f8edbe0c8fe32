"""The same tasks at every checkpoint of a training run, or at several models: perplexity over time (Figure 11)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from curation.atomic import read_json, write_json, write_text
from curation.errors import DataError
from probes.evaluate import evaluate
from probes.task_results import TaskResult
from training.checkpoint import list_checkpoints

SERIES, TABLE = "trajectory.json", "trajectory.csv"
# Where a run folder keeps the checkpoints of its own training.
PLACES = (".", "checkpoints", "training/pretrain/checkpoints", "train/checkpoints", "pretrain/checkpoints")


@dataclass(frozen=True)
class Evaluated:
    """One model of a series: its name, which is its folder in `out`, and its step where it is a checkpoint."""

    name: str
    folder: Path
    step: int | None


@dataclass(frozen=True)
class Point:
    """A metric of a task at one model; low and high are its interval of 95 %, where it has one."""

    name: str
    step: int | None
    task: str
    form: str
    metric: str
    value: float
    low: float | None
    high: float | None


def models_in(given: Sequence[Path | str]) -> list[Evaluated]:
    """The models that the given folders are or hold: a model as it is, of a run each of its checkpoints by step.

    Models whose folders have one name (a run's `model`) take that of the folder above as well: `uniform-model`.
    DataError for a folder with neither, and for two models of one name all the same.
    """
    found: list[Evaluated] = []
    for folder in map(Path, given):
        if (folder / "config.json").is_file() or (folder / "state.json").is_file():
            step = folder.name.removeprefix("step-")
            found.append(Evaluated(folder.resolve().name, folder, int(step) if step.isdecimal() else None))
            continue
        places = [place for place in PLACES if list_checkpoints(folder / place)]
        if not places:
            raise DataError(
                "There is no model here: neither config.json nor checkpoints (step-N)",
                where=str(folder),
                remedy="Give a Hugging Face folder, a checkpoint, or a folder that holds checkpoints",
            )
        found += [
            Evaluated(f"step-{step}", path, step)
            for step, path in list_checkpoints(folder / places[0]).items()
        ]
    names = [model.name for model in found]
    found = [
        replace(model, name=f"{model.folder.resolve().parent.name}-{model.name}")
        if names.count(model.name) > 1 and model.step is None
        else model
        for model in found
    ]
    names = [model.name for model in found]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DataError(
            f"Two of the models are called {double[0]}",
            remedy="Evaluate them one by one, with an --out for each",
        )
    return found


def tokenizer_beside(model: Evaluated) -> Path | None:
    """The tokenizer of the run that a checkpoint lies in, None where it has its own or there is none."""
    if (model.folder / "tokenizer.json").is_file():
        return None
    for parent in model.folder.resolve().parents[:6]:
        for place in ("tokenizer/model", "tokenizer", "model"):
            if (parent / place / "tokenizer.json").is_file():
                return parent / place
    return None


def evaluate_series(
    models: Sequence[Evaluated],
    tasks: Sequence[Any],
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    **settings: Any,
) -> dict[str, dict[str, TaskResult]]:
    """`evaluate` at each model with the folder OUT/NAME; results by the models' names.

    The table of points, OUT/trajectory.json and .csv, is written anew after every model, so that a killed call leaves
    that of the finished ones. settings : those of `evaluate`
    """
    out = Path(out)
    results: dict[str, dict[str, TaskResult]] = {}
    for model in models:
        own = tokenizer or tokenizer_beside(model)
        results[model.name] = evaluate(model.folder, tasks, out=out / model.name, tokenizer=own, **settings)
        done = [done for done in models if done.name in results]
        write_points(out, done, [p for m in done for p in points(m, results[m.name])])
    return results


def points(model: Evaluated, results: Mapping[str, TaskResult]) -> list[Point]:
    """All metrics of all tasks of one model."""
    return [
        Point(model.name, model.step, task, form, metric, found["value"], found.get("low"), found.get("high"))
        for task, result in results.items()
        for form, metrics in result.metrics.items()
        for metric, found in metrics.items()
    ]


def write_points(out: Path, models: Sequence[Evaluated], found: Sequence[Point]) -> None:
    """The table as JSON, which the comparison page reads, and as CSV."""
    rows = [asdict(point) for point in found]
    write_json(out / SERIES, {"models": [{"name": m.name, "step": m.step} for m in models], "points": rows})
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(Point.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE, table.getvalue())


def read_points(out: Path | str) -> tuple[list[str], list[Point]]:
    """Names of the models in order, and their points; empty where the folder holds no series."""
    path = Path(out) / SERIES
    if not path.is_file():
        return [], []
    try:
        described = read_json(path)
        return [model["name"] for model in described["models"]], [Point(**row) for row in described["points"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The table of checkpoints cannot be read: {error}", where=str(path), remedy="Evaluate them again"
        ) from error
