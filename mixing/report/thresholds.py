"""Documents just above and just below each cut of the cascade, so that people can judge where it was made."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curation.fates import TITLES, CutTable, cut_tables, verdicts_of
from mixing.report.documents import excerpt, texts_of
from mixing.report.elements import Block, Disclosure, Excerpt, Excerpts, Palette, Prose
from mixing.report.gather import UNREADABLE
from mixing.report.numbers import DASH, count, plain, telling_decimals
from mixing.report.records import RunFacts

CUTS = ("educational", "reasoning", "domain")
AROUND = 2
CHARACTERS = 280
MOST_SOURCES = 40


def threshold_blocks(facts: RunFacts, run: Path, palette: Palette) -> list[Block]:
    """A disclosure for each source, with the documents around each of its cuts; nothing when there are no verdicts."""
    names = palette.sort({source for source, _, _ in facts.funnel})[:MOST_SOURCES]
    try:
        verdicts = verdicts_of(run)
        cuts = {
            name: [
                cut
                for cut in cut_tables(run, name, facts.capabilities.get(name, ()), verdicts)
                if cut.name in CUTS and cut.table.height
            ]
            for name in names
        }
        wanted = [
            row
            for found in cuts.values()
            for cut in found
            for part in cut.around(AROUND)
            for row in part["id"]
        ]
        texts = texts_of(run, wanted) if wanted else {}
    except (*UNREADABLE, pl.exceptions.PolarsError):
        return []
    blocks: list[Block] = [
        Disclosure(f"{name}: where it was cut", tuple(_blocks(found, texts)), swatch=palette.of_source(name))
        for name, found in cuts.items()
        if found
    ]
    if not blocks:
        return []
    lead = (
        f"The {AROUND} documents just above and just below each cut. If those below are as good as those above, "
        "the cut is too hard, or its scores say little; mixwright show RUN ID prints all that decided the fate of one."
    )
    return [Prose(lead), *blocks]


def _blocks(cuts: list[CutTable], texts: dict[str, str]) -> list[Block]:
    blocks: list[Block] = []
    for cut in cuts:
        above, below = cut.around(AROUND)
        ends = (cut.last_kept, cut.first_dropped)
        decimals = telling_decimals(*ends)
        lowest, highest = (DASH if v is None else plain(v, decimals) for v in ends)
        blocks.append(
            Prose(
                f"{TITLES[cut.name]}: {count(cut.kept)} of {count(cut.table.height)} passed; the lowest {cut.score} "
                f"that passed is {lowest}, the highest that did not {highest}."
            )
        )
        blocks.append(
            Excerpts(
                "Just above",
                _excerpts(above, texts, "good", decimals),
                "Just below",
                _excerpts(below, texts, "bad", decimals),
            )
        )
    return blocks


def _excerpts(rows: pl.DataFrame, texts: dict[str, str], tone: str, decimals: int) -> tuple[Excerpt, ...]:
    return tuple(
        Excerpt(
            f"{plain(row['value'], decimals)}, rank {count(row['rank'])}",
            row["id"][:20],
            _short(texts.get(row["id"], "(its text is not in this run's documents)")),
            tone,
        )
        for row in rows.iter_rows(named=True)
    )


def _short(text: str) -> str:
    shown = excerpt(text)
    return shown if len(shown) <= CHARACTERS else shown[:CHARACTERS].rstrip() + " …"
