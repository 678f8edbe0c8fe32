"""The section on the probes: which documents they hold, and where the uniform mixture stands on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from curation.atomic import read_json
from mixing.report.elements import (
    Cell,
    Column,
    Palette,
    Prose,
    Section,
    Table,
)
from mixing.report.gather import UNREADABLE
from mixing.report.numbers import DASH, count, plain, span
from mixing.report.records import RunFacts
from probes.intervals import bootstrap_bits_per_byte

GROUP = "Data"


def sections(facts: RunFacts, run: Path, palette: Palette) -> list[Section]:
    """The probes."""
    return [_probes(facts, run, palette)]


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
