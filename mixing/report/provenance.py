"""The sections on the data: the curation funnel, the raters, the probes, and records that could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curation.atomic import read_json
from mixing.report.elements import (
    Block,
    Bullets,
    Cell,
    Column,
    Disclosure,
    Facts,
    Palette,
    Prose,
    Section,
    Table,
)
from mixing.report.gather import UNREADABLE, number
from mixing.report.numbers import DASH, count, listed, percent, plain, size, span, words
from mixing.report.records import RunFacts
from probes.intervals import bootstrap_bits_per_byte

STAGES = ("read", "educational", "reasoning", "domain", "deduplicated", "representative")
READ = ("read", "broken", "empty", "duplicates", "not_sampled", "kept")
READ_TITLES = {"not_sampled": "Beyond the limit", "duplicates": "Exact copies"}
GROUP = "Data"
AGREEMENT = ("trained_on", "held_out", "positives", "auc", "accuracy", "accuracy_of_majority", "correlation")


def sections(facts: RunFacts, run: Path, palette: Palette) -> list[Section]:
    """Funnel, raters, probes, broken records."""
    return [
        _funnel(facts, run, palette),
        _raters(facts),
        _probes(facts, run, palette),
        _broken(facts, palette),
    ]


def _funnel(facts: RunFacts, run: Path, palette: Palette) -> Section:
    title = "The funnel: from what was read to the representative sets"
    if not facts.funnel and not facts.reads:
        return Section(
            "funnel", title, GROUP, missing="No corpus was read", command="mixwright curate recipe.yaml"
        )
    blocks: list[Block] = []
    if facts.funnel:
        blocks += [Prose(_funnel_lead(facts), "lead"), _funnel_table(facts, palette)]
        copies = _duplicates(run)
        if copies:
            blocks.append(Prose(copies))
    if facts.reads:
        blocks.append(_read_table(facts, palette))
    return Section("funnel", title, GROUP, tuple(blocks))


def _funnel_lead(facts: RunFacts) -> str:
    stages = [s for s in STAGES if any(stage == s for _, stage, _ in facts.funnel)]
    totals = {s: sum(n for _, stage, n in facts.funnel if stage == s) for s in stages}
    first, last = totals[stages[0]] if stages else 0, totals[stages[-1]] if stages else 0
    return (
        f"{count(last)} of {count(first)} documents ({percent(last / first if first else None)}) represent their "
        "sources. Each step keeps the documents that score best; the probes are made from what is left."
    )


def _funnel_table(facts: RunFacts, palette: Palette) -> Table:
    counts = {(source, stage): n for source, stage, n in facts.funnel}
    stages = [s for s in STAGES if any(k[1] == s for k in counts)]
    stages += sorted({stage for _, stage in counts} - set(stages))
    names = palette.sort({source for source, _ in counts})
    rows = []
    for name in names:
        rows.append((palette.name_cell(name), *_funnel_cells([counts.get((name, s)) for s in stages])))
    totals = [sum(counts.get((name, s), 0) for name in names) for s in stages]
    rows.append((Cell("all"), *_funnel_cells(list(totals))))
    return Table(
        "Documents left after each step, and the share of the step before",
        (Column("Source", numeric=False), *(Column(s) for s in stages)),
        tuple(rows),
        total=True,
    )


def _funnel_cells(counts: Sequence[int | None]) -> list[Cell]:
    cells, before = [], None
    for n in counts:
        share = percent(n / before, 0) if n is not None and before else ""
        cells.append(Cell(count(n), share))
        before = n if n is not None else before
    return cells


def _duplicates(run: Path) -> str:
    file = run / "representative" / "duplicates.parquet"
    if not file.is_file():
        return ""
    try:
        rows = pl.scan_parquet(file).select("dropped", "cosine").collect()
    except (*UNREADABLE, pl.exceptions.PolarsError):
        return ""
    if rows.height == 0:
        return "Semantic deduplication found no near copies among them."
    lowest = rows["cosine"].min()
    least = plain(float(lowest), 3) if isinstance(lowest, int | float) else DASH
    return (
        f"Semantic deduplication dropped {words(rows.height, 'document')}, each with the one that was kept instead "
        f"(cosine {least} or more) in representative/duplicates.parquet."
    )


def _read_table(facts: RunFacts, palette: Palette) -> Table:
    by_name = {r.source: r for r in facts.reads}
    shown = [k for k in READ if any(k in r.counts for r in facts.reads)]
    rows = []
    for name in palette.sort(set(by_name)):
        counts = by_name[name].counts
        cells = [
            Cell(count(counts.get(k)), tone="bad" if k == "broken" and counts.get(k) else "") for k in shown
        ]
        capabilities = listed(list(facts.capabilities.get(name, ()))) or "none stated"
        rows.append((palette.name_cell(name), Cell(capabilities), *cells, Cell(size(counts.get("bytes")))))
    return Table(
        "What was read from each source, before any judgement of quality",
        (
            Column("Source", numeric=False),
            Column("Capabilities", numeric=False),
            *(Column(READ_TITLES.get(k, k).capitalize()) for k in shown),
            Column("Text"),
        ),
        tuple(rows),
    )


def _raters(facts: RunFacts) -> Section:
    title = "The raters: who decided what is good"
    if not facts.raters:
        return Section(
            "raters",
            title,
            GROUP,
            missing="This run has no raters of its own (published ones are named among the settings)",
            command="mixwright curate recipe.yaml",
        )
    blocks: list[Block] = [
        Prose(
            "The raters of this run are small models that it trained itself, from the labels listed here. They are as "
            "good as these labels and know nothing else: they stand in for a published classifier and a published "
            "language model as judge. Agreement is measured on labelled documents that they were not trained on.",
            "lead",
        )
    ]
    for name, value in facts.raters:
        blocks.append(_rater(name, value))
    if facts.recipe.labels:
        blocks.append(_labels(facts))
    return Section("raters", title, GROUP, tuple(blocks))


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
    size = f", {shape.get('layers')} layers of width {shape.get('dim')}" if isinstance(shape, dict) else ""
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
        (Cell(rule.task), Cell(rule.name), Cell(f"{rule.label:g}"), Cell(rule.given_to), Cell(rule.why))
        for rule in facts.recipe.labels
    )
    table = Table(
        "The first rule that fits labels a document; 0 to 5 for the educational score, 0 or 1 for the judge",
        (
            Column("Task", numeric=False),
            Column("Rule", numeric=False),
            Column("Label"),
            Column("Given to", numeric=False, wide=True),
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
            Column(n.replace("_", " "), numeric[n] and at > 0, wide=n == "why") for at, n in enumerate(names)
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


def _probes(facts: RunFacts, run: Path, palette: Palette) -> Section:
    title = "The probes: what a capability is measured on"
    tables = []
    for folder, caption in (
        ("probes", "Probe documents by source: the search for the mixture sees them, training does not"),
        ("test", "Test documents by source: neither training nor the search sees them"),
    ):
        counts = _counts(run / folder)
        if counts:
            tables.append(_count_table(caption, counts, palette))
    levels = _levels(facts, run, palette)
    if levels is not None:
        tables.insert(0, levels)
    if not tables:
        return Section(
            "probes", title, GROUP, missing="No probes were made", command="mixwright curate recipe.yaml"
        )
    lead = (
        "A capability is its probe set: the loss on held-out documents of the sources that are said to have it, in "
        "bits per byte, so that it does not depend on the tokenizer."
    )
    return Section("probes", title, GROUP, (Prose(lead, "lead"), *tables))


def _levels(facts: RunFacts, run: Path, palette: Palette) -> Table | None:
    """Bits per byte of the model that was trained on everything, on each probe and on each source's part of it."""
    try:
        # Only the last part of the name: what stands in a file must not lead out of the run.
        name = Path(str(read_json(run / "proxy_runs" / "baseline.json")["run_id"])).name
        files = (run / "proxy_runs" / name / "evaluations").glob("step-*.parquet")
        last = max(files, key=lambda file: int(file.stem.removeprefix("step-")), default=None)
        table = pl.read_parquet(last) if last is not None else None
    except (*UNREADABLE, pl.exceptions.PolarsError):
        return None
    if table is None or table.is_empty():
        return None
    probes = [c for c in facts.capability_names if c in set(table["probe"])]
    sources = palette.sort(set(table["source"]))
    rows = [
        (
            palette.name_cell(source),
            *(_level(table.filter((pl.col("probe") == p) & (pl.col("source") == source))) for p in probes),
        )
        for source in sources
    ]
    rows.append((Cell("all"), *(_level(table.filter(pl.col("probe") == p)) for p in probes)))
    return Table(
        "Where it starts: bits per byte of the proxy model trained on the uniform mixture, by the source of the probe "
        "documents, with 90 % intervals over documents",
        (Column("Source of the probe", numeric=False), *(Column(p) for p in probes)),
        tuple(rows),
        total=True,
    )


def _level(rows: pl.DataFrame) -> Cell:
    """Bits per byte of some probe documents."""
    if rows.is_empty():
        return Cell(DASH, tone="quiet")
    found = bootstrap_bits_per_byte(rows.to_arrow())
    return Cell(
        plain(found.value, 3), span(found.low, found.high, 3) if found.documents > 1 else "one document"
    )


def _counts(folder: Path) -> dict[tuple[str, str], int]:
    """Documents by source and file name."""
    found: dict[tuple[str, str], int] = {}
    for file in sorted(folder.glob("*.parquet")):
        try:
            rows = pl.scan_parquet(file).group_by("source").len().collect()
        except (*UNREADABLE, pl.exceptions.PolarsError):
            continue
        found |= {(source, file.stem): n for source, n in rows.iter_rows()}
    return found


def _count_table(caption: str, counts: Mapping[tuple[str, str], int], palette: Palette) -> Table:
    names = sorted({name for _, name in counts})
    sources = palette.sort({source for source, _ in counts})
    rows = [(palette.name_cell(s), *(Cell(count(counts.get((s, n), 0))) for n in names)) for s in sources]
    rows.append((Cell("all"), *(Cell(count(sum(counts.get((s, n), 0) for s in sources))) for n in names)))
    return Table(
        caption, (Column("Source", numeric=False), *(Column(n) for n in names)), tuple(rows), total=True
    )


def _broken(facts: RunFacts, palette: Palette) -> Section:
    title = "Records that could not be read"
    if not facts.reads:
        return Section(
            "broken", title, GROUP, missing="No corpus was read", command="mixwright curate recipe.yaml"
        )
    broken = sum(r.counts.get("broken", 0) for r in facts.reads)
    empty = sum(r.counts.get("empty", 0) for r in facts.reads)
    read = sum(r.counts.get("read", 0) for r in facts.reads)
    if not broken and not empty:
        return Section(
            "broken",
            title,
            GROUP,
            (Prose(f"None: all {count(read)} records of all sources were documents.", "lead"),),
        )
    lead = (
        f"{count(broken)} broken and {count(empty)} empty records of {count(read)} "
        f"({percent((broken + empty) / read if read else None, 2)}) were left out."
    )
    rows = tuple(
        (palette.name_cell(r.source), Cell(where), Cell(why))
        for r in facts.reads
        for where, why in r.broken_examples
    )
    blocks: list[Block] = [Prose(lead, "lead")]
    per_source = [
        f"{r.source}: {count(r.counts.get('broken', 0))} broken, {count(r.counts.get('empty', 0))} empty"
        for r in facts.reads
        if r.counts.get("broken") or r.counts.get("empty")
    ]
    blocks.append(Bullets(tuple(per_source)))
    if rows:
        blocks.append(
            Table(
                "The first of them",
                (
                    Column("Source", numeric=False),
                    Column("Where", numeric=False),
                    Column("Why", numeric=False, wide=True),
                ),
                rows,
            )
        )
    return Section("broken", title, GROUP, tuple(blocks))
