"""The section on leave-one-out: the heat map of source by capability, and the differences along the training run."""

from __future__ import annotations

from mixing.report import charts
from mixing.report.elements import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Key,
    Palette,
    Prose,
    Section,
    Table,
    heat,
)
from mixing.report.numbers import compact, decimals_for, listed, percent, sentence, signed, span, words
from mixing.report.records import Effect, LeaveOneOut, RunFacts

HELPS, HURTS = "removing it hurts: the source helps", "removing it helps: the source hurts"


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """Leave-one-out."""
    title = "Leave-one-out: what happens without each source"
    found = facts.leave_one_out
    if found is None or not found.effects:
        return [
            Section(
                "leave-one-out",
                title,
                "Why",
                missing="No source was left out",
                command="mixwright loo recipe.yaml",
            )
        ]
    blocks: list[Block] = [Prose(_lead(found), "lead"), heat_map(facts, found, palette)]
    if len(found.seeds) == 1 and not any(note.startswith("One seed") for note in found.notes):
        blocks.append(
            Prose(
                f"One training seed ({found.seeds[0]}): the intervals cover the choice of probe documents, not what "
                "another seed would give.",
                "note",
            )
        )
    blocks += [Prose(sentence(note), "note") for note in found.notes]
    blocks.append(_trajectories(facts, found, palette))
    return [Section("leave-one-out", title, "Why", tuple(blocks))]


def _lead(found: LeaveOneOut) -> str:
    clear = [e for e in found.effects if e.clear]
    size = "" if found.tokens_per_run is None else f" on {compact(found.tokens_per_run)} tokens each"
    runs = f"One model was trained without each source{size}, and compared with one that had them all"
    seeds = f" ({words(len(found.seeds), 'seed')})" if found.seeds else ""
    text = (
        f"{runs}{seeds}. Numbers are changes of the probe loss in {found.unit}; positive: the source helps. "
    )
    if not clear:
        return text + "No effect is separable from noise."
    best, worst = max(clear, key=lambda e: e.delta), min(clear, key=lambda e: e.delta)
    text += f"{len(clear)} of {len(found.effects)} intervals exclude zero."
    if best.delta > 0:
        text += f" The largest help: {best.source} for {best.capability}."
    if worst.delta < 0:
        harmful = sorted({e.source for e in clear if e.delta < 0})
        text += f" Removing {listed(harmful)} lowers the loss of at least one capability."
    return text


def heat_map(facts: RunFacts, found: LeaveOneOut, palette: Palette) -> Table:
    """Source by capability; a ring marks the capabilities that the recipe gives a source."""
    effects = {(e.source, e.capability): e for e in found.effects}
    capabilities = [c for c in facts.capability_names if any(k[1] == c for k in effects)]
    decimals = decimals_for([e.delta for e in found.effects], 2, least=3)
    largest = max(abs(e.delta) for e in found.effects)
    rows = []
    for source in palette.sort({e.source for e in found.effects}):
        cells = [palette.name_cell(source)]
        for capability in capabilities:
            own = capability in facts.capabilities.get(source, ())
            cells.append(effect_cell(effects.get((source, capability)), decimals, largest, own))
        rows.append(tuple(cells))
    return Table(
        f"Loss without the source minus loss with it, in {found.unit}, with {percent(found.level, 0)} intervals. Bold: "
        "the interval excludes zero. Ring: the recipe says that the source has this capability.",
        (Column("Source left out", numeric=False), *(Column(c) for c in capabilities)),
        tuple(rows),
        heat=True,
        legend=(HURTS, HELPS),
    )


def effect_cell(effect: Effect | None, decimals: int, largest: float, own: bool) -> Cell:
    """A cell of the heat map."""
    if effect is None:
        return Cell("–", "not measured", "quiet", mark=own)
    tone = heat(effect.delta, largest) + (" sure" if effect.clear else "")
    detail = span(effect.low, effect.high, decimals, sign=True)
    return Cell(signed(effect.delta, decimals), detail, tone.strip(), mark=own)


def _trajectories(facts: RunFacts, found: LeaveOneOut, palette: Palette) -> Charts | Prose:
    if not found.trajectories:
        return Prose("The differences during training were not recorded.", "note")
    capabilities = [c for c in facts.capability_names if any(t.capability == c for t in found.trajectories)]
    values = [d for t in found.trajectories for d in t.delta]
    pad = 0.06 * (max(values) - min(values) or 1.0)
    limits = (min(*values, 0.0) - pad, max(*values, 0.0) + pad)
    panels = []
    for at, source in enumerate(palette.sort({t.source for t in found.trajectories})):
        own = [t for t in found.trajectories if t.source == source]
        ends = [
            f"{t.capability} ends at {signed(t.delta[-1], 3)}"
            for c in capabilities
            for t in own
            if t.capability == c and t.delta
        ]
        drawn = [charts.Line(t.steps, t.delta, capabilities.index(t.capability)) for t in own]
        svg = charts.lines(drawn, f"loo{at}", x_label="training step", zero=True, y_range=limits)
        panels.append(
            Chart(source, svg, f"Without {source}: {', '.join(ends)}", swatch=palette.of_source(source))
        )
    return Charts(
        tuple(panels),
        tuple(Key(c, f"k{i % charts.LINES}") for i, c in enumerate(capabilities)),
        f"During training: loss without the source minus loss with it, in {found.unit}; all panels have one scale. "
        "Above zero the source helps.",
    )
