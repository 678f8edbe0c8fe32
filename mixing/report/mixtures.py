"""The section on the mixture: a picture beside uniform and the other methods, and the table behind it."""

from __future__ import annotations

from collections.abc import Mapping

from mixing.mixture import Mixture
from mixing.report.elements import (
    Bar,
    Block,
    Cell,
    Column,
    Palette,
    Prose,
    Section,
    Segment,
    StackedBars,
    Table,
)
from mixing.report.numbers import DASH, compact, percent, percent_span, plain, sentence
from mixing.report.recommended import same_weights, uniform
from mixing.report.records import RunFacts

LABELLED = 0.07  # a segment narrower than this has no room for its figure


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """The mixture."""
    mixture = facts.recommended
    title = "The recommended mixture"
    if mixture is None:
        return [
            Section(
                "mixture",
                title,
                "Answer",
                missing="This run has no recommended mixture",
                command="mixwright run recipe.yaml",
            )
        ]
    blocks: list[Block] = [Prose(_lead(mixture), "lead"), _picture(facts, mixture, palette)]
    blocks.append(_weights(mixture, palette))
    others = other_mixtures(facts)
    if len(others) > 1:
        blocks.append(_methods(mixture, others, palette))
    blocks += [Prose(sentence(note), "note") for note in mixture.notes]
    return [Section("mixture", title, "Answer", tuple(blocks))]


def other_mixtures(facts: RunFacts) -> dict[str, Mapping[str, float]]:
    """Every mixture of the run by name, the uniform one first; the recommended one is usually among them."""
    names = facts.recommended.weights if facts.recommended else palette_names(facts)
    found: dict[str, Mapping[str, float]] = {"uniform": uniform(names)}
    found |= {name: m.weights for name, m in facts.mixtures.items()}
    if facts.comparison is not None:
        found = {**facts.comparison.mixtures, **found}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "uniform", item[0])))


def palette_names(facts: RunFacts) -> list[str]:
    """All sources of a run: the recommended ones by weight, then every other that some file names."""
    weights = facts.recommended.weights if facts.recommended else {}
    names = sorted(weights, key=lambda name: (-weights[name], name))
    seen = (
        set(facts.capabilities) | {r.source for r in facts.reads} | {source for source, _, _ in facts.funnel}
    )
    if facts.leave_one_out:
        seen |= {e.source for e in facts.leave_one_out.effects}
    if facts.influence:
        seen |= {b.source for r in facts.influence.references for b in r.table}
    if facts.comparison:
        seen |= {source for mixture in facts.comparison.mixtures.values() for source in mixture}
    return names + sorted(seen - set(names))


def _lead(mixture: Mixture) -> str:
    even = 1 / len(mixture.weights)
    up = [n for n, w in sorted(mixture.weights.items(), key=lambda i: -i[1]) if w > 1.15 * even]
    down = [n for n, w in sorted(mixture.weights.items(), key=lambda i: i[1]) if w < even / 1.15]
    parts = []
    if up:
        parts.append(f"more than an equal share of {', '.join(up)}")
    if down:
        parts.append(f"less of {', '.join(down)}")
    change = "; ".join(parts) if parts else "about the same share of every source"
    return f"The method {mixture.method} asks for {change}. Weights are shares of training tokens."


def _picture(facts: RunFacts, mixture: Mixture, palette: Palette) -> StackedBars:
    others = other_mixtures(facts)
    same = [name for name, weights in others.items() if same_weights(weights, mixture.weights)]
    first = f"recommended ({', '.join(same)})" if same else "recommended"
    bars = [(first, _segments(mixture.weights, palette))]
    bars += [(name, _segments(weights, palette)) for name, weights in others.items() if name not in same]
    names = sorted({n for _, segments in bars for n in (s.name for s in segments)}, key=palette.of_source)
    return StackedBars(
        tuple(bars),
        tuple(palette.key(n) for n in names),
        "Share of training tokens by source, each bar 100 %",
    )


def _segments(weights: Mapping[str, float], palette: Palette) -> tuple[Segment, ...]:
    return tuple(
        Segment(
            name,
            weights[name],
            palette.of_source(name),
            percent(weights[name], 0) if weights[name] >= LABELLED else "",
        )
        for name in palette.sort(set(weights))
        if weights[name] > 0
    )


def _weights(mixture: Mixture, palette: Palette) -> Table:
    intervals, epochs, caps = mixture.intervals or {}, mixture.epochs or {}, mixture.caps or {}
    even = 1 / len(mixture.weights)
    largest = max([*mixture.weights.values(), *(high for _, high in intervals.values()), even])
    rows = []
    for name in palette.sort(set(mixture.weights)):
        weight = mixture.weights[name]
        low, high = intervals.get(name, (None, None))
        cap = caps.get(name)
        at_cap = cap is not None and weight >= cap - 1e-6
        rows.append(
            (
                palette.name_cell(name),
                Cell(percent(weight), tone="sure"),
                Cell(bar=weight_bar(weight, low, high, largest)),
                Cell(percent_span(low, high) if mixture.intervals else DASH, tone="quiet"),
                Cell(f"× {plain(weight / even, 2)}"),
                Cell(plain(epochs.get(name), 2)),
                Cell(DASH if cap is None else percent(cap), "reached" if at_cap else ""),
            )
        )
    why = "" if mixture.intervals else " The method gives no intervals."
    budget = "" if mixture.budget_tokens is None else f" at {compact(mixture.budget_tokens)} tokens"
    return Table(
        f"Weights with 90 % intervals. Epochs: how often the source is read{budget}. Cap: the largest share that the "
        f"tokens at hand and the limit on repetition allow.{why}",
        (
            Column("Source", numeric=False),
            Column("Weight"),
            Column("Weight and interval", numeric=False, wide=True),
            Column("Interval"),
            Column("To uniform"),
            Column("Epochs"),
            Column("Cap"),
        ),
        tuple(rows),
    )


def weight_bar(weight: float, low: float | None, high: float | None, largest: float) -> Bar:
    """A weight on an axis that ends at the largest."""
    scale = 100 / largest if largest else 0
    return Bar(
        0.0,
        weight * scale,
        None if low is None else max(0.0, low * scale),
        None if high is None else min(100.0, high * scale),
    )


def _methods(mixture: Mixture, others: Mapping[str, Mapping[str, float]], palette: Palette) -> Table:
    names = palette.sort({n for weights in others.values() for n in weights} | set(mixture.weights))
    rows = tuple(
        (palette.name_cell(name), *(Cell(percent(weights.get(name, 0.0))) for weights in others.values()))
        for name in names
    )
    return Table(
        "Every mixture of this run",
        (Column("Source", numeric=False), *(Column(name) for name in others)),
        rows,
    )
