"""The page of one mixture and its evidence, without a run folder: from anybody's proxy runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curation.atomic import write_text
from mixing.evidence import Estimate, Evidence, unweighed
from mixing.mixture import Mixture
from mixing.report.elements import Bar, Block, Bullets, Cell, Column, Palette, Prose, Section, Table
from mixing.report.page import fill
from mixing.report.verdict import Answer, Point, Summary, Verdict


def write_mixture_page(mixture: Mixture, out: Path) -> Path:
    """Write the page to `out` and return its path; MachineError when it may not be written."""
    write_text(out, mixture_page(mixture))
    return out


def mixture_page(mixture: Mixture) -> str:
    """The page as a string."""
    evidence = mixture.evidence or unweighed("Nobody worked out what the mixture would give")
    order = sorted(mixture.weights, key=lambda name: (-mixture.weights[name], name))
    sections = [
        Section("mixture", "The mixture", "Mixture", (_weights(mixture, order), *_notes(mixture.notes))),
        Section("evidence", "What it rests on", "Mixture", _evidence(evidence)),
    ]
    return fill("Mixture", _summary(mixture, evidence, order), sections)


def _summary(mixture: Mixture, evidence: Evidence, order: list[str]) -> Summary:
    tone = {"Bett": "good", "Wors": "bad"}.get(evidence.verdict[:4], "unclear")
    use = ", ".join(f"{mixture.weights[name]:.1%} {name}" for name in order if mixture.weights[name] >= 5e-4)
    rests = f"{evidence.runs} proxy runs, weighed by {evidence.basis}." if evidence.runs else ""
    return Summary(
        Verdict(evidence.verdict, evidence.verdict + ".", tone),
        (
            Point("What to use?", (Answer(use + ", in shares of tokens."),)),
            Point("How sure is it?", (Answer(evidence.verdict + "."),)),
            Point(
                "What does it rest on?", tuple(Answer(text) for text in (rests, *evidence.reasons) if text)
            ),
        ),
        mixture.method,
    )


def _weights(mixture: Mixture, order: list[str]) -> Table:
    palette = Palette.of(tuple(sorted(mixture.weights)))
    rows = []
    for name in order:
        weight, bounds = mixture.weights[name], (mixture.intervals or {}).get(name)
        low, high = (100 * bounds[0], 100 * bounds[1]) if bounds else (None, None)
        rows.append(
            (
                palette.name_cell(name),
                Cell(f"{weight:.3f}"),
                Cell(f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "-"),
                Cell(bar=Bar(0, 100 * weight, low, high)),
                Cell(f"{mixture.epochs[name]:.2f}" if mixture.epochs else "-"),
            )
        )
    columns = ("Source", "Weight", "90 % interval", "", "Epochs")
    return Table(
        "Shares of tokens; the thin line is the interval",
        tuple(Column(title, numeric=at > 0, wide=at == 3) for at, title in enumerate(columns)),
        tuple(rows),
    )


def _evidence(evidence: Evidence) -> tuple[Block, ...]:
    blocks: list[Block] = [Prose(evidence.verdict + ".", "lead")]
    against = [
        (
            Cell(name),
            Cell(f"{gain.value:.2f}"),
            Cell(_range(gain, ".2f")),
            Cell(f"{evidence.beats[name]:.2f}"),
        )
        for name, gain in evidence.gain_percent.items()
    ]
    if against:
        titles = ("Against", "Gain, %", "90 % interval", "P(better)")
        blocks.append(_table("Gain of the objective in percent; positive is better", titles, against))
    if evidence.best:
        rows = [(Cell(name), Cell(f"{chance:.2f}")) for name, chance in evidence.best.items()]
        blocks.append(_table("Which of these mixtures is best", ("Mixture", "P(best)"), rows))
    predicted = [
        (Cell(name), Cell(f"{loss.value:.4g}"), Cell(_range(loss, ".4g")))
        for name, loss in evidence.predicted.items()
    ]
    if predicted:
        blocks.append(
            _table("Predicted loss of this mixture", ("Metric", "Loss", "90 % interval"), predicted)
        )
    spent = []
    if evidence.flops is not None:
        spent.append(f"{evidence.flops:.3g} floating-point operations on the proxy runs")
    if evidence.seconds is not None:
        spent.append(f"{evidence.seconds:,.0f} seconds of training them")
    return (*blocks, *_notes((*spent, *evidence.reasons)))


def _range(estimate: Estimate, form: str) -> str:
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def _table(caption: str, titles: tuple[str, ...], rows: Sequence[tuple[Cell, ...]]) -> Table:
    return Table(caption, tuple(Column(t, numeric=at > 0) for at, t in enumerate(titles)), tuple(rows))


def _notes(notes: tuple[str, ...]) -> tuple[Block, ...]:
    return (Bullets(notes),) if notes else ()
