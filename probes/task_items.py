"""From rows to questions: templates filled, few-shot examples put before, gold answers found, rubbish refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from curation.atomic import hash_value
from curation.errors import DataError, RecipeError
from probes.task_programs import program_tests
from probes.task_record import Item, Task
from probes.task_rows import hash_rows, is_local, read_rows
from probes.templates import apply_filter, as_text, field_values, lookup, render

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = dict[str, Any]


@dataclass(frozen=True)
class TaskRows:
    """Rows to ask and rows to show. `held_out` of the former were taken as examples, `sha256` is of the data."""

    asked: list[tuple[int, Row]]
    shown: dict[str, list[Row]]
    held_out: int
    sha256: str


def rows_of(task: Task, *, seed: int) -> TaskRows:
    """Read the rows of a task and choose its few-shot examples."""
    rows = read_rows(task.data, task.subset, task.split, task.revision)
    if not rows:
        raise DataError(f"Task {task.name} has no rows", where=task.data, remedy="Give a file with questions")
    numbered = list(enumerate(rows, 1))
    sha256 = hash_rows(task.data, rows)
    few = task.fewshot
    if few.count == 0:
        return TaskRows(numbered, {}, 0, sha256)
    own = few.data is None and not few.examples and is_local(task.data)
    if few.examples:
        pool = list(few.examples)
    elif own:
        pool = rows
    else:
        # The subset of another dataset is not the task's.
        subset = few.subset or (None if few.data else task.subset)
        pool = read_rows(few.data or task.data, subset, few.split, few.revision or task.revision)
    groups = [""] if few.same is None else sorted({_group(task, row, n) for n, row in numbered})
    shown = {group: _examples(task, pool, group, seed) for group in groups}
    if own:
        taken = {id(row) for chosen in shown.values() for row in chosen}
        numbered = [(n, row) for n, row in numbered if id(row) not in taken]
        if not numbered:
            raise DataError(
                f"All rows of task {task.name} are few-shot examples, and none is left to ask", where=task.data,
                remedy="Give a file of examples of its own with --shots TASK=FILE, or more rows",
            )  # fmt: skip
    return TaskRows(numbered, shown, len(rows) - len(numbered), sha256)


def items_of(
    task: Task, rows: TaskRows, *, limit: int | None, seed: int, form: Literal["cloze", "letters"]
) -> list[Item]:
    """Items in the order of the rows. All rows are rendered, so that a bad one is found whatever the limit."""
    if limit is not None and limit < 1:
        raise RecipeError(
            f"A limit of {limit} questions is not possible", where="limit", remedy="Choose 1 or more"
        )
    blocks = {
        group: "".join(_solved(task, row, form) + task.fewshot.separator for row in chosen)
        for group, chosen in rows.shown.items()
    }
    seen: dict[str, int] = {}
    items = []
    for number, row in rows.asked:
        where = f"{task.data}, row {number}"
        name = as_text(lookup(row, task.id, where), task.id, where) if task.id else hash_value(row)[:16]
        if name in seen:
            if task.duplicates == "error":
                raise DataError(
                    f"Row {number} has the id of row {seen[name]}, {name}" if task.id
                    else f"Row {number} is row {seen[name]} again",
                    where=task.data,
                    remedy="Remove one, or write `duplicates: keep` into the task file",
                )  # fmt: skip
            name = f"{name}#{number}"
        seen[name] = number
        group = _group(task, row, number) if task.fewshot.same and task.fewshot.count else ""
        heading = task.letters_description if form == "letters" else task.description
        before = render(heading, row, where) + blocks.get(group, "")
        items.append(_item(task, row, where, name, before, form, number))
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def _item(task: Task, row: Row, where: str, name: str, before: str, form: str, number: int) -> Item:
    meta = {"row": row, "number": number}
    if task.scoring == "likelihood":
        text = _filled(task, task.text, row, where, "text")
        return Item(name, "", "", text=text, meta=meta, searched=(text,))
    if task.scoring != "choice":
        return Item(
            name,
            before + render(task.prompt, row, where),
            _gold(task, row, where),
            unconditional=task.unconditional,
            meta=meta,
            searched=_searched(task, row, where),
            head=render(task.generation.head, row, where),
        )
    choices, gold_choice = _choices(task, row, where)
    if form == "letters":
        continuations = tuple(task.delimiter + LETTERS[i] for i in range(len(choices)))
    else:
        continuations = tuple(task.delimiter + choice for choice in choices)
    contexts = tuple(before + _clean(task, render(template, row, where)) for template in task.contexts)
    prompt = before if contexts else before + _question(task, row, where, choices, form)
    return Item(
        name,
        prompt,
        continuations[gold_choice],
        continuations,
        gold_choice,
        task.unconditional,
        meta=meta,
        contexts=contexts,
        choice_texts=tuple(c[len(task.delimiter) :] for c in continuations),
        searched=_searched(task, row, where, () if contexts else choices),
    )


def _gold(task: Task, row: Row, where: str) -> str:
    if task.scoring == "generation" and task.generation.reward == "code":
        return program_tests(task, row, where)
    return _filled(task, task.gold, row, where, "gold answer")


def _searched(task: Task, row: Row, where: str, choices: Sequence[str] = ()) -> tuple[str, ...]:
    """The question's fields, and these with the choices, or the fields of the reference answer."""
    asked = field_values(" ".join([task.prompt, *task.contexts]), row, where)
    question = "\n".join(asked)
    if task.scoring == "choice":
        return (question, "\n".join([question, *choices])) if choices else (question,)
    if task.generation.reward == "code" and task.scoring == "generation":
        return (question,)  # the gold are its tests
    answer = "\n".join(value for value in field_values(task.gold, row, where) if value not in asked)
    return (question, answer) if answer else (question,)


def _question(task: Task, row: Row, where: str, choices: Sequence[str], form: str) -> str:
    if form != "letters":
        return _clean(task, render(task.prompt, row, where))
    if len(choices) > len(LETTERS):
        raise DataError(f"{len(choices)} choices are more than there are letters", where=where)
    listed = "\n".join(f" {LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    return _clean(task, render(task.letters_prompt, row | {"lettered_choices": listed}, where))


def _choices(task: Task, row: Row, where: str) -> tuple[list[str], int]:
    if task.contexts:
        ending = _clean(task, render(str(task.choices), row, where))
        choices = [ending] * len(task.contexts)
    elif isinstance(task.choices, tuple):
        choices = [_clean(task, render(template, row, where)) for template in task.choices]
    else:
        listed = lookup(row, task.choices, where)
        if not isinstance(listed, list | tuple):
            raise DataError(f"Field {task.choices!r} is not a list of choices", where=where)
        choices = [_clean(task, as_text(choice, task.choices, where)) for choice in listed]
    if len(choices) < 2:
        raise DataError(
            f"The row has {len(choices)} choices",
            where=where,
            remedy="A choice needs two or more; mend the row",
        )
    empty = [i for i, choice in enumerate(choices) if not choice.strip()]
    if empty:
        raise DataError(
            f"Choice {empty[0] + 1} of {len(choices)} is empty", where=where, remedy="Mend the row"
        )
    return choices, _gold_choice(task, row, where, choices)


def _gold_choice(task: Task, row: Row, where: str, choices: Sequence[str]) -> int:
    gold = render(task.gold, row, where).strip()
    if task.gold_kind in ("index", "one_based"):
        at = (
            int(gold) - (task.gold_kind == "one_based")
            if gold.isascii() and gold.isdigit() and len(gold) < 4
            else -1
        )
    elif task.gold_kind == "boolean":
        at = {"false": 0, "true": 1}.get(gold.lower(), -1)
    elif task.gold_kind == "label":
        labels = [str(label) for label in lookup(row, str(task.labels), where)]
        if len(labels) != len(choices):
            raise DataError(f"The row has {len(choices)} choices but {len(labels)} labels", where=where)
        at = labels.index(gold) if gold in labels else -1
    else:
        at = list(choices).index(gold) if gold in choices else -1
    if not 0 <= at < len(choices):
        raise DataError(
            f"The gold answer {gold[:40]!r} is not one of the {len(choices)} choices", where=where,
            remedy=f"Mend the row, or `gold_kind` of the task, which is {task.gold_kind}",
        )  # fmt: skip
    return at


def _solved(task: Task, row: Row, form: str) -> str:
    where = f"few-shot example of {task.name}"
    if task.scoring != "choice":
        shown = _filled(task, task.fewshot.solution or task.gold, row, where, "solution")
        if task.scoring == "generation" and not shown[0].isspace() and not task.prompt.endswith("\n"):
            shown = task.delimiter + shown  # a prompt that ends in "Answer:" asks for a space
        return render(task.prompt, row, where) + shown
    item = _item(replace(task, id=None), row, where, "", "", form, 0)
    at = item.gold_choice or 0
    return (item.contexts[at] if item.contexts else item.prompt) + item.choices[at]


def _examples(task: Task, pool: list[Row], group: str, seed: int) -> list[Row]:
    few = task.fewshot
    fitting = pool if few.same is None else [r for r in pool if str(r.get(few.same)) == group]
    fitting = fitting[few.skip :]
    if len(fitting) < few.count:
        raise DataError(
            f"Task {task.name} shows {few.count} examples, but there are {len(fitting)}",
            where=f"{few.same} {group}" if few.same else str(few.data or task.data),
            remedy="Give a file with more of them with --shots TASK=FILE, or lower `fewshot.count`",
        )
    if few.pick == "first":
        return fitting[: few.count]
    return random.Random(f"{seed}/{group}").sample(fitting, few.count)


def _group(task: Task, row: Row, number: int) -> str:
    where = f"{task.data}, row {number}"
    return as_text(lookup(row, str(task.fewshot.same), where), str(task.fewshot.same), where)


def _filled(task: Task, template: str, row: Row, where: str, what: str) -> str:
    text = render(template, row, where)
    if not text.strip():
        raise DataError(f"The {what} is empty", where=where, remedy="Mend or remove the row")
    return text


def _clean(task: Task, text: str) -> str:
    return apply_filter(text, task.clean, task.name) if task.clean else text
