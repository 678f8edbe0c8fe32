"""The page on which evaluations stand side by side: one file that needs no network, in the style of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from curation.atomic import write_text
from mixing.report import comparison_inside, comparison_scores
from mixing.report.elements import PALETTE_SIZE, Section
from mixing.report.numbers import count, listed, words
from mixing.report.page import HERE, POLICY, squeeze, templates
from mixing.report.verdict import Answer, Point, Summary, Verdict
from probes.side_by_side import Contender, SideBySide, compare_many


def write_comparison(
    evaluations: SideBySide | Sequence[str | Path], file: Path | str, *, baseline: str | Path | None = None
) -> Path:
    """Write the page about `out` folders of evaluations, or about what `compare_many` made of them.

    The same files give the same bytes. Raises as `compare_many`; MachineError when the file may not be written.
    """
    found = (
        evaluations if isinstance(evaluations, SideBySide) else compare_many(evaluations, baseline=baseline)
    )
    write_text(file, render(found))
    return Path(file)


def render(found: SideBySide) -> str:
    """The page as a string."""
    sections = page_sections(found)
    page = (
        templates()
        .get_template("comparison.html")
        .render(
            run=found.baseline,
            heading=listed([contender.name for contender in found.contenders], most=3),
            evaluations=len(found.contenders),
            summary=summarise(found),
            sections=sections,
            contents=[(group, list(members)) for group, members in groupby(sections, key=lambda s: s.group)],
            css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            policy=POLICY,
            palette_size=PALETTE_SIZE,
        )
    )
    return squeeze(page)


def page_sections(found: SideBySide) -> list[Section]:
    """All sections in the order of the page; what nobody measured has none."""
    return [
        *comparison_scores.sections(found),
        *comparison_inside.sections(found),
        comparison_scores.asked_section(found),
    ]


def summarise(found: SideBySide) -> Summary:
    """The top of the page."""
    others = [contender for contender in found.contenders if contender.name != found.baseline]
    points = [
        Point("What is compared?", tuple(_what(c, found.baseline) for c in found.contenders)),
    ]
    if found.differences:
        points.append(
            Point("Which is better?", tuple(Answer(_counted(found, c.name), c.name) for c in others))
        )
        metrics = max(sum(found.counts(c.name).values()) for c in others)
        points.append(Point("How sure is that?", (Answer(_certainty(metrics)),)))
    dirty = [answer for contender in found.contenders for answer in _contamination(contender)]
    if dirty:
        points.append(Point("Are questions in the training text?", tuple(dirty)))
    return Summary(_verdict(found, others), tuple(points))


def _verdict(found: SideBySide, others: Sequence[Contender]) -> Verdict:
    if len(others) != 1:
        short = words(len(others), "evaluation") if others else "One evaluation, nothing beside it"
        return Verdict(short, short, "none")
    counts = found.counts(others[0].name)
    better, worse = counts["better"], counts["worse"]
    tone = "unclear" if bool(better) == bool(worse) else "good" if better else "bad"
    short = f"{others[0].name}: {_counted(found, others[0].name)}"
    return Verdict(short, short, tone)


def _counted(found: SideBySide, name: str) -> str:
    counts = found.counts(name)
    if not sum(counts.values()):
        return "no task in common with the baseline"
    parts = f"{count(counts['better'])} better, {count(counts['worse'])} worse"
    of = words(sum(counts.values()), "headline metric")
    return f"{parts}, {count(counts['not separable'])} not separable, of {of}"


def _certainty(metrics: int) -> str:
    return (
        "Better and worse mean that the interval of 95 % of the paired difference leaves zero out. It resamples the "
        "questions, which both have answered; it says nothing about another training seed. Of "
        f"{words(metrics, 'metric')} that truly are equal, {metrics / 20:.1f} would be called different."
    )


def _what(contender: Contender, baseline: str) -> Answer:
    tasks = words(len(contender.results), "task")
    model = next((r.described["hashes"]["model"][:12] for r in contender.results.values()), "")
    told = [tasks] if contender.results else []
    told += [f"model {model}"] if model else []
    told += (
        [f"{words(len({p.name for p in contender.points}), 'checkpoint')}, of which the last counts"]
        if contender.points
        else []
    )
    told += ["what is inside"] if contender.diagnostics else []
    told += ["decoding speed"] if contender.speed else []
    return Answer("; ".join(told), contender.name + (" (baseline)" if contender.name == baseline else ""))


def _contamination(contender: Contender) -> list[Answer]:
    split = {task: r.contamination for task, r in contender.results.items() if r.contamination}
    if not split:
        return []
    dirty = sum(found["questions"]["dirty"] for found in split.values())
    asked = sum(
        found["questions"][side] for found in split.values() for side in ("clean", "dirty", "too_short")
    )
    text = f"at least half of {count(dirty)} of {words(asked, 'question')} of {words(len(split), 'task')} is in it"
    return [Answer(text, contender.name)]
