"""The section on honesty: what was predicted of each mixture beside what came true on unseen text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curation.errors import MixwrightError
from mixing.predicted import Realised, predicted_against_realised, slope
from mixing.report import charts
from mixing.report.elements import Block, Cell, Chart, Charts, Column, Key, Prose, Section, Table
from mixing.report.numbers import decimals_for, plain, signed, span, words
from mixing.report.records import RunFacts

AGAINST = "uniform"


def sections(facts: RunFacts) -> list[Section]:
    """Predicted against realised changes; "not run" unless the run has both."""
    title = "Predicted against realised: did it come true?"
    rows: list[Realised] = []
    problem = ""
    try:
        rows = realised(facts)
    except MixwrightError as error:
        problem = str(error).splitlines()[0]
    if not rows:
        return [
            Section(
                "predicted",
                title,
                "Answer",
                (Prose(f"The predictions do not fit the comparison: {problem}", "warning"),)
                if problem
                else (),
                "" if problem else "No mixture has both a prediction and a comparison",
                "" if problem else "mixwright run recipe.yaml",
            )
        ]
    blocks: list[Block] = [Prose(_lead(rows), "lead"), _chart(facts, rows), _table(facts, rows)]
    return [Section("predicted", title, "Answer", tuple(blocks))]


def realised(facts: RunFacts) -> list[Realised]:
    """Changes against uniform by mixture and capability, for mixtures that were predicted and trained."""
    if facts.comparison is None:
        return []
    scores: dict[str, dict[int, dict[str, float]]] = {}
    numbers = {seed: at for at, seed in enumerate(sorted({r.seed for r in facts.comparison.runs}))}
    for run in facts.comparison.runs:
        scores.setdefault(run.mixture, {}).setdefault(numbers[run.seed], {})[run.capability] = (
            run.bits_per_byte
        )
    measured = {r.capability for r in facts.comparison.runs}
    predictions = {
        name: {
            capability: (loss.value, loss.low, loss.high)
            for capability, loss in mixture.evidence.predicted.items()
            if capability in measured
        }
        for name, mixture in facts.mixtures.items()
        if mixture.evidence is not None and mixture.evidence.predicted and name in scores
    }
    if AGAINST not in predictions or AGAINST not in scores:
        return []
    return predicted_against_realised(predictions, scores, against=AGAINST)


def _lead(rows: Sequence[Realised]) -> str:
    inside = sum(row.inside is True for row in rows)
    found = slope(list(rows))
    text = (
        f"{inside} of {words(len(rows), 'change')} against {AGAINST} came out within the interval that "
        "the proxy runs had "
        "predicted."
    )
    size = max(abs(row.predicted) for row in rows)
    if found is None or not math.isfinite(found) or size < 1e-9:
        return text + " They predicted no change at all, so there is no slope."
    promise = "less came true than was promised" if found < 1 else "more came true than was promised"
    if 0.9 <= found <= 1.1:
        promise = "what was promised came true"
    if found < 0:
        promise = "changes went the other way"
    return text + f" Per bit that was predicted, {plain(found, 2)} was realised: {promise}."


def _chart(facts: RunFacts, rows: Sequence[Realised]) -> Charts:
    mixtures = list(dict.fromkeys(row.mixture for row in rows))
    panels = []
    names = [c for c in facts.capability_names if any(r.capability == c for r in rows)]
    for at, capability in enumerate(names):
        own = [row for row in rows if row.capability == capability]
        dots = [
            charts.Dot(
                row.predicted,
                row.realised,
                (row.low, row.high) if row.low is not None and row.high is not None else None,
                (row.realised_low, row.realised_high)
                if row.realised_low is not None and row.realised_high is not None
                else None,
                mixtures.index(row.mixture),
            )
            for row in own
        ]
        svg = charts.dots(
            dots, f"predicted{at}", x_label="predicted change", y_label="realised", diagonal=True, zero=True
        )
        said = "; ".join(
            f"{row.mixture} predicted {signed(row.predicted, 4)}, realised {signed(row.realised, 4)}"
            for row in own
        )
        panels.append(Chart(capability, svg, f"{capability}: {said}"))
    return Charts(
        tuple(panels),
        tuple(
            Key(name, f"k{at % charts.LINES} m{at % len(charts.MARKERS)}") for at, name in enumerate(mixtures)
        ),
        "Change against uniform in bits per byte, negative is better: predicted on the probes (across) "
        "and realised on the "
        "test sets (up), with intervals. On the dashed line a prediction came true.",
    )


def _table(facts: RunFacts, rows: Sequence[Realised]) -> Table:
    decimals = decimals_for([row.realised for row in rows], 2, least=4)
    order = {name: at for at, name in enumerate(facts.capability_names)}
    cells = []
    for row in sorted(rows, key=lambda r: (r.mixture, order.get(r.capability, len(order)))):
        inside = {True: "yes", False: "no", None: "–"}[row.inside]
        cells.append(
            (
                Cell(row.mixture),
                Cell(row.capability),
                Cell(signed(row.predicted, decimals), span(row.low, row.high, decimals, sign=True)),
                Cell(
                    signed(row.realised, decimals),
                    span(row.realised_low, row.realised_high, decimals, sign=True),
                ),
                Cell(inside, tone="bad" if row.inside is False else "quiet"),
            )
        )
    return Table(
        "The same in figures. The predicted interval is that of the mixture's loss, so it is wider than "
        "that of the change.",
        (
            Column("Mixture", numeric=False),
            Column("Capability", numeric=False),
            Column("Predicted"),
            Column("Realised"),
            Column("Within", numeric=False),
        ),
        tuple(cells),
    )
