"""The section on documents: how benefits are spread within each source, and its best and worst documents.

Texts are untrusted: control and direction characters are replaced here, markup is escaped by the template.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixing.report import charts
from mixing.report.elements import (
    Block,
    Chart,
    Charts,
    Disclosure,
    Excerpt,
    Excerpts,
    Palette,
    Prose,
    Section,
    visible,
)
from mixing.report.gather import UNREADABLE
from mixing.report.numbers import count, decimals_for, percent, power_of_ten, scale_exponent, signed, words
from mixing.report.records import Influence, RunFacts

EXTREMES = 3
EXCERPT_CHARACTERS = 600
MOST_SOURCES = 40


@dataclass(frozen=True)
class Scored:
    """Joint benefits of a source's documents, largest first."""

    documents: tuple[str, ...]
    benefits: np.ndarray


def joint_benefits(run: Path, influence: Influence) -> dict[str, Scored]:
    """Eq. 5 over the files of the chosen reference: one benefit per document, by source.

    Empty when the run has no files of that reference. Raises DataError and the like when they do not fit together.
    """
    from mixing.influence.joint import joint_benefit
    from mixing.influence.summary import BOUNDED

    reference = influence.chosen.removesuffix(BOUNDED)
    columns = ["document", "source", "capability", "reference", "checkpoint", "tokens", "benefit"]
    tables = [pq.read_table(file, columns=columns) for file in sorted((run / "influence").glob("*.parquet"))]
    tables = [t for t in tables if t.num_rows and t["reference"][0].as_py() == reference]
    if not tables:
        return {}
    joint = joint_benefit(
        pa.concat_tables(tables, promote_options="permissive"),
        checkpoints=influence.rule,
        normalise="rms" if influence.normalise == "rms" else "none",
    )
    rows: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for document, source, benefit in zip(
        joint["document"].to_pylist(), joint["source"].to_pylist(), joint["benefit"].to_pylist(), strict=True
    ):
        rows[source].append((benefit, document))
    found = {}
    for source, pairs in rows.items():
        pairs.sort(key=lambda p: (-p[0], p[1]))
        found[source] = Scored(tuple(p[1] for p in pairs), np.array([p[0] for p in pairs]))
    return found


def texts_of(run: Path, ids: Iterable[str]) -> dict[str, str]:
    """Texts of documents by id, from every document file of the run; paths are never built from names in files."""
    wanted = sorted(set(ids))
    files = sorted((run / "documents").glob("*/*.parquet"))
    found: dict[str, str] = {}
    for file in files:
        rows = (
            pl.scan_parquet(file)
            .filter(pl.col("id").is_in(wanted))
            .select("id", pl.col("text").str.slice(0, 2 * EXCERPT_CHARACTERS))
            .collect()
        )
        found |= dict(rows.iter_rows())
    return found


def excerpt(text: str) -> str:
    """The beginning of a text with characters that are not seen made visible.

    >>> excerpt("a\\u202eb")
    'a\ufffdb'
    """
    clean = visible(text.replace("\r\n", "\n"))
    clean = re.sub(r"\n{3,}", "\n\n", clean).strip("\n")
    return clean if len(clean) <= EXCERPT_CHARACTERS else clean[:EXCERPT_CHARACTERS].rstrip() + " …"


def sections(facts: RunFacts, run: Path, palette: Palette) -> list[Section]:
    """Histograms and extremes of the chosen reference's joint benefits."""
    title = "The documents that help and those that hurt"
    nothing = Section(
        "documents",
        title,
        "Why",
        missing="No benefits of documents are there",
        command="mixwright stage recipe.yaml --name influence",
    )
    if facts.influence is None:
        return [nothing]
    try:
        scored = joint_benefits(run, facts.influence)
    except UNREADABLE as error:
        return [
            Section(
                "documents",
                title,
                "Why",
                (Prose(f"The influence files could not be joined: {error}", "warning"),),
            )
        ]
    if not scored:
        return [nothing]
    names = palette.sort(set(scored))[:MOST_SOURCES]
    blocks: list[Block] = [Prose(_lead(scored, facts.influence), "lead"), _histograms(scored, names, palette)]
    try:
        texts = texts_of(run, [d for name in names for d in _extremes(scored[name])])
    except (*UNREADABLE, pl.exceptions.PolarsError) as error:
        texts = {}
        blocks.append(Prose(f"The texts could not be read: {error}", "warning"))
    exponent = _exponent(scored)
    scale = "" if exponent == 0 else f" (×\u00a0{power_of_ten(exponent)})"
    blocks.append(
        Prose(
            f"The beginnings of the {EXTREMES} most and least beneficial documents of each source, with their joint "
            f"benefit{scale}. Open a source to read them; mixwright show RUN ID prints a document with all its scores.",
        )
    )
    decimals = decimals_for(
        [10.0**-exponent * float(np.abs(s.benefits).max()) for s in scored.values()], 3, least=1
    )
    for name in names:
        blocks.append(_disclosure(name, scored[name], texts, exponent, decimals, palette))
    if len(scored) > len(names):
        blocks.append(Prose(f"{len(scored) - len(names)} more sources are not shown.", "note"))
    return [Section("documents", title, "Why", tuple(blocks))]


def _exponent(scored: Mapping[str, Scored]) -> int:
    return scale_exponent([float(np.abs(s.benefits).max()) for s in scored.values()])


def _lead(scored: Mapping[str, Scored], influence: Influence) -> str:
    number = sum(len(s.documents) for s in scored.values())
    helping = sum(int((s.benefits > 0).sum()) for s in scored.values())
    return (
        f"{words(number, 'document')} were scored with the reference {influence.chosen}; "
        f"{percent(helping / number, 0)} have a positive joint benefit (the mean over capabilities). Within a source "
        "documents differ, often more than sources do."
    )


def _histograms(scored: Mapping[str, Scored], names: list[str], palette: Palette) -> Charts:
    exponent = _exponent(scored)
    factor = 10.0**-exponent
    everything = np.concatenate([s.benefits for s in scored.values()]) * factor
    low, high = np.quantile(everything, [0.01, 0.99])
    limits = (min(float(low), 0.0), max(float(high), 0.0))
    panels = []
    for at, name in enumerate(names):
        values = scored[name].benefits * factor
        share = percent(float((values > 0).mean()), 0)
        svg = charts.histogram(
            values,
            f"hist{at}",
            limits=limits,
            x_label="benefit" + ("" if exponent == 0 else f" × {power_of_ten(exponent)}"),
        )
        panels.append(
            Chart(
                name,
                svg,
                f"Benefits of {name}: {share} of {count(len(values))} documents are positive",
                palette.of_source(name),
                f"{share} help",
            )
        )
    return Charts(
        tuple(panels),
        caption="Joint benefit of the documents of each source, on one scale; the outermost bars hold what lies "
        "beyond the 1st and 99th percentile of all.",
    )


def _extremes(scored: Scored) -> list[str]:
    take = min(EXTREMES, (len(scored.documents) + 1) // 2)
    return [*scored.documents[:take], *scored.documents[-take:]]


def _disclosure(
    name: str, scored: Scored, texts: Mapping[str, str], exponent: int, decimals: int, palette: Palette
) -> Disclosure:
    factor = 10.0**-exponent
    take = min(EXTREMES, (len(scored.documents) + 1) // 2)

    def entry(at: int) -> Excerpt:
        document, benefit = scored.documents[at], float(scored.benefits[at])
        text = texts.get(document)
        shown = "(its text is not in this run's documents)" if text is None else excerpt(text)
        return Excerpt(
            signed(factor * benefit, decimals), document[:20], shown, "good" if benefit > 0 else "bad"
        )

    last = len(scored.documents) - 1
    excerpts = Excerpts(
        "Most beneficial",
        tuple(entry(at) for at in range(take)),
        "Least beneficial",
        tuple(entry(at) for at in range(last, last - take, -1)),
    )
    top, bottom = (signed(factor * float(scored.benefits[at]), decimals) for at in (0, -1))
    return Disclosure(f"{name}: from {top} to {bottom}", (excerpts,), swatch=palette.of_source(name))
