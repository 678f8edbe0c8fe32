"""The section on mid-training compression: what each round kept, how the benefits gathered, and what it was worth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixing.report import charts
from mixing.report.elements import (
    Bar,
    Block,
    Bullets,
    Cell,
    Chart,
    Charts,
    Column,
    Key,
    Palette,
    Prose,
    Section,
    Table,
)
from mixing.report.numbers import MINUS, count, percent, sentence, words
from mixing.report.parsing import needed, number
from mixing.report.records import RunFacts

NAMES = {"compressed": "", "compressed-taught": "with a teacher"}


@dataclass(frozen=True)
class KeptRound:
    """A round: documents and tokens by source, read and kept; weights; histograms by capability over common edges."""

    number: int
    tokens: Mapping[str, float]
    kept: Mapping[str, float]
    weights: Mapping[str, float]
    positive: float
    edges: Mapping[str, tuple[float, ...]]
    counts: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class CompressedArm:
    """The rounds of one arm and seed, and why they ended."""

    name: str
    seed: str
    rounds: tuple[KeptRound, ...]
    stop: str


@dataclass(frozen=True)
class Compression:
    """compression.json: the compressed arms and, by kind, the sentences of their comparison with the whole set."""

    arms: tuple[CompressedArm, ...]
    sentences: Mapping[str, tuple[str, ...]]


def parse_compression(value: Mapping[str, Any]) -> Compression:
    """KeyError, TypeError or ValueError where the file is something else."""
    arms = [
        CompressedArm(
            str(name), str(seed), tuple(_round(row) for row in arm["rounds"]), str(arm["stop"]["text"])
        )
        for name, seeds in value["arms"].items()
        for seed, arm in seeds.items()
        if arm.get("rounds")
    ]
    found = {
        str(kind): tuple(str(row["text"]) for row in (comparison or {}).get("differences", ()))
        for kind, comparison in value["comparison"].items()
    }
    return Compression(tuple(arms), found)


def _round(row: Mapping[str, Any]) -> KeptRound:
    def numbers(key: str) -> dict[str, float]:
        return {str(name): needed(value) for name, value in row[key].items()}

    edges = {str(n): tuple(needed(v) for v in values) for n, values in row["edges"].items()}
    counts = {str(n): tuple(needed(v) for v in values) for n, values in row["counts"].items()}
    for name in counts:
        if len(edges[name]) != len(counts[name]) + 1:
            raise ValueError(
                f"the histogram {name!r} has {len(counts[name])} bins and {len(edges[name])} edges"
            )
    return KeptRound(
        int(needed(row["number"])),
        numbers("tokens"),
        numbers("kept_tokens"),
        numbers("weights"),
        number(row["positive"]) or 0.0,
        edges,
        counts,
    )


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """Mid-training; nothing when the recipe has none, since it is optional."""
    found = facts.compression
    if found is None or not found.arms:
        return []
    blocks: list[Block] = [Prose(_lead(found), "lead")]
    for at, arm in enumerate(found.arms):
        blocks += [_table(arm, palette), _histograms(arm, at, facts.capability_names)]
    for kind, sentences in sorted(found.sentences.items()):
        about = "" if kind == "plain" else f" ({kind})"
        if not sentences:
            blocks.append(Prose(f"Nothing was trained{about}, so there is nothing to compare.", "note"))
        else:
            blocks.append(Bullets(tuple(sentence(_minus(text) + about) for text in sentences)))
    return [Section("compression", "Mid-training: training on what helps", "Model", tuple(blocks))]


def _lead(found: Compression) -> str:
    first = found.arms[0]
    last = first.rounds[-1]
    kept, total = sum(last.kept.values()), sum(last.tokens.values())
    return (
        f"{words(len(first.rounds), 'round')} of scoring every document of the raw set with the current model and "
        f"keeping those that lower the probes' loss. {sentence(first.stop)} The last round kept "
        f"{percent(kept / total if total else 0)} of the tokens. The comparison is with training on the whole set: the "
        "same start, tokens and random numbers."
    )


def _minus(text: str) -> str:
    """True minus signs in a sentence that was written for a file."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def _title(arm: CompressedArm) -> str:
    what = NAMES.get(arm.name, arm.name)
    return f"{what + ', ' if what else ''}seed {arm.seed}"


def _table(arm: CompressedArm, palette: Palette) -> Table:
    sources = palette.sort({name for found in arm.rounds for name in found.tokens})
    largest = max((w for found in arm.rounds for w in found.weights.values()), default=0.0) or 1.0
    rows = []
    for name in sources:
        cells = [palette.name_cell(name)]
        for found in arm.rounds:
            total, kept = found.tokens.get(name, 0.0), found.kept.get(name, 0.0)
            share = kept / total if total else 0.0
            weight = found.weights.get(name, 0.0)
            cells.append(Cell(percent(share, 0), f"{count(kept)} tokens"))
            cells.append(Cell(percent(weight)))
            cells.append(Cell(bar=Bar(0.0, 100 * weight / largest)))
        rows.append(tuple(cells))
    columns = [Column("Source", numeric=False)]
    for found in arm.rounds:
        columns += [
            Column(f"Kept in round {found.number}"),
            Column("Weight"),
            Column("", numeric=False, wide=True),
        ]
    return Table(f"What each round kept, and how it mixed it ({_title(arm)})", tuple(columns), tuple(rows))


def _histograms(arm: CompressedArm, at: int, order: Sequence[str]) -> Charts:
    names = [name for name in order if name in arm.rounds[0].counts]
    names += [name for name in arm.rounds[0].counts if name not in (*names, "joint")] + ["joint"]
    panels = []
    for index, name in enumerate(n for n in names if n in arm.rounds[0].counts):
        counts = [found.counts[name] for found in arm.rounds if name in found.counts]
        svg = charts.outlines(
            arm.rounds[0].edges[name], counts, f"compression{at}-{index}", x_label="benefit of a document"
        )
        panels.append(
            Chart("all capabilities" if name == "joint" else name, svg, _described(arm.rounds, name))
        )
    return Charts(
        tuple(panels),
        tuple(Key(f"round {found.number}", f"k{i % charts.LINES}") for i, found in enumerate(arm.rounds)),
        f"Benefits of the raw documents by round ({_title(arm)}); all rounds have the bins of the first. To the "
        "right of zero a document lowers the loss.",
    )


def _described(rounds: Sequence[KeptRound], name: str) -> str:
    parts = []
    for found in rounds:
        counts = found.counts.get(name, ())
        right = sum(counts[len(counts) // 2 :])
        parts.append(
            f"round {found.number}: {percent(right / (sum(counts) or 1.0), 0)} of the documents help"
        )
    return f"{name}: {', '.join(parts)}"
