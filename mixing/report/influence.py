"""The section on influence: source by capability for each reference model, weights, and the choice."""

from __future__ import annotations

from typing import Any

from mixing.report.elements import (
    Block,
    Cell,
    Column,
    Disclosure,
    Palette,
    Prose,
    Section,
    Table,
    heat,
)
from mixing.report.gather import number
from mixing.report.mixtures import weight_bar
from mixing.report.numbers import (
    DASH,
    count,
    decimals_for,
    listed,
    percent,
    percent_span,
    plain,
    power_of_ten,
    scale_exponent,
    signed,
    span,
)
from mixing.report.records import Benefit, Influence, Reference, RunFacts


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """Influence, and its agreement with leave-one-out."""
    title = "Influence: which documents pull a capability's loss down"
    found = facts.influence
    if found is None or not found.references:
        missing = Section(
            "influence",
            title,
            "Why",
            missing="No influence was computed",
            command="mixwright stage recipe.yaml --name influence",
        )
        return [missing]
    blocks: list[Block] = [
        Prose(found.why or f"The mixture comes from the reference {found.chosen!r}.", "lead"),
        Prose(
            "A benefit says how much a small step on a source's text lowers the probe loss (to first order, at "
            f"checkpoints of a reference model; {_rule(found.rule)}). Positive helps. Its unit has no meaning of its "
            "own, so colours are scaled within each capability. It says where to move, not how far.",
        ),
    ]
    references = sorted(found.references, key=lambda r: r.name != found.chosen)
    shown: list[Reference] = []
    for reference in references:
        blocks.append(_reference(facts, found, reference, shown, palette))
        shown.append(reference)
    if found.pilots:
        blocks.append(_pilots(found))
    return [Section("influence", title, "Why", tuple(blocks))]


def _rule(rule: Any) -> str:
    """How the checkpoints are joined, in words."""
    return {
        "step": "later checkpoints count more, in proportion to their step, Eq. 5",
        "learning_rate": "checkpoints count in proportion to their learning rate",
        "uniform": "all checkpoints count the same",
        "last": "only the last checkpoint counts",
    }.get(str(rule), "the recipe gives each checkpoint its weight")


def _reference(
    facts: RunFacts, found: Influence, reference: Reference, before: list[Reference], palette: Palette
) -> Disclosure:
    chosen = reference.name == found.chosen
    clipped = [w.source for w in reference.weights if w.clipped]
    blocks: list[Block] = []
    same = next((r.name for r in before if r.table == reference.table), None)
    if same is None:
        blocks.append(benefit_map(facts, reference, palette))
    else:
        blocks.append(Prose(f"The same benefits as {same}; another rule turns them into weights.", "note"))
    blocks.append(_densities(reference, palette))
    if clipped:
        blocks.append(
            Prose(
                f"Clipped: {listed(clipped)} {'has' if len(clipped) == 1 else 'have'} a negative source sum. The paper "
                "does not say what happens then; here a negative sum counts as zero where weights follow from Eq. 6.",
                "note",
            )
        )
    if reference.noise_below_uniform is not None:
        good = reference.noise_below_uniform
        blocks.append(
            Prose(
                "Every source that is suspected to be noise ends below its uniform share."
                if good
                else "A source that is suspected to be noise gets its uniform share or more: distrust this reference.",
                "note" if good else "warning",
            )
        )
    title = f"{reference.name} (chosen)" if chosen else reference.name
    return Disclosure(f"Reference: {title}", tuple(blocks), open=chosen)


def benefit_map(facts: RunFacts, reference: Reference, palette: Palette) -> Table:
    """Self- and cross-influence: every source for every capability, coloured within each capability."""
    cells = {(b.source, b.capability): b for b in reference.table}
    capabilities = [c for c in facts.capability_names if any(k[1] == c for k in cells)]
    exponent = scale_exponent([b.benefit for b in reference.table])
    factor = 10.0**-exponent
    decimals = decimals_for([factor * b.benefit for b in reference.table], 3, least=1)
    largest = {c: max(abs(b.benefit) for b in reference.table if b.capability == c) for c in capabilities}
    rows = []
    for source in palette.sort({b.source for b in reference.table}):
        row = [palette.name_cell(source)]
        for capability in capabilities:
            own = capability in facts.capabilities.get(source, ())
            row.append(
                _benefit_cell(cells.get((source, capability)), factor, decimals, largest[capability], own)
            )
        documents = [b.documents for b in reference.table if b.source == source and b.documents is not None]
        rows.append((*row, Cell(count(max(documents)) if documents else DASH, tone="quiet")))
    scale = "" if exponent == 0 else f", × {power_of_ten(exponent)}"
    return Table(
        f"Mean benefit of a source's tokens for each capability{scale}, with 90 % intervals over documents. Bold: the "
        "interval excludes zero. Ring: self-influence, the recipe gives the source this capability; the others are "
        "cross-influence.",
        (Column("Source", numeric=False), *(Column(c) for c in capabilities), Column("Documents")),
        tuple(rows),
        heat=True,
        legend=("raises the probe loss", "lowers the probe loss"),
    )


def _benefit_cell(benefit: Benefit | None, factor: float, decimals: int, largest: float, own: bool) -> Cell:
    if benefit is None:
        return Cell(DASH, "not scored", "quiet", mark=own)
    low, high = (None if x is None else factor * x for x in (benefit.low, benefit.high))
    clear = low is not None and high is not None and (low > 0 or high < 0)
    tone = heat(benefit.benefit, largest) + (" sure" if clear else "")
    return Cell(
        signed(factor * benefit.benefit, decimals),
        span(low, high, decimals, sign=True),
        tone.strip(),
        mark=own,
    )


def _densities(reference: Reference, palette: Palette) -> Table:
    exponent = scale_exponent([w.rho for w in reference.weights])
    factor = 10.0**-exponent
    decimals = decimals_for([factor * w.rho for w in reference.weights], 3, least=1)
    largest = max([w.high or 0.0 for w in reference.weights] + [w.weight for w in reference.weights])
    by_name = {w.source: w for w in reference.weights}
    rows = []
    for source in palette.sort(set(by_name)):
        w = by_name[source]
        low, high = (None if x is None else factor * x for x in (w.rho_low, w.rho_high))
        rows.append(
            (
                palette.name_cell(source),
                Cell(signed(factor * w.rho, decimals), "clipped" if w.clipped else ""),
                Cell(span(low, high, decimals, sign=True), tone="quiet"),
                Cell(percent(w.weight), tone="sure"),
                Cell(bar=weight_bar(w.weight, w.low, w.high, largest)),
                Cell(percent_span(w.low, w.high), tone="quiet"),
            )
        )
    scale = "" if exponent == 0 else f" × {power_of_ten(exponent)}"
    return Table(
        "Source sums ρ (Eq. 6: the token-weighted mean of the joint benefits) and the weights that follow, before the "
        "limits on epochs",
        (
            Column("Source", numeric=False),
            Column(f"ρ{scale}"),
            Column("Interval"),
            Column("Weight"),
            Column("Weight and interval", numeric=False, wide=True),
            Column("Interval"),
        ),
        tuple(rows),
    )


def _pilots(found: Influence) -> Disclosure:
    rows = []
    for pilot in found.pilots:
        name = str(pilot.get("file") or pilot.get("name") or pilot.get("engine") or "pilot")
        figures = [number(pilot.get(k)) for k in ("pearson", "within_source", "signs_clear")]
        rows.append(
            (
                Cell(name),
                Cell(str(pilot.get("engine", DASH))),
                Cell(count(number(pilot.get("documents")))),
                *(Cell(plain(f, 5)) for f in figures),
            )
        )
    table = Table(
        "The fast engine against the exact one on a few documents of every file: correlation, correlation within "
        "sources, share of equal signs among benefits that are not near zero",
        (
            Column("File", numeric=False),
            Column("Engine", numeric=False),
            Column("Documents"),
            Column("Pearson"),
            Column("Within source"),
            Column("Signs"),
        ),
        tuple(rows),
    )
    return Disclosure("How exact the scores are: the pilot of every file", (table,))
