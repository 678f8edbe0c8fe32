"""The sections on the data: the curation funnel, what is left to train on, records that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from curation.atomic import read_json
from curation.funnel import STAGES
from mixing.report.elements import (
    Block,
    Bullets,
    Cell,
    Column,
    Disclosure,
    Palette,
    Prose,
    Section,
    Table,
)
from mixing.report.gather import UNREADABLE, number
from mixing.report.numbers import DASH, compact, count, listed, percent, plain, sentence, size, words
from mixing.report.records import RunFacts
from mixing.report.thresholds import threshold_blocks

STAGE_TITLES = {
    "language": "In its languages",
    "exact": "Exact copies out",
    "minhash": "Near copies out",
    "deduplicated": "Paraphrases out",
}
READ = ("read", "broken", "empty", "duplicates", "not_sampled", "kept")
READ_TITLES = {"not_sampled": "Beyond the limit", "duplicates": "Exact copies"}
TOKENS = {
    "documents": "Documents",
    "held_out": "Held out",
    "overlapping_held_out_text": "Overlapping held-out text",
    "tokens": "Tokens",
}
GROUP = "Data"
SAME_ADVICE = 3
RECHECKED = " in float32 too"


def funnel_section(facts: RunFacts, run: Path, palette: Palette) -> Section:
    """From what was read to the representative sets, and to the tokens that are trained on."""
    title = "The funnel: from what was read to the representative sets"
    if not facts.funnel and not facts.reads:
        return Section(
            "funnel", title, GROUP, missing="No corpus was read", command="mixwright curate recipe.yaml"
        )
    blocks: list[Block] = []
    if facts.funnel:
        blocks += [Prose(_funnel_lead(facts), "lead"), _funnel_table(facts, run, palette)]
        blocks += [Prose(copies) for copies in (_near_duplicates(run), _duplicates(run)) if copies]
        blocks += threshold_blocks(facts, run, palette)
    if facts.reads:
        blocks.append(_read_table(facts, palette))
    if facts.token_counts:
        blocks.append(_token_table(facts, palette))
        blocks += _held_out_blocks(run)
    blocks += warning_blocks(facts.warnings)
    return Section("funnel", title, GROUP, tuple(blocks))


def warning_blocks(warnings: Sequence[str]) -> list[Block]:
    """Warnings in their order; those that end in the same advice, after a colon, are one with a list to open.

    What was computed again in float32 is no warning but a note on how the cuts were made.

    >>> [(block.kind, block.tone) for block in warning_blocks(["a: do x", "b: do x", "c: do x", "d has 9"])]
    [('disclosure', 'warning'), ('prose', 'warning')]
    """
    rechecks = [text for text in warnings if RECHECKED in text]
    groups: dict[str, list[str]] = {}
    for text in warnings:
        if text not in rechecks:
            head, _, advice = text.rpartition(": ")
            groups.setdefault(advice if head else text, []).append(text)
    blocks: list[Block] = []
    for advice, members in groups.items():
        if len(members) < SAME_ADVICE:
            blocks += [Prose(sentence(text), "warning") for text in members]
            continue
        heads = [text.removesuffix(f": {advice}") for text in members]
        title = f"{count(len(heads))} warnings such as: {heads[0]}. To mend them: {advice}"
        items = tuple(sentence(head) for head in heads)
        blocks.append(Disclosure(sentence(title), (Bullets(items),), tone="warning"))
    if len(rechecks) < SAME_ADVICE:
        return [*blocks, *(Prose(sentence(text), "note") for text in rechecks)]
    title = f"Scores near a cut were computed again in float32 ({words(len(rechecks), 'measurement')})"
    return [*blocks, Disclosure(title, (Bullets(tuple(sentence(text) for text in rechecks)),))]


def _funnel_lead(facts: RunFacts) -> str:
    stages = [s for s in STAGES if any(stage == s for _, stage, _ in facts.funnel)]
    totals = {s: sum(n for _, stage, n in facts.funnel if stage == s) for s in stages}
    first, last = totals[stages[0]] if stages else 0, totals[stages[-1]] if stages else 0
    return (
        f"{count(last)} of {count(first)} documents ({percent(last / first if first else None)}) represent their "
        "sources. Each step keeps the documents that score best; the probes are made from what is left."
    )


def _funnel_table(facts: RunFacts, run: Path, palette: Palette) -> Table:
    counts = {(source, stage): n for source, stage, n in facts.funnel}
    tokens = _tokens(run)
    stages = [s for s in STAGES if any(k[1] == s for k in counts)]
    stages += sorted({stage for _, stage in counts} - set(stages))
    names = palette.sort({source for source, _ in counts})
    rows = []
    for name in names:
        cells = _funnel_cells(
            [counts.get((name, s)) for s in stages], [tokens.get((name, s)) for s in stages]
        )
        rows.append((palette.name_cell(name), *cells))
    totals = [sum(counts.get((name, s), 0) for name in names) for s in stages]
    sums = [sum(tokens.get((name, s), 0) for name in names) if tokens else None for s in stages]
    rows.append((Cell("all"), *_funnel_cells(list(totals), sums)))
    counted = ", and the tokens" if tokens else ""
    return Table(
        f"Documents left after each step; below, the share of the step before{counted}",
        (Column("Source", numeric=False), *(Column(STAGE_TITLES.get(s, s.capitalize())) for s in stages)),
        tuple(rows),
        total=True,
    )


def _tokens(run: Path) -> dict[tuple[str, str], int]:
    """Tokens by source and stage; empty for runs that did not count them."""
    try:
        rows = read_json(run / "representative" / "funnel.json")
        return {(str(r["source"]), str(r["stage"])): int(r["tokens"]) for r in rows if "tokens" in r}
    except UNREADABLE:
        return {}


def _funnel_cells(counts: Sequence[int | None], tokens: Sequence[int | None]) -> list[Cell]:
    cells, before = [], None
    for n, amount in zip(counts, tokens, strict=True):
        share = percent(n / before, 0) if n is not None and before else ""
        size = "" if amount is None else compact(amount)
        cells.append(Cell(count(n), "\n".join(part for part in (share, size) if part)))
        before = n if n is not None else before
    return cells


def _near_duplicates(run: Path) -> str:
    """What was dropped as a copy before anything was scored."""
    try:
        report = read_json(run / "near_duplicates" / "report.json")
        exact, near = (sum(int(row[kind]) for row in report["sources"]) for kind in ("exact", "minhash"))
        minhash = report["settings"]["minhash"]
        least = None if minhash is None else float(minhash["similarity"])
    except UNREADABLE:
        return ""
    least_said = "" if least is None else f" (Jaccard similarity {plain(least, 2)} or more)"
    near_said = "" if least is None else f" and {words(near, 'near-duplicate')}{least_said}"
    return (
        f"Before scoring: {words(exact, 'exact duplicate')}{near_said} left out, each with the "
        "document that was kept instead in near_duplicates/near_duplicates.parquet."
    )


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


def _token_table(facts: RunFacts, palette: Palette) -> Table:
    """What the tokenizer stage left: text that is held out, or overlaps what is, is never trained on."""
    by_name = {str(row.get("source")): row for row in facts.token_counts}
    shown = [k for k in TOKENS if any(number(row.get(k)) is not None for row in by_name.values())]
    rows = [
        (palette.name_cell(name), *(Cell(compact(number(by_name[name].get(k)))) for k in shown))
        for name in palette.sort(set(by_name))
    ]
    sums = [sum(number(row.get(k)) or 0 for row in by_name.values()) for k in shown]
    rows.append((Cell("all"), *(Cell(compact(total)) for total in sums)))
    return Table(
        "What is left to train on, once the probes, the test and text that overlaps them are taken away",
        (Column("Source", numeric=False), *(Column(TOKENS[k]) for k in shown)),
        tuple(rows),
        total=True,
    )


def _held_out_blocks(run: Path) -> list[Block]:
    """How much of the held-out texts is still in what is trained on."""
    try:
        rows = read_json(run / "tokens" / "held_out_overlap.json")
        cells = tuple(
            (
                Cell(str(row["set"])),
                Cell(count(int(row["items"]))),
                Cell(count(int(row["any"])), percent(row["any"] / row["items"] if row["items"] else None, 1)),
                Cell(
                    count(int(row["half"])),
                    percent(row["half"] / row["items"] if row["items"] else None, 1),
                    tone="bad" if row["half"] else "",
                ),
            )
            for row in rows
        )
    except UNREADABLE:
        return []
    columns = (
        Column("Held-out set", numeric=False),
        Column("Texts"),
        Column("Share 13 words with it"),
        Column("Half of theirs or more"),
    )
    caption = (
        "Held-out texts whose runs of 13 words are in the text that is trained on, after the removal above"
    )
    return [Table(caption, columns, cells)]


def broken_section(facts: RunFacts, palette: Palette) -> Section:
    """Records that are not documents, counted and named."""
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
