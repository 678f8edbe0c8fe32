"""Evaluate a model on tasks: `evaluate("model", ["arc_easy"], data={"arc_easy": "arc.jsonl"})`.

All tasks are read and checked before the first is scored. Each finished task is written at once, with a record
for every question, and is not repeated while model, data, task and settings are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_folder, hash_value, read_json, replacing, write_json
from curation.errors import DataError, RecipeError
from curation.progress import progress
from probes.contamination import find_overlaps, split_scores
from probes.task_generation import score_generation
from probes.task_items import TaskRows, items_of, rows_of
from probes.task_record import Item, Task
from probes.task_results import ITEMS, RESULTS, SIDES_TABLE, SPLIT, TaskResult
from probes.task_scoring import Loaded, score_task
from probes.tasks import load_task
from probes.training_text import hash_parts, training_documents, training_parts

SPLIT_VERSION = 1  # of the rule that finds a question in a text


@dataclass(frozen=True)
class _Work:
    task: Task
    rows: TaskRows
    items: dict[str, list[Item]]
    settings: dict[str, Any]
    hashes: dict[str, str]


def evaluate(
    model: str | Path,
    tasks: Sequence[str | Path | Task],
    *,
    data: Mapping[str, str | Path] | None = None,
    shots: Mapping[str, str | Path] | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    context: int | None = None,
    bos: bool = True,
    batch_tokens: int = 8192,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    against: Sequence[str | Path] = (),
    samples: int | None = None,
    max_tokens: int | None = None,
) -> dict[str, TaskResult]:
    """Score a model folder or a checkpoint on tasks; results by the tasks' names, in their order.

    tasks   : names of shipped tasks, task files (.yaml), or Tasks
    data    : a local file of rows by task, instead of the task's own
    shots   : a local file of few-shot examples by task; without one, a task with local `data` takes them from
              its rows, which are then not asked
    out     : folder for TASK/results.json and TASK/items.parquet; nothing is written without it
    limit   : questions to ask of each task, drawn by `seed`
    context : most tokens fed at once, the model's positions by default
    bos     : begin every prompt with the bos token, as our training does
    tokenizer : folder of the tokenizer, where the model's has none (a checkpoint)
    device    : "auto", "cpu", "cuda", "mps"
    precision : of the matrix products; weights, norms, softmax and sums stay in float32
    against   : runs, token shards or files of documents, in which the questions are looked for; the scores are then
                split into clean and dirty ones, see probes.contamination
    samples, max_tokens : answers a question and their longest length, instead of what a generation task says; budgets
                beyond are left out

    Raises RecipeError on impossible settings or when `out` holds results of other settings, DataError on bad
    rows, before anything is scored.
    """
    chosen = [_drawn(task, samples, max_tokens) for task in _tasks(tasks, data or {}, shots or {})]
    parts = training_parts(against)
    folder = Path(model)
    loaded = Loaded.of(
        folder, context=context, bos=bos, batch_tokens=batch_tokens, device=device, precision=precision,
        tokenizer_folder=None if tokenizer is None else Path(tokenizer),
    )  # fmt: skip
    model_hash = (
        hash_folder(folder)
        if tokenizer is None
        else hash_value([hash_folder(Path(f)) for f in (folder, tokenizer)])
    )
    settings: dict[str, Any] = {"limit": limit, "seed": seed, "context": loaded.context, "bos": bos}
    if precision != "float32":
        settings["precision"] = precision
    works = [_read(task, settings, model_hash, limit, seed) for task in chosen]
    done = {w.task.name: _finished(Path(out) / w.task.name, w) for w in works} if out else {}
    left = [w for w in works if done.get(w.task.name) is None]
    questions = sum(len(items) for w in left for items in w.items.values())
    results = {name: result for name, result in done.items() if result}
    with progress("evaluating", questions, "questions") as bar:
        for work in left:
            results[work.task.name] = _run(work, loaded, out, bar)
    if parts:
        _split(works, results, parts, loaded.tokenizer, out)
    return {work.task.name: results[work.task.name] for work in works}


def _tasks(
    tasks: Sequence[str | Path | Task], data: Mapping[str, str | Path], shots: Mapping[str, str | Path]
) -> list[Task]:
    loaded = [task if isinstance(task, Task) else load_task(task) for task in tasks]
    names = [task.name for task in loaded]
    if not names:
        raise RecipeError("There are no tasks to evaluate", where="tasks", remedy="Name one or more")
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise RecipeError(f"Task {double[0]} is named twice", where="tasks", remedy="Name each once")
    for option, given in (("data", data), ("shots", shots)):
        for name in given:
            if name not in names:
                raise RecipeError(
                    f"There is no task {name!r} among those to evaluate",
                    where=option,
                    remedy=f"It is one of {', '.join(names)}",
                )
    for index, task in enumerate(loaded):
        few = task.fewshot
        if task.name in data:
            # The task's own examples are on the hub, where a local file was given because there is none.
            few = replace(few, data=None, subset=None) if not few.examples else few
            task = replace(task, data=str(data[task.name]))
        if task.name in shots:
            few = replace(few, data=str(shots[task.name]), subset=None)
        loaded[index] = replace(task, fewshot=few)
    return loaded


def _drawn(task: Task, samples: int | None, max_tokens: int | None) -> Task:
    """The task with other numbers of answers and tokens; RecipeError when it cannot have them."""
    if task.scoring != "generation":
        return task
    drawn = task.generation
    if samples is not None:
        drawn = replace(drawn, samples=samples)
    if max_tokens is not None:
        budgets = tuple(budget for budget in drawn.budgets if budget < max_tokens)
        drawn = replace(drawn, max_tokens=max_tokens, budgets=budgets)
    return replace(task, generation=drawn)


def _split(
    works: Sequence[_Work],
    results: dict[str, TaskResult],
    parts: Sequence[Path],
    tokenizer: Any,
    out: str | Path | None,
) -> None:
    """Look for the questions of all tasks in the training text, in one pass; what is known already is read."""
    sha256 = hash_parts(parts)
    left: dict[str, list[Item]] = {}
    for work in works:
        name = work.task.name
        identity = {"training": sha256, "prompts": work.hashes["prompts"], "version": SPLIT_VERSION}
        path = None if out is None else Path(out) / name / SPLIT
        if path is not None and path.is_file() and read_json(path).get("hashes") == identity:
            results[name] = replace(results[name], contamination=read_json(path))
        else:
            left[name] = next(iter(work.items.values()))
    for name, overlap in find_overlaps(left, training_documents(parts, tokenizer)).items() if left else ():
        result = results[name]
        split = {
            "hashes": {
                "training": sha256,
                "prompts": result.described["hashes"]["prompts"],
                "version": SPLIT_VERSION,
            },
            "against": [part.name if part.is_file() else f"{part.parent.name}/{part.name}" for part in parts],
            "documents": overlap.documents,
            "questions": overlap.counts(),
            "scores": split_scores(result.records, result.metrics, overlap),
        }
        results[name] = replace(result, contamination=split)
        if out is not None:
            with replacing(Path(out) / name / SIDES_TABLE) as temporary:
                pq.write_table(overlap.table(), temporary)
            write_json(Path(out) / name / SPLIT, split)


def _read(task: Task, settings: dict[str, Any], model_hash: str, limit: int | None, seed: int) -> _Work:
    rows = rows_of(task, seed=seed)
    if task.scoring == "choice":
        forms = ("cloze", "letters") if task.form == "both" else (task.form,)
        items = {form: items_of(task, rows, limit=limit, seed=seed, form=form) for form in forms}  # type: ignore[arg-type]
    else:
        items = {task.scoring: items_of(task, rows, limit=limit, seed=seed, form="cloze")}
    # What is asked is what the prompts say: paths may differ between machines.
    described = asdict(task)
    described.pop("data")
    described["fewshot"].pop("data")
    prompts = hash_value(
        [[i.id, i.prompt, i.gold, i.text, i.choices, i.contexts] for v in items.values() for i in v]
    )
    hashes = {"model": model_hash, "task": hash_value(described), "data": rows.sha256, "prompts": prompts}
    return _Work(task, rows, items, settings, hashes)


def _finished(folder: Path, work: _Work) -> TaskResult | None:
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        described = read_json(path)
        same = described["settings"] == work.settings and described["hashes"] == work.hashes
        if same:
            table = pq.read_table(folder / ITEMS)
            return TaskResult(work.task.name, described["metrics"], described, table, reused=True)
        changed = [k for k in work.settings if described["settings"].get(k) != work.settings[k]]
        changed += [k for k in work.hashes if described["hashes"].get(k) != work.hashes[k]]
    except (ValueError, KeyError, AttributeError, TypeError, OSError, pa.ArrowException) as error:
        raise DataError(
            f"The results there cannot be read: {error}",
            where=str(path),
            remedy="Remove them, or choose another --out",
        ) from error
    raise RecipeError(
        f"There are results of {work.task.name} made otherwise: {', '.join(changed)} differ",
        where=str(path),
        remedy="Choose another folder with --out, or remove these",
    )


def _run(work: _Work, loaded: Loaded, out: str | Path | None, bar: Any) -> TaskResult:
    tables, metrics, counts = [], {}, {}
    for form, items in work.items.items():
        if work.task.scoring == "generation":
            kept = None if out is None else Path(out) / work.task.name
            seed = int(work.settings["seed"])
            scored = score_generation(
                work.task, items, loaded.model, loaded.tokenizer, seed=seed, out=kept,
                precision=loaded.precision, end_ids=loaded.end_ids,  # type: ignore[arg-type]
            )  # fmt: skip
            bar.advance(len(items))
        else:
            scored = score_task(work.task, form, items, loaded, bar.advance)
        table, metrics[form], counts[form] = scored
        tables.append(table)
    records = pa.concat_tables(tables)
    described = {
        "task": work.task.name,
        "version": work.task.version,
        "scoring": work.task.scoring,
        "normalization": work.task.normalization if work.task.scoring == "choice" else None,
        "settings": work.settings,
        "device": loaded.model.output_weight.device.type,
        "hashes": work.hashes,
        "few_shot": {"count": work.task.fewshot.count, "held_out_of_the_data": work.rows.held_out},
        "counts": counts,
        "metrics": metrics,
        "definition": asdict(work.task),
    }
    if out is not None:
        folder = Path(out) / work.task.name
        with replacing(folder / ITEMS) as temporary:
            pq.write_table(records, temporary)
        # Last: a task counts as finished when its results are there.
        write_json(folder / RESULTS, described)
    return TaskResult(work.task.name, metrics, described, records)
