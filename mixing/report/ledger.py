"""The sections of record: what each stage cost, the settings that papers leave open, versions, how to reproduce."""

from __future__ import annotations

from mixing.report.elements import (
    Bar,
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Disclosure,
    Facts,
    Prose,
    Section,
    Table,
)
from mixing.report.numbers import DASH, compact, duration, listed, scientific
from mixing.report.records import RunFacts, Stage
from mixing.report.verdict import what_it_cost

GROUP = "Record"


def sections(facts: RunFacts) -> list[Section]:
    """Cost, settings, versions and reproduction."""
    return [_cost(facts), _settings(facts), _reproduce(facts)]


def _cost(facts: RunFacts) -> Section:
    title = "What it cost"
    if not facts.stages:
        return Section(
            "cost", title, GROUP, missing="No stage recorded its cost", command="mixwright run recipe.yaml"
        )
    longest = max((s.wall_seconds or 0 for s in facts.stages), default=0) or 1
    rows = [_cost_row(s, longest) for s in facts.stages]
    sums = [_total(facts.stages, key) for key in ("wall_seconds", "cpu_seconds", "flops", "tokens")]
    rows.append(
        (
            Cell("all"),
            Cell(duration(sums[0])),
            Cell(),
            Cell(duration(sums[1])),
            Cell(scientific(sums[2])),
            Cell(compact(sums[3])),
            Cell(),
        )
    )
    table = Table(
        "Cost by stage, in the order in which they began. A stage that was killed and continued shows its last attempt",
        (
            Column("Stage", numeric=False),
            Column("Wall"),
            Column("", numeric=False, wide=True),
            Column("Processor"),
            Column("FLOPs"),
            Column("Tokens"),
            Column("Status", numeric=False),
        ),
        tuple(rows),
        total=True,
    )
    note = "FLOPs are counted by formula (6 per parameter and token trained, and attention), not measured."
    return Section("cost", title, GROUP, (Prose(what_it_cost(facts), "lead"), table, Prose(note, "note")))


def _total(stages: tuple[Stage, ...], key: str) -> float | None:
    values = [v for s in stages if (v := getattr(s, key)) is not None]
    return sum(values) if values else None


def _cost_row(stage: Stage, longest: float) -> tuple[Cell, ...]:
    status = stage.status if stage.attempts <= 1 else f"{stage.status}, attempt {stage.attempts}"
    return (
        Cell(stage.name),
        Cell(duration(stage.wall_seconds)),
        Cell(bar=Bar(0.0, 100 * (stage.wall_seconds or 0) / longest)),
        Cell(duration(stage.cpu_seconds)),
        Cell(scientific(stage.flops) if stage.flops else DASH),
        Cell(compact(stage.tokens) if stage.tokens else DASH),
        Cell(status, tone="" if stage.status == "done" else "bad"),
    )


def _settings(facts: RunFacts) -> Section:
    title = "Settings that the papers leave open"
    if not facts.settings:
        return Section(
            "settings",
            title,
            GROUP,
            missing="settings.json is not there",
            command="mixwright run recipe.yaml",
        )
    rows = tuple((Cell(s.setting), Cell(s.value), Cell(s.paper), Cell(s.why)) for s in facts.settings)
    table = Table(
        "Every one is an option of the recipe",
        (
            Column("Setting", numeric=False),
            Column("This run", numeric=False, wide=True),
            Column("The paper", numeric=False, wide=True),
            Column("Why", numeric=False, wide=True),
        ),
        rows,
    )
    lead = "A number that nobody published is a choice. These are the choices of this run, beside what the paper says."
    return Section("settings", title, GROUP, (Prose(lead, "lead"), table))


def _reproduce(facts: RunFacts) -> Section:
    blocks: list[Block] = [
        Prose(
            "The same recipe and seed on the same machine give the same bytes. With the recipe below as recipe.yaml:",
            "lead",
        ),
        Code(
            "mixwright run recipe.yaml --out again\nmixwright verify again",
            "Run it again, and check every file",
        ),
    ]
    blocks += _versions(facts)
    if facts.recommended is not None and facts.recommended.inputs:
        items = tuple((name, value[:16]) for name, value in sorted(facts.recommended.inputs.items()))
        blocks.append(Disclosure("What the mixture was computed from (hashes)", (Facts(items),)))
    if facts.recipe.text:
        blocks.append(Disclosure("The recipe", (Code(facts.recipe.text),)))
    if facts.problems:
        blocks.append(Prose("These files of the run are there but could not be read:", "warning"))
        blocks.append(Bullets(tuple(f"{p.where}: {p.why}" for p in facts.problems)))
    return Section("reproduce", "Versions, seeds, and how to reproduce this", GROUP, tuple(blocks))


def _versions(facts: RunFacts) -> list[Block]:
    found: dict[str, set[str]] = {}
    for stage in facts.stages:
        for name, version in stage.versions.items():
            found.setdefault(name, set()).add(version)
    seeds: dict[str, list[str]] = {}
    if facts.recipe.seed is not None:
        seeds["recipe"] = [str(facts.recipe.seed)]
    if facts.leave_one_out is not None:
        seeds["leave-one-out"] = list(facts.leave_one_out.seeds)
    if facts.comparison is not None:
        seeds["comparison"] = list(facts.comparison.seeds)
    items = [(name, ", ".join(sorted(versions))) for name, versions in sorted(found.items())]
    items += [(f"seeds of the {name}", listed(values, most=20)) for name, values in seeds.items()]
    mixed = [name for name, versions in found.items() if len(versions) > 1]
    blocks: list[Block] = [Facts(tuple(items))] if items else []
    if mixed:
        blocks.append(Prose(f"Stages ran with different versions of {listed(sorted(mixed))}.", "warning"))
    return blocks
