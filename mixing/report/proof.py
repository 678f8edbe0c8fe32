"""The section on the comparison: models trained on each mixture, paired by seed, on text held out from everything."""

from __future__ import annotations

from mixing.report.elements import Block, Cell, Column, Disclosure, Prose, Section, Strip, Table
from mixing.report.numbers import (
    decimals_for,
    listed,
    percent,
    plain,
    sentence,
    signed,
    signed_percent,
    span,
    words,
)
from mixing.report.records import Comparison, Difference, RunFacts
from mixing.report.verdict import MEAN, against_uniform, relative_figures

TONES = {"better": "good", "worse": "bad"}


def sections(facts: RunFacts) -> list[Section]:
    """The proof."""
    title = "The proof: trained and compared on held-out text"
    found = facts.comparison
    if found is None:
        return [
            Section(
                "comparison",
                title,
                "Answer",
                missing="No mixtures were compared",
                command="mixwright compare recipe.yaml --mixtures mixture.json",
            )
        ]
    blocks: list[Block] = [Prose(against_uniform(facts).sentence, "lead"), Prose(_method(found))]
    capabilities = [
        c for c in (MEAN, *facts.capability_names) if any(d.capability == c for d in found.differences)
    ]
    limit = max(
        [
            abs(x)
            for d in found.differences
            for x in (d.difference, d.low, d.high, *d.per_seed)
            if x is not None
        ],
        default=1.0,
    )
    for capability in capabilities:
        blocks.append(_differences(found, capability, limit))
    blocks.append(_equivalence(found))
    if found.rule:
        blocks.append(Prose(sentence(f"Rule: {found.rule}"), "note"))
    others = [d for d in found.differences if d.verdict not in TONES and d.verdict != "not separable"]
    blocks += [Prose(f"{d.mixture}, {d.capability}: {d.verdict}", "note") for d in others]
    blocks += [Prose(sentence(note), "note") for note in found.notes]
    blocks.append(Disclosure("Bits per byte of every trained model", (_levels(facts, found),)))
    return [Section("comparison", title, "Answer", tuple(blocks))]


def _method(found: Comparison) -> str:
    seeds = len(found.seeds)
    text = (
        f"{words(seeds, 'seed')} for each mixture, equal tokens, and the same random numbers for the same seed, so "
        "that differences are paired. A dot is a seed, the bar its mean with its interval; left of the line is "
        "better. The mean over capabilities is the one number that decides; the others say what it is made of."
    )
    if 1 < seeds < 6:
        text += (
            f" With {words(seeds, 'seed')} an exact sign-flip test cannot give a p below {plain(2 / 2**seeds, 2)}, "
            "however large the effect."
        )
    if any(d.p_bootstrap is not None for d in found.differences):
        text += (
            " The bootstrap resamples seeds and documents; with few seeds it is too sure of itself, so "
            "it is shown and does "
            "not decide."
        )
    if seeds == 1:
        text += " One seed says nothing about noise: no interval can be given."
    return text


def _differences(found: Comparison, capability: str, limit: float) -> Table:
    rows = [d for d in found.differences if d.capability == capability]
    decimals = decimals_for([d.difference for d in found.differences], 2, least=3)
    title = "Mean over capabilities" if capability == MEAN else capability
    against = listed(sorted({d.against for d in rows}))
    return Table(
        f"{title}: difference to {against} in {found.unit}",
        (
            Column("Mixture", numeric=False),
            Column("← better · worse →", numeric=False, wide=True),
            Column("Verdict", numeric=False),
            Column("Difference"),
            Column("Relative"),
            Column("Detectable"),
            Column("p (Holm)"),
        ),
        tuple(_row(found, d, decimals, limit) for d in rows),
    )


def _equivalence(found: Comparison) -> Prose:
    """Whether "not separable" means equal or only unknown, in plain words."""
    tested = [d for d in found.differences if d.capability == MEAN and d.p_equivalence is not None]
    if not tested:
        return Prose(
            "Not separable does not mean equal: with so few seeds nothing can be said about equivalence.",
            "note",
        )
    first = tested[0]
    base = found.baseline(first.against, MEAN)
    margin = "" if not base or first.margin is None else f" within {percent(first.margin / base, 1)}"
    same, open_ = ([d.mixture for d in tested if bool(d.equivalent) is e] for e in (True, False))
    parts = []
    if same:
        parts.append(
            f"For {listed(same)} the difference to {first.against} is too small to matter: equal{margin} on the mean "
            "over capabilities, by two one-sided tests"
        )
    if open_:
        unknown = [d.mixture for d in tested if d.mixture in open_ and d.verdict not in TONES]
        if unknown:
            parts.append(
                f"{listed(unknown)} {'is' if len(unknown) == 1 else 'are'} neither shown to differ from "
                f"{first.against} nor to "
                f"equal it{margin}: more seeds would tell"
            )
    return Prose(
        sentence(". ".join(parts)) if parts else "Every difference on the mean is separable from noise."
    )


def _row(found: Comparison, d: Difference, decimals: int, limit: float) -> tuple[Cell, ...]:
    relative, _, _, detectable = relative_figures(found, d)
    tone, base = TONES.get(d.verdict, "quiet"), found.baseline(d.against, d.capability)
    return (
        Cell(d.mixture),
        Cell(strip=difference_strip(d, limit)),
        Cell(
            d.verdict if d.verdict in TONES else "not separable",
            f"equal within {percent(d.margin / base, 1)}" if d.equivalent and d.margin and base else "",
            tone,
        ),
        Cell(
            signed(d.difference, decimals),
            span(d.low, d.high, decimals, sign=True),
            "sure" if d.verdict in TONES else "",
        ),
        Cell(signed_percent(relative, 2)),
        Cell(percent(detectable, 2), tone="quiet"),
        Cell(plain(d.p_corrected, 3), _other_tests(d)),
    )


def _other_tests(d: Difference) -> str:
    parts = [] if d.p is None else [f"sign flip {plain(d.p, 2)}"]
    if d.p_bootstrap is not None:
        parts.append("bootstrap " + ("< 0.01" if d.p_bootstrap < 0.01 else plain(d.p_bootstrap, 2)))
    return "\n".join(parts)


def difference_strip(d: Difference, limit: float) -> Strip:
    """A difference on an axis from -limit to +limit, which is 4 to 96 of 100 so that nothing touches the edge."""

    def at(value: float) -> float:
        return round(50 + 46 * max(-1.0, min(1.0, value / limit if limit else 0.0)), 2)

    return Strip(
        zero=50.0,
        mean=at(d.difference),
        dots=tuple(at(x) for x in d.per_seed),
        low=None if d.low is None else at(d.low),
        high=None if d.high is None else at(d.high),
        tone=TONES.get(d.verdict, "neutral"),
    )


def _levels(facts: RunFacts, found: Comparison) -> Table:
    capabilities = [c for c in facts.capability_names if any(r.capability == c for r in found.runs)]
    values = {(r.mixture, r.seed, r.capability): r.bits_per_byte for r in found.runs}
    keys = list(dict.fromkeys((r.mixture, r.seed) for r in found.runs))
    rows = tuple(
        (
            Cell(mixture),
            Cell(seed),
            *(Cell(plain(values.get((mixture, seed, c)), 4)) for c in capabilities),
        )
        for mixture, seed in sorted(keys)
    )
    return Table(
        f"Held-out {found.unit}, lower is better",
        (Column("Mixture", numeric=False), Column("Seed"), *(Column(c) for c in capabilities)),
        rows,
    )
