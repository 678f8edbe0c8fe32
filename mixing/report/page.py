"""Write report.html: one file that needs no network, made from what a run folder holds.

The same run gives the same bytes: no time of writing, no absolute path, no random id enters the page.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from curation.atomic import write_text
from curation.errors import DataError
from mixing.report import (
    agreement,
    compressed,
    curated,
    curves,
    documents,
    evidence,
    front,
    influence,
    learning,
    ledger,
    mixtures,
    model,
    predicted,
    probes,
    proof,
    raters,
    removal,
    tokens,
)
from mixing.report.elements import PALETTE_SIZE, Palette, Section, visible
from mixing.report.gather import gather
from mixing.report.records import RunFacts
from mixing.report.verdict import Summary, summarise

HERE = Path(__file__).parent
# Scripts never run and nothing is ever loaded, whatever a corpus smuggles in.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder and return its path; what the run lacks is said to be "not run".

    Raises DataError when the folder is not there, MachineError when it may not be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise DataError(
            "There is no run folder", where=str(run), remedy="Name a folder that `mixwright run` made"
        )
    page = render(gather(run), run)
    write_text(run / "report.html", page)
    return run / "report.html"


def render(facts: RunFacts, run: Path) -> str:
    """The page as a string."""
    palette = Palette.of(tuple(mixtures.palette_names(facts)))
    return fill(facts.name, summarise(facts), page_sections(facts, run, palette))


def templates() -> Environment:
    """Where every page's template comes from: all that is put in is escaped, and what cannot be seen is shown."""
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Names, notes and reasons come from files as well as texts do.
        finalize=lambda value: (
            visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )


def fill(name: str, summary: Summary, sections: list[Section]) -> str:
    """The page of anything: its name, the summary at the top, and its sections."""
    page = (
        templates()
        .get_template("page.html")
        .render(
            run=name,
            summary=summary,
            sections=sections,
            contents=[(group, list(members)) for group, members in groupby(sections, key=lambda s: s.group)],
            css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            policy=POLICY,
            palette_size=PALETTE_SIZE,
        )
    )
    return squeeze(page)


def squeeze(page: str) -> str:
    """Drop empty lines outside `pre`, whose text is a document's own."""
    parts = re.split(r"(<pre.*?</pre>)", page, flags=re.S)
    return "".join(p if p.startswith("<pre") else re.sub(r"\n\s*\n+", "\n", p) for p in parts)


def page_sections(facts: RunFacts, run: Path, palette: Palette) -> list[Section]:
    """All sections in the order of the page."""
    return [
        *mixtures.sections(facts, palette),
        *evidence.sections(facts),
        *proof.sections(facts),
        *predicted.sections(facts),
        *front.sections(facts, palette),
        *removal.sections(facts, palette),
        *influence.sections(facts, palette),
        *agreement.sections(facts, palette),
        *documents.sections(facts, run, palette),
        *tokens.sections(facts, palette),
        curated.funnel_section(facts, run, palette),
        *raters.sections(facts),
        *probes.sections(facts, run, palette),
        curated.broken_section(facts, palette),
        *compressed.sections(facts, palette),
        *model.sections(facts, palette),
        *learning.sections(facts),
        *curves.sections(facts),
        *ledger.sections(facts),
    ]
