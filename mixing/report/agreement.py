"""The section on agreement: does influence predict what leaving a source out does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scipy.stats import spearmanr

from mixing.report import charts
from mixing.report.elements import (
    Cell,
    Chart,
    Charts,
    Column,
    Palette,
    Prose,
    Section,
    Table,
)
from mixing.report.gather import number
from mixing.report.numbers import (
    listed,
    plain,
    power_of_ten,
    scale_exponent,
    signed,
)
from mixing.report.records import Reference, RunFacts


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """Influence against leave-one-out."""
    return [_agreement(facts, palette)]


def _agreement(facts: RunFacts, palette: Palette) -> Section:
    """Does influence predict what removing a source does?"""
    title = "Do influence and leave-one-out agree?"
    loo, influence = facts.leave_one_out, facts.influence
    if loo is None or influence is None or not loo.effects:
        return Section(
            "agreement",
            title,
            "Why",
            missing="This needs both leave-one-out and influence",
            command="mixwright run recipe.yaml",
        )
    delta = {(e.source, e.capability): e.delta for e in loo.effects}
    capabilities = [c for c in facts.capability_names if any(k[1] == c for k in delta)]
    seen: list[Reference] = []
    rows = []
    for reference in influence.references:
        if any(r.table == reference.table for r in seen):
            continue
        seen.append(reference)
        values = [rank_correlation(reference, delta, c) for c in capabilities]
        known = [v for v in values if v is not None]
        mean = sum(known) / len(known) if known else None
        rows.append(
            (Cell(reference.name), *(Cell(signed(v, 2)) for v in values), Cell(signed(mean, 2), tone="sure"))
        )
    sources = {source for source, _ in delta}
    table = Table(
        f"Rank correlation (Spearman) of benefit and leave-one-out effect over {len(sources)} sources. With so few "
        f"points a correlation below {plain(critical_rank_correlation(len(sources)), 2)} may be chance (5 % level).",
        (Column("Reference", numeric=False), *(Column(c) for c in capabilities), Column("Mean")),
        tuple(rows),
    )
    chosen = next((r for r in influence.references if r.name == influence.chosen), influence.references[0])
    return Section(
        "agreement",
        title,
        "Why",
        (Prose(_sentence(rows), "lead"), table, _scatter(chosen, delta, capabilities, palette)),
    )


def _sentence(rows: list[tuple[Cell, ...]]) -> str:
    parts = [f"{row[0].text} {row[-1].text}" for row in rows]
    return (
        "Leave-one-out retrains and is the measurement; influence is a prediction of it at a fraction of the cost. "
        f"Mean rank correlation over capabilities: {listed(parts)}. 1 is perfect agreement, 0 is none."
    )


def rank_correlation(
    reference: Reference, delta: Mapping[tuple[str, str], float], capability: str
) -> float | None:
    """Spearman over the sources that both know; None with fewer than three or where one side is constant."""
    pairs = [
        (b.benefit, delta[b.source, capability])
        for b in reference.table
        if b.capability == capability and (b.source, capability) in delta
    ]
    if len(pairs) < 3 or any(len({p[side] for p in pairs}) == 1 for side in (0, 1)):
        return None
    result: Any = spearmanr([p[0] for p in pairs], [p[1] for p in pairs])
    return number(float(result.statistic))


def critical_rank_correlation(n: int) -> float:
    """The two-sided 5 % bound for Spearman's rho of n independent pairs (exact tables for few, Student's t for more).

    >>> critical_rank_correlation(7)
    0.786
    """
    exact = {4: 1.0, 5: 1.0, 6: 0.886, 7: 0.786, 8: 0.738, 9: 0.7, 10: 0.648}
    if n in exact or n < 4:
        return exact.get(n, 1.0)
    from scipy.stats import t

    critical = float(t.ppf(0.975, n - 2))
    return critical / (n - 2 + critical**2) ** 0.5


def _scatter(
    reference: Reference, delta: Mapping[tuple[str, str], float], capabilities: list[str], palette: Palette
) -> Charts:
    exponent = scale_exponent([b.benefit for b in reference.table])
    panels, sources = [], set()
    for at, capability in enumerate(capabilities):
        points = [
            (10.0**-exponent * b.benefit, delta[b.source, capability], b.source)
            for b in reference.table
            if b.capability == capability and (b.source, capability) in delta
        ]
        sources |= {p[2] for p in points}
        svg = charts.scatter(
            [p[0] for p in points],
            [p[1] for p in points],
            [palette.of_source(p[2]) for p in points],
            f"agree{at}",
            x_label="benefit" + ("" if exponent == 0 else f" × {power_of_ten(exponent)}"),
            y_label="leave-one-out",
        )
        rho = rank_correlation(reference, delta, capability)
        panels.append(
            Chart(
                capability,
                svg,
                f"{capability}: rank correlation {signed(rho, 2)}",
                detail=f"ρₛ = {signed(rho, 2)}",
            )
        )
    return Charts(
        tuple(panels),
        tuple(palette.numbered_key(s) for s in palette.sort(sources)),
        f"Each point is a source: its benefit by the reference {reference.name} against the loss without it.",
    )
