"""The section on the raters: what they are, how far they agree with labels, and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixing.report.elements import (
    Block,
    Cell,
    Column,
    Disclosure,
    Facts,
    Prose,
    Section,
    Table,
)
from mixing.report.gather import number
from mixing.report.numbers import DASH, count
from mixing.report.records import RunFacts

GROUP = "Data"
AGREEMENT = ("trained_on", "held_out", "positives", "auc", "accuracy", "accuracy_of_majority", "correlation")


def sections(facts: RunFacts) -> list[Section]:
    """The raters."""
    return [_raters(facts)]


def _raters(facts: RunFacts) -> Section:
    title = "The raters: who decided what is good"
    if not facts.raters and not facts.rater_models:
        return Section(
            "raters", title, GROUP, missing="No rater is there", command="mixwright curate recipe.yaml"
        )
    blocks: list[Block] = []
    if facts.raters:
        blocks.append(
            Prose(
                "The raters of this run are small models that it trained itself, from the labels listed here. They are "
                "as good as these labels and know nothing else: they stand in for a published classifier and a "
                "published language model as judge. Agreement is measured on labelled texts that they have not seen.",
                "lead",
            )
        )
    else:
        blocks.append(Prose("This run trained no raters of its own: it asked published models.", "lead"))
    if facts.rater_models:
        blocks.append(Facts(tuple((role, _origin(model)) for role, model in facts.rater_models.items())))
    for name, value in facts.raters:
        blocks.append(_rater(name, value))
    if facts.recipe.labels:
        blocks.append(_labels(facts))
    return Section("raters", title, GROUP, tuple(blocks))


def _origin(model: str) -> str:
    return "trained by this run" if model == "trained" else f"published: {model}"


def _rater(name: str, value: Mapping[str, Any]) -> Table | Disclosure:
    """A rater with its agreement by task; a record of another shape is shown as it is."""
    tasks = value.get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(t, dict) for t in tasks.values()):
        facts = [item for k, v in value.items() if not _is_rows(v) for item in flat(k, v)]
        tables = [rows_table(k.replace("_", " ").capitalize(), v) for k, v in value.items() if _is_rows(v)]
        return Disclosure(name, (Facts(tuple(facts)), *tables))
    made = value.get("made_from") or {}
    kind = str(made.get("rater", name)) if isinstance(made, dict) else name
    shape = made.get("settings") if isinstance(made, dict) else None
    size = f", layers: {shape.get('layers')}, width: {shape.get('dim')}" if isinstance(shape, dict) else ""
    rows = [{"task": task, **_ordered(figures)} for task, figures in tasks.items()]
    return rows_table(
        f"The {kind}{size}: agreement with labels of texts that it has not seen (auc: the chance that a good text "
        "scores above a bad one, 0.5 is guessing)",
        rows,
    )


def _ordered(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The known figures in the order of reading, then the others."""
    return {k: figures[k] for k in AGREEMENT if k in figures} | dict(figures)


def _labels(facts: RunFacts) -> Disclosure:
    rows = tuple(
        (
            Cell(rule.task),
            Cell(rule.name),
            Cell(f"{rule.label:g}"),
            Cell(rule.given_to),
            Cell(count(facts.label_counts.get((rule.task, rule.name)))),
            Cell(rule.why),
        )
        for rule in facts.recipe.labels
    )
    table = Table(
        "The first rule that fits labels a document; 0 to 5 for the educational score, 0 or 1 for the judge",
        (
            Column("Task", numeric=False),
            Column("Rule", numeric=False),
            Column("Label"),
            Column("Given to", numeric=False, wide=True),
            Column("Examples"),
            Column("Why", numeric=False, wide=True),
        ),
        rows,
    )
    return Disclosure("The labels that the recipe states, and why", (table,))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def rows_table(caption: str, rows: Sequence[Mapping[str, Any]], most: int = 60) -> Table:
    """Any list of records as a table; columns in the order of first appearance."""
    names = list(dict.fromkeys(k for row in rows for k in row))
    numeric = {n: all(number(r.get(n)) is not None for r in rows if r.get(n) is not None) for n in names}
    more = "" if len(rows) <= most else f" (the first {most} of {len(rows)})"
    return Table(
        caption + more,
        tuple(
            Column(n.replace("_", " ").capitalize(), numeric[n] and at > 0, wide=n == "why")
            for at, n in enumerate(names)
        ),
        tuple(tuple(Cell(said(row.get(n))) for n in names) for row in rows[:most]),
    )


def said(value: Any) -> str:
    """A JSON value as a reader wants it."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:,.4g}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(said(v) for v in value) or DASH
    if isinstance(value, dict):
        return "; ".join(f"{k} {said(v)}" for k, v in value.items()) or DASH
    return str(value)


def flat(key: str, value: Any, depth: int = 0) -> list[tuple[str, str]]:
    """A JSON value as names with values, one level of nesting deep."""
    name = key.replace("_", " ")
    if isinstance(value, dict) and depth < 2:
        return [item for k, v in value.items() for item in flat(f"{key} · {k}", v, depth + 1)]
    return [(name, said(value))]
