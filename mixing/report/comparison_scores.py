"""The comparison page's sections on scores: values, paired differences, contamination, lengths, what was asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mixing.report.elements import (
    Block,
    Cell,
    Column,
    Disclosure,
    Excerpt,
    Excerpts,
    Prose,
    Section,
    Strip,
    Table,
)  # fmt: skip
from mixing.report.numbers import DASH, count, decimals_for, plain, signed, span, words
from probes.metric_values import NEITHER_IS_BETTER
from probes.result_comparison import Difference
from probes.side_by_side import Contender, SideBySide, outcome
from probes.task_results import TaskResult

GROUP = "Results"
TONES = {"better": "good", "worse": "bad", "not separable": "quiet"}
EXCERPT_CHARACTERS, MOST_EXCERPTS, MOST_QUESTIONS = 1200, 3, 5
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def sections(found: SideBySide) -> list[Section]:
    """Scores, differences, the questions behind them, contamination, lengths of answers."""
    if not found.tasks:
        return []
    every = [_scores(found)]
    if any(found.differences.values()):
        every += [_differences(found), _questions(found)]
    if any(r.contamination for c in found.contenders for r in c.results.values()):
        every.append(_contamination(found))
    if any("generation" in r.metrics for c in found.contenders for r in c.results.values()):
        every.append(_lengths(found))
    return every


def metric_words(metric: str) -> str:
    """A metric's name for people."""
    if metric.startswith("accuracy_"):
        rest = metric.removeprefix("accuracy_")
        return "accuracy" if rest == "none" else f"accuracy, {rest.replace('_', ' ')}"
    names = {
        "norm_correct_prob": "probability of the gold choice among the choices",
        "correct_prob": "probability of the gold choice",
        "bits_per_byte": "bits per byte, lower is better",
        "truncated": "share cut by the limit, lower is better",
        "no_answer": "share without an answer, lower is better",
        "mean_tokens": "mean tokens of an answer",
    }
    return names.get(metric, metric.replace("_", " "))


def _scores(found: SideBySide) -> Section:
    head = _table(found, "Headline metrics with intervals of 95 %.", headline=True)
    every = _table(found, "Every metric of every task.", headline=False)
    lead = "What each model scored on its own. Two are compared by the differences below: their intervals are narrower."
    return Section(
        "scores", "Scores", GROUP, (Prose(lead, "lead"), head, Disclosure("All metrics", (every,)))
    )


def _table(found: SideBySide, caption: str, *, headline: bool) -> Table:
    rows = []
    for task in found.tasks:
        results = [c.results.get(task) for c in found.contenders]
        first = next(r for r in results if r is not None)
        for form in dict.fromkeys(form for r in results if r for form in r.metrics):
            metrics = dict.fromkeys(m for r in results if r and form in r.metrics for m in r.metrics[form])
            for metric in metrics:
                if metric == "chance" or (headline and metric not in first.headlines(form)):
                    continue
                chance = first.metrics[form].get("chance") if metric.startswith("accuracy") else None
                told = metric_words(metric) + (f"; chance {plain(chance['value'], 3)}" if chance else "")
                cells = [_value(r, form, metric) for r in results]
                rows.append((Cell(task, form), Cell(told), *cells))
    columns = (
        Column("Task", False),
        Column("Metric", False, True),
        *(Column(c.name) for c in found.contenders),
    )
    return Table(caption, columns, tuple(rows))


def _value(result: TaskResult | None, form: str, metric: str) -> Cell:
    value = None if result is None else result.metrics.get(form, {}).get(metric)
    if value is None:
        return Cell(DASH, tone="quiet")
    between = span(value["low"], value["high"], 3) if "low" in value else ""
    return Cell(plain(value["value"], 3), between)


def _differences(found: SideBySide) -> Section:
    lead = (
        f"Each model minus {found.baseline}, on the same questions. The line is the interval of 95 %; where it leaves "
        "zero out, the difference is called."
    )
    blocks: list[Block] = [Prose(lead, "lead")]
    for name, differences in found.differences.items():
        shown = [d for d in differences if d.headline]
        if shown:
            blocks.append(_strips(name, found.baseline, shown))
        rest = [d for d in differences if not d.headline]
        if rest:
            inner = _strips(name, found.baseline, rest)
            blocks.append(Disclosure(f"{name}: {words(len(rest), 'other metric')}", (inner,)))
    return Section("differences", f"Differences to {found.baseline}", GROUP, tuple(blocks))


def _strips(name: str, baseline: str, differences: Sequence[Difference]) -> Table:
    largest: dict[str, float] = {}
    for d in differences:
        reach = max(abs(d.low), abs(d.high), abs(d.difference), 1e-12)
        largest[_unit(d)] = max(largest.get(_unit(d), 0.0), reach)
    rows = []
    for d in differences:
        said = "" if d.metric in NEITHER_IS_BETTER else outcome(d)
        scale = 48 / largest[_unit(d)]
        decimals = decimals_for([d.difference, d.low, d.high], digits=2, least=4)
        strip = Strip(
            zero=50.0,
            mean=50 + scale * d.difference,
            dots=(),
            low=50 + scale * d.low,
            high=50 + scale * d.high,
        )
        rows.append(
            (
                Cell(d.task, d.form),
                Cell(metric_words(d.metric)),
                Cell(signed(d.difference, decimals), span(d.low, d.high, decimals, sign=True)),
                Cell(strip=strip),
                Cell(said, tone=TONES.get(said, "")),
                Cell(count(d.items)),
            )
        )
    columns = (
        Column("Task", False),
        Column("Metric", False, True),
        Column("Difference"),
        Column("Interval around zero", False, True),
        Column("", False),
        Column("Questions"),
    )
    caption = f"{name} minus {baseline}. Drawn to one scale for each kind of metric."
    return Table(caption, columns, tuple(rows))


def _unit(difference: Difference) -> str:
    alone = ("bits_per_byte", "mean_tokens", "correct_prob")
    return difference.metric if difference.metric in alone else "share"


def _questions(found: SideBySide) -> Section:
    """Where the differences come from: questions by name, and answers of generation tasks."""
    base = next(c for c in found.contenders if c.name == found.baseline)
    blocks: list[Block] = [
        Prose(
            "The questions that moved most, and answers to some of them. Names are those of the task's file.",
            "lead",
        )
    ]
    for contender in found.contenders:
        if contender is base:
            continue
        inner: list[Block] = []
        for task in (task for task in base.results if task in contender.results):
            inner += _moved(task, contender.results[task], base.results[task])
        if inner:
            blocks.append(Disclosure(f"{contender.name} beside {base.name}", tuple(inner)))
    return Section("questions", "Questions that moved most", GROUP, tuple(blocks))


def _moved(task: str, ours: TaskResult, theirs: TaskResult) -> list[Block]:
    blocks: list[Block] = []
    for form in (form for form in ours.metrics if form in theirs.metrics):
        if form == "generation":
            blocks.append(_answers(task, ours, theirs))
            continue
        a, b = (_margins(result, form) for result in (ours, theirs))
        order = sorted((name for name in a if name in b), key=lambda name: (b[name] - a[name], name))
        chosen = list(dict.fromkeys([*order[:MOST_QUESTIONS], *order[-MOST_QUESTIONS:]]))
        rows = [
            (Cell(name), Cell(plain(a[name], 3)), Cell(plain(b[name], 3)), Cell(signed(a[name] - b[name], 3)))
            for name in chosen
        ]
        what = (
            "Probability of the gold choice"
            if "margin" in ours.records.schema.names
            else "Minus bits per byte"
        )
        columns = (Column("Question", False), Column("Here"), Column("Baseline"), Column("Difference"))
        blocks.append(
            Table(f"{task}, {form}: {what}; most gained first, most lost last.", columns, tuple(rows))
        )
    return blocks


def _margins(result: TaskResult, form: str) -> dict[str, float]:
    """A number for each question of which more is better."""
    rows = [row for row in result.records.to_pylist() if row["form"] == form]
    if rows and "bytes" in rows[0]:
        return {r["id"]: -r["nats"] / max(r["bytes"], 1) / float(np.log(2)) for r in rows}
    return {r["id"]: r["norm_correct_prob"] for r in rows}


def _answers(task: str, ours: TaskResult, theirs: TaskResult) -> Excerpts:
    """First answers to questions that only one of the two got right."""
    a, b = (_first_answers(result) for result in (ours, theirs))
    gained = [n for n in a if n in b and a[n]["correct"] and not b[n]["correct"]][:MOST_EXCERPTS]
    lost = [n for n in a if n in b and b[n]["correct"] and not a[n]["correct"]][:MOST_EXCERPTS]

    def excerpts(names: Iterable[str], tone: str) -> tuple[Excerpt, ...]:
        return tuple(
            Excerpt(f"states {a[n]['answer'] or 'nothing'}", n, a[n]["text"][:EXCERPT_CHARACTERS], tone)
            for n in names
        )

    return Excerpts(
        f"{task}: right here, wrong at the baseline", excerpts(gained, ""),
        f"{task}: wrong here, right at the baseline", excerpts(lost, "bad"),
    )  # fmt: skip


def _first_answers(result: TaskResult) -> dict[str, dict[str, Any]]:
    columns = result.records.select(["id", "replica", "text", "correct", "answer"]).to_pylist()
    return {row["id"]: row for row in columns if row["replica"] == 0}


def _contamination(found: SideBySide) -> Section:
    lead = (
        "Scores of the questions that stand in the text that the model was trained on, and of those that do not: dirty "
        "are those of which it holds half of the runs of 13 words. A gap is a hint: copied ones may be easier."
    )
    rows = []
    for task in found.tasks:
        for contender in found.contenders:
            result = contender.results.get(task)
            if result is None or not result.contamination:
                continue
            for form, metrics in result.contamination["scores"].items():
                metric = next((m for m in result.headlines(form) if m in metrics), None)
                if metric is not None:
                    sides = [_side(metrics[metric][side]) for side in ("clean", "dirty", "too_short")]
                    touched = result.contamination["questions"]["touched"]
                    told = f"{form}, {metric_words(metric)}"
                    rows.append((Cell(task, told), Cell(contender.name), *sides, Cell(count(touched))))
    columns = (Column("Task", False), Column("Model", False), Column("Clean"), Column("Dirty"),
               Column("Too short to tell"), Column("Any run found"))  # fmt: skip
    table = Table("Value, interval of 95 %, and number of questions.", columns, tuple(rows))
    return Section("contamination", "Questions in the training text", GROUP, (Prose(lead, "lead"), table))


def _side(found: dict[str, float] | None) -> Cell:
    if found is None:
        return Cell("none", tone="quiet")
    between = f"{span(found['low'], found['high'], 3)}; " if "low" in found else ""
    return Cell(plain(found["value"], 3), between + words(int(found["questions"]), "question"))


def _lengths(found: SideBySide) -> Section:
    rows = []
    for task in found.tasks:
        for contender in found.contenders:
            result = contender.results.get(task)
            if result is not None and "generation" in result.metrics:
                tokens = np.quantile(result.records["tokens"].to_numpy(), QUANTILES)
                rows.append((Cell(task), Cell(contender.name), *(Cell(count(value)) for value in tokens)))
    names = ("Least", "25 %", "Median", "75 %", "90 %", "Most")
    columns = (Column("Task", False), Column("Model", False), *(Column(name) for name in names))
    table = Table("Tokens of an answer, by quantile.", columns, tuple(rows))
    return Section("lengths", "Lengths of answers", GROUP, (table,))


def asked_section(found: SideBySide) -> Section:
    """What was asked, how, and of which data."""
    rows = []
    for task in found.tasks:
        contender = next(c for c in found.contenders if task in c.results)
        rows.append(_asked(task, contender))
    columns = (
        Column("Task", False),
        Column("Data", False),
        Column("Examples shown"),
        Column("Questions"),
        Column("Cut prompts"),
        Column("How", False, True),
    )
    caption = "Tasks with the same questions for all; hashes and all settings are in each results.json."
    return Section("asked", "What was asked", "Sources", (Table(caption, columns, tuple(rows)),))


def _asked(task: str, contender: Contender) -> tuple[Cell, ...]:
    described = contender.results[task].described
    definition, settings = described["definition"], described["settings"]
    counts = list(described["counts"].values())
    drawn = definition["generation"]
    how = f"{described['scoring']}, version {described['version']}, "
    how += f"context {settings['context']}, seed {settings['seed']}"
    if described["scoring"] == "generation":
        how += (
            f"; {words(drawn['samples'], 'sample')} of at most {count(drawn['max_tokens'])} tokens at temperature "
            f"{drawn['temperature']}, top-p {drawn['top_p']}, judged by {drawn['reward']}"
        )
    data = definition["data"].rsplit("/", 1)[-1] if definition["data"].startswith("/") else definition["data"]
    return (
        Cell(task, definition["source"]),
        Cell(data, f"{definition['split']}, {described['hashes']['data'][:12]}"),
        Cell(count(described["few_shot"]["count"])),
        Cell(count(counts[0]["items"])),
        Cell(count(max(c["items_with_dropped_context"] for c in counts))),
        Cell(how),
    )
