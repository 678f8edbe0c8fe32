"""The section on how sure one can be of each mixture before any is compared: what the proxy runs predict."""

from __future__ import annotations

from collections.abc import Mapping

from mixing.evidence import Estimate, Evidence
from mixing.mixture import Mixture
from mixing.report.elements import Block, Cell, Column, Prose, Section, Strip, Table
from mixing.report.numbers import (
    THIN,
    decimals_for,
    duration,
    listed,
    percent,
    plain,
    scientific,
    sentence,
    signed,
    span,
    telling_decimals,
    words,
)
from mixing.report.recommended import recommended_file
from mixing.report.records import RunFacts

SURE, UNSURE = 0.95, 0.05
RIVALS = ("uniform", "proportional")
FEWEST, MOST = 0.01, 0.99
"""Shares of draws beyond these are not known better than this."""


def sections(facts: RunFacts) -> list[Section]:
    """What the proxy runs say about every mixture of the run."""
    title = "How sure we are: what the proxy runs predict"
    weighed = weighed_mixtures(facts)
    if not weighed:
        return [
            Section(
                "evidence",
                title,
                "Answer",
                missing="No mixture of this run was weighed by its proxy runs",
                command="mixwright stage recipe.yaml --name mixtures",
            )
        ]
    first = next(iter(weighed))
    blocks: list[Block] = [Prose(_lead(first, weighed[first]), "lead")]
    if any(e.beats or e.best for e in weighed.values()):
        blocks.append(_chances(weighed))
    if any(e.predicted for e in weighed.values()):
        blocks.append(_losses(facts, weighed))
        blocks.append(Prose(_how_to_read(weighed[first])))
    blocks += [Prose(sentence(reason), "note") for reason in _reasons(weighed)]
    return [Section("evidence", title, "Answer", tuple(blocks))]


def weighed_mixtures(facts: RunFacts) -> dict[str, Evidence]:
    """Evidence by mixture: the recommended one first, uniform last; one that no file names is "recommended"."""
    found = {name: m.evidence for name, m in facts.mixtures.items() if m.evidence is not None}
    chosen = recommended_file(facts)
    if facts.recommended is not None and facts.recommended.evidence is not None and chosen is None:
        found["recommended"] = facts.recommended.evidence
        chosen = "recommended"
    return dict(sorted(found.items(), key=lambda row: (row[0] != chosen, row[0] == "uniform", row[0])))


def chance(value: float | None) -> str:
    """A probability that was counted in draws.

    >>> chance(0.9999), chance(0.5), chance(0.0)
    ('above 0.99', '0.50', 'below 0.01')
    """
    if value is None:
        return "–"
    if value > MOST:
        return f"above {MOST}"
    return f"below {FEWEST}" if value < FEWEST else plain(value, 2)


def how_sure(mixture: Mixture) -> tuple[str, ...]:
    """Sentences for the top of the page."""
    evidence = mixture.evidence
    if evidence is None:
        return ("Not known from proxy runs: nobody weighed this mixture by them.",)
    if not evidence.beats:
        return (sentence(evidence.verdict), *(sentence(reason) for reason in evidence.reasons))
    parts = [f"{chance(evidence.beats[name])} of beating {name}" for name in RIVALS if name in evidence.beats]
    if "this" in evidence.best:
        parts.append(f"{chance(evidence.best['this'])} of being the best of {len(evidence.best)} candidates")
    text = f"By {words(evidence.runs, 'proxy run')} its probability is {listed(parts)}."
    return (text, sentence(f"Their verdict: {evidence.verdict[:1].lower()}{evidence.verdict[1:]}"))


def _lead(name: str, evidence: Evidence) -> str:
    basis = f", weighed by {evidence.basis}" if evidence.basis else ""
    runs = f" It rests on {words(evidence.runs, 'proxy run')}{basis}." if evidence.runs else ""
    spent = []
    if evidence.seconds is not None:
        spent.append(duration(evidence.seconds))
    if evidence.flops is not None:
        spent.append(f"{scientific(evidence.flops)} floating-point operations")
    cost = f" Training them took {listed(spent)}." if spent else ""
    return f"{name}: {sentence(evidence.verdict)}{runs}{cost}"


def _how_to_read(evidence: Evidence) -> str:
    return (
        "Every probability is a share of draws from one posterior over the losses of all mixtures; a mixture is called "
        f"better or worse from {SURE} on. Intervals are at {percent(evidence.level, 0)}. They hold for "
        "models of the proxy's "
        "size and budget, on the probes; the step to a larger model is not in them. What came true on "
        "unseen text stands below."
    )


def _chances(weighed: Mapping[str, Evidence]) -> Table:
    gains = {name: e.gain_percent.get("uniform") for name, e in weighed.items()}
    ends = [abs(x) for g in gains.values() if g is not None for x in (g.low, g.high, g.value)]
    limit = max(ends, default=1.0) or 1.0
    decimals = decimals_for(ends, 2, least=1, most=3)
    proportional = any("proportional" in e.beats for e in weighed.values())
    rows = []
    for name, e in weighed.items():
        gain, over = gains[name], e.beats.get("uniform")
        tone = "" if over is None else "good" if over >= SURE else "bad" if over <= UNSURE else "quiet"
        cells = [Cell(name), Cell(chance(over) if over is not None else "–", tone=tone)]
        if proportional:
            cells.append(Cell(chance(e.beats.get("proportional"))))
        cells += [
            Cell(chance(e.best.get("this"))),
            Cell("–") if gain is None else Cell(strip=_strip(gain, limit, tone)),
            Cell("–")
            if gain is None
            else Cell(
                f"{signed(gain.value, decimals)}{THIN}%", span(gain.low, gain.high, decimals, sign=True)
            ),
            Cell("–" if e.detectable_percent is None else f"{plain(e.detectable_percent, decimals)}{THIN}%"),
        ]
        rows.append(tuple(cells))
    columns = [Column("Mixture", numeric=False), Column("Beats uniform")]
    if proportional:
        columns.append(Column("Beats proportional"))
    columns += [
        Column("Is best"),
        Column("← worse · better →", numeric=False, wide=True),
        Column("Gain over uniform"),
        Column("Detectable"),
    ]
    return Table(
        "Probabilities of a lower mean loss over capabilities than uniform and proportional, and of the "
        "lowest of these "
        "mixtures; predicted gain over uniform in percent of its loss (positive is better) with its "
        "interval. Detectable: "
        "the smallest true gain that these runs would have shown with a probability of 0.8.",
        tuple(columns),
        tuple(rows),
    )


def _strip(gain: Estimate, limit: float, tone: str) -> Strip:
    def at(value: float) -> float:
        return round(50 + 46 * max(-1.0, min(1.0, value / limit)), 2)

    return Strip(
        50.0, at(gain.value), (), at(gain.low), at(gain.high), tone if tone != "quiet" else "neutral"
    )


def _losses(facts: RunFacts, weighed: Mapping[str, Evidence]) -> Table:
    named = {c for e in weighed.values() for c in e.predicted}
    capabilities = [c for c in facts.capability_names if c in named]
    capabilities += sorted(named - set(capabilities))
    decimals = {
        c: max(
            (
                telling_decimals(e.predicted[c].low, e.predicted[c].high, 3, 5)
                for e in weighed.values()
                if c in e.predicted
            ),
            default=3,
        )
        for c in capabilities
    }
    rows = []
    for name, e in weighed.items():
        cells = [Cell(name)]
        for c in capabilities:
            loss = e.predicted.get(c)
            cells.append(
                Cell("–")
                if loss is None
                else Cell(plain(loss.value, decimals[c]), span(loss.low, loss.high, decimals[c]))
            )
        if e.objective is not None:
            cells.append(Cell(plain(e.objective.value, 4), span(e.objective.low, e.objective.high, 4)))
        else:
            cells.append(Cell("–"))
        rows.append(tuple(cells))
    return Table(
        "Predicted loss on the probes in bits per byte, lower is better; beneath it the interval. "
        "Intervals of two mixtures "
        "overlap by what they have in common: the table above compares.",
        (Column("Mixture", numeric=False), *(Column(c) for c in capabilities), Column("Mean")),
        tuple(rows),
    )


def _reasons(weighed: Mapping[str, Evidence]) -> list[str]:
    return list(dict.fromkeys(reason for e in weighed.values() for reason in e.reasons))
