"""The section on the front between capabilities: what a bit per byte of one costs in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mixing.report import charts
from mixing.report.elements import (
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
from mixing.report.numbers import listed, percent, plain, sentence, span, words
from mixing.report.parsing import needed
from mixing.report.records import RunFacts

MOST_PAIRS = 6
MOST_POINTS = 60
CROSSES = 9
"""Points whose intervals are drawn, spread along the front: all of them would be one blot."""

Span = tuple[float, float, float]
"""Value, low, high."""


@dataclass(frozen=True)
class FrontPoint:
    """A mixture on the front with its predicted losses."""

    weights: Mapping[str, float]
    losses: Mapping[str, Span]


@dataclass(frozen=True)
class Price:
    """What a bit per byte of `gain` costs in `cost`, in words; `end` is the mixture that favours `gain`."""

    gain: str
    cost: str
    end: Mapping[str, float]
    sentence: str


@dataclass(frozen=True)
class Front:
    """pareto.json."""

    capabilities: tuple[str, ...]
    points: tuple[FrontPoint, ...]
    balanced: FrontPoint
    prices: tuple[Price, ...]
    runs: int | None = None


def parse_front(value: Mapping[str, Any]) -> Front:
    """KeyError, TypeError or ValueError where the file is something else."""
    capabilities = tuple(str(name) for name in value["capabilities"])
    runs = value.get("runs")
    return Front(
        capabilities,
        tuple(_point(row, capabilities) for row in value["points"]),
        _point(value["balanced"], capabilities),
        tuple(
            Price(
                str(row["gain"]),
                str(row["cost"]),
                {str(n): needed(w) for n, w in row["end"].items()},
                str(row["sentence"]),
            )
            for row in value["prices"]
        ),
        runs if isinstance(runs, int) else None,
    )


def _point(row: Mapping[str, Any], capabilities: Sequence[str]) -> FrontPoint:
    losses = {}
    for name in capabilities:
        mean, low, high = (needed(v) for v in row["losses"][name])
        losses[name] = (mean, low, high)
    return FrontPoint({str(n): needed(w) for n, w in row["weights"].items()}, losses)


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """The front; nothing where the run has one capability."""
    title = "Trade-offs: what one capability costs in another"
    found = facts.front
    if found is None:
        if len(facts.capability_names) == 1:
            return []
        return [
            Section(
                "front",
                title,
                "Answer",
                missing="Nobody asked what one capability costs in another",
                command="mixwright stage recipe.yaml --name front",
            )
        ]
    if len(found.capabilities) < 2:
        return []
    order = [c for c in facts.capability_names if c in found.capabilities]
    order += [c for c in found.capabilities if c not in order]
    blocks: list[Block] = [Prose(_lead(found), "lead"), _charts(found, order)]
    blocks.append(Bullets(tuple(dict.fromkeys(sentence(price.sentence) for price in found.prices))))
    blocks.append(_mixtures(found, order, palette))
    blocks.append(
        Prose(
            "Losses are predicted by a posterior over the proxy runs, in bits per byte on the probes; a "
            "price holds near the "
            "balanced mixture, on the way to the mixture that favours the capability. An interval that holds zero says "
            "that these runs cannot tell whether there is a price.",
            "note",
        )
    )
    return [Section("front", title, "Answer", tuple(blocks))]


def _lead(found: Front) -> str:
    runs = "" if found.runs is None else f", by {words(found.runs, 'proxy run')}"
    known = [price for price in found.prices if "not known" not in price.sentence]
    clear = [price for price in known if "not separable" not in price.sentence]
    text = (
        f"Mixtures that no other beats on all of {listed(found.capabilities)}{runs}. The balanced one counts all "
        "capabilities alike."
    )
    if not clear:
        return text + " At this budget no trade between two capabilities is separable from nothing."
    return text + f" {words(len(clear), 'price')} of {len(found.prices)} can be told from nothing."


def _charts(found: Front, order: Sequence[str]) -> Charts:
    panels = []
    points = _thinned(found.points, MOST_POINTS)
    crossed = {id(point) for point in _thinned(points, CROSSES)}
    for at, (across, up) in enumerate(list(combinations(order, 2))[:MOST_PAIRS]):
        dots = [_dot(point, across, up, 0, id(point) in crossed) for point in points]
        dots.append(_dot(found.balanced, across, up, 1, True, strong=True))
        svg = charts.dots(dots, f"front{at}", x_label="loss of the first", y_label="loss of the second")
        x, y = found.balanced.losses[across][0], found.balanced.losses[up][0]
        panels.append(
            Chart(
                f"{across} (across) and {up} (up)",
                svg,
                f"{across} against {up}: {words(len(points), 'mixture')} on the front; the balanced one "
                f"at {plain(x, 3)} "
                f"and {plain(y, 3)} bits per byte",
            )
        )
    return Charts(
        tuple(panels),
        (Key("mixtures on the front", "k0 m0"), Key("the balanced mixture", "k1 m3")),
        "Predicted losses in bits per byte, lower and further left is better; crosses are 90 % "
        "intervals, drawn for some "
        "points. A mixture on the front of several capabilities need not be on the edge of two.",
    )


def _dot(
    point: FrontPoint, across: str, up: str, colour: int, cross: bool, strong: bool = False
) -> charts.Dot:
    (x, x_low, x_high), (y, y_low, y_high) = point.losses[across], point.losses[up]
    if not cross:
        return charts.Dot(x, y, None, None, colour, strong)
    return charts.Dot(x, y, (x_low, x_high), (y_low, y_high), colour, strong)


def _thinned(points: Sequence[FrontPoint], most: int) -> list[FrontPoint]:
    if len(points) <= most:
        return list(points)
    return [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)]


def _mixtures(found: Front, order: Sequence[str], palette: Palette) -> Table:
    ends = {"Balanced": found.balanced.weights}
    ends |= {f"For {price.gain}": price.end for price in found.prices}
    names = palette.sort({name for weights in ends.values() for name in weights})
    rows = [
        (palette.name_cell(name), *(Cell(percent(weights.get(name, 0.0))) for weights in ends.values()))
        for name in names
    ]
    for capability in order:
        value, low, high = found.balanced.losses[capability]
        blank = (Cell("") for _ in range(len(ends) - 1))
        rows.append((Cell(f"loss, {capability}"), Cell(plain(value, 3), span(low, high, 3)), *blank))
    return Table(
        "The balanced mixture with its predicted losses, and the mixtures at the ends of the prices",
        (Column("Source", numeric=False), *(Column(name) for name in ends)),
        tuple(rows),
    )
