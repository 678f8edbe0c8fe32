"""Tasks: what to ask a model and how to score it, as data in a small YAML file.

A task file names its rows (a local file or a hub dataset), templates for the prompt, the gold answer and the
choices, the few-shot examples and the way of scoring. Keys are the fields of `Task`, `FewShot` and
`Generation`; an unknown key is an error. The files of the common benchmarks are in `probes/task_files`.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from curation.errors import RecipeError
from probes.task_items import items_of, rows_of
from probes.task_record import FewShot, Generation, Item, Scoring, Task
from probes.templates import apply_filter, check_template

__all__ = ["FewShot", "Generation", "Item", "Scoring", "Task", "load_task", "read_items", "task_names"]

TASK_FILES = Path(__file__).parent / "task_files"


def task_names() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(path.stem for path in TASK_FILES.glob("*.yaml"))


def load_task(name_or_path: str | Path) -> Task:
    """A task by the name of a shipped file, or from a YAML file of one's own.

    Raises RecipeError naming the file and the key that is unknown, missing or of the wrong type.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = TASK_FILES / f"{name_or_path}.yaml"
        if str(name_or_path) not in task_names():
            close = difflib.get_close_matches(str(name_or_path), task_names(), n=1)
            raise RecipeError(
                f"There is no task {str(name_or_path)!r}",
                where="tasks",
                remedy=(f"Did you mean {close[0]}? " if close else "")
                + f"Known are {', '.join(task_names())}, or give a .yaml file",
            )
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"The task file cannot be read: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"The task file is not YAML: {error}", where=str(path)) from error
    task = _record(Task, described, str(path))
    few = replace(task.fewshot, data=_beside(task.fewshot.data, path)) if task.fewshot.data else task.fewshot
    task = replace(task, data=_beside(task.data, path), fewshot=few)
    _check(task, str(path))
    return task


def _beside(data: str, task_file: Path) -> str:
    """A file beside the task file where there is one; else a path from here, or a hub id, as it stands."""
    here = task_file.parent / data
    return str(here) if here.is_file() else data


def read_items(
    task: Task, *, limit: int | None = None, seed: int = 0, form: Literal["cloze", "letters"] | None = None
) -> list[Item]:
    """The questions of a task, rendered with their few-shot examples, in the order of the rows.

    limit : ask so many, drawn by `seed` and kept in order; all of them by default
    seed  : of the draw, and of few-shot examples picked at random
    form  : of a choice; by default the task's own, cloze for "both"

    Raises DataError naming the row: a missing field, no choices, a gold outside them, a duplicate.
    """
    chosen = form or ("letters" if task.form == "letters" else "cloze")
    if chosen == "letters" and not task.letters_prompt:
        raise RecipeError(f"Task {task.name} has no 'letters_prompt', so no lettered form", where="form")
    return items_of(task, rows_of(task, seed=seed), limit=limit, seed=seed, form=chosen)


def _record(kind: type[Any], described: Any, where: str) -> Any:
    if not isinstance(described, dict):
        raise RecipeError(f"Here should be keys and values, not {type(described).__name__}", where=where)
    known = {f.name: f for f in fields(kind)}
    for key in described:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise RecipeError(
                f"There is no key {key!r} in a task file",
                where=where,
                remedy=f"Did you mean {close[0]}?".rstrip("?") if close else f"Known are {', '.join(known)}",
            )
    for name, entry in known.items():
        if name not in described and entry.default is MISSING and entry.default_factory is MISSING:
            raise RecipeError(f"The key {name!r} is missing", where=where, remedy="Add it to the task file")
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in described.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type; lists become tuples. RecipeError when it is not of that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise RecipeError(
            f"{value!r} is not one of {', '.join(map(str, arguments))}",
            where=where,
            remedy="Choose one of them",
        )
    if origin in (types.UnionType, typing.Union):
        for argument in arguments:
            try:
                return _value(argument, value, where)
            except RecipeError:
                continue
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_value(arguments[0], entry, where) for entry in value)
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif hint is type(None):
        if value is None:
            return None
    elif hint in (FewShot, Generation):
        return _record(hint, value, where)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise RecipeError(f"{value!r} is not of the right type ({getattr(hint, '__name__', hint)})", where=where)


def _check(task: Task, where: str) -> None:
    needed = {
        "likelihood": ("text",),
        "gold_bpb": ("prompt", "gold"),
        "choice": ("choices", "gold"),
        "generation": ("prompt", "gold"),
    }[task.scoring]
    for name in needed:
        if not getattr(task, name):
            raise RecipeError(f"A task with {task.scoring} scoring needs {name!r}", where=where)
    if task.form != "cloze" and not task.letters_prompt:
        raise RecipeError("The lettered form needs 'letters_prompt'", where=where)
    if task.gold_kind == "label" and not task.labels:
        raise RecipeError("A gold that is a label needs 'labels'", where=where)
    if min(task.fewshot.count, task.fewshot.skip) < 0 or task.version < 1:
        raise RecipeError("'fewshot.count' and 'skip' are at least 0 and 'version' at least 1", where=where)
    if task.contexts and (
        not isinstance(task.choices, str) or "{" not in task.choices or task.form != "cloze"
    ):
        raise RecipeError("With 'contexts', 'choices' is one template and the form is cloze", where=where)
    drawn = task.generation
    if (
        drawn.max_tokens < 1
        or drawn.samples < 1
        or any(not 1 <= b <= drawn.max_tokens for b in drawn.budgets)
    ):
        raise RecipeError(
            "'generation' needs at least one token and one sample, and no budget above 'max_tokens'",
            where=where,
        )
    templates = [task.prompt, task.text, task.gold, task.letters_prompt, *task.contexts]
    templates += [task.fewshot.solution, drawn.head, drawn.check, task.description, task.letters_description]
    if isinstance(task.choices, tuple):
        templates += task.choices
    for template in templates:
        check_template(template, where)
    if task.clean:
        apply_filter("", task.clean, where)
