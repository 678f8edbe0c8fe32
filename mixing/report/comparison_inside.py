"""The comparison page's sections on training time, on what is inside the models, and on decoding speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixing.report import charts
from mixing.report.comparison_scores import metric_words
from mixing.report.elements import Block, Cell, Chart, Charts, Column, Key, Prose, Section, Table
from mixing.report.numbers import DASH, compact, count, percent, plain, signed, size, span
from probes.checkpoint_series import Point
from probes.side_by_side import Contender, SideBySide

GROUP = "Models"
DRAWN = ("bits_per_byte", "accuracy", "norm_correct_prob", "truncated")
BY_LAYER = (
    ("residual_rms", "residual stream, root mean square"),
    ("largest", "residual stream, largest size"),
    ("attention_rms", "what attention adds, root mean square"),
    ("mlp_rms", "what the feed-forward adds, root mean square"),
    ("entropy", "attention entropy (1 is even)"),
    ("sink", "attention on the first token"),
)


def sections(found: SideBySide) -> list[Section]:
    """Checkpoints over training, diagnostics by layer, decoding speed: those that somebody measured."""
    every = []
    if any(contender.points for contender in found.contenders):
        every.append(_series(found))
    if any(contender.diagnostics for contender in found.contenders):
        every.append(_diagnostics([c for c in found.contenders if c.diagnostics]))
    if any(contender.speed for contender in found.contenders):
        every.append(_speed([c for c in found.contenders if c.speed]))
    return every


def _series(found: SideBySide) -> Section:
    with_points = [c for c in found.contenders if c.points]
    wanted = dict.fromkeys((p.task, p.form, p.metric) for c in with_points for p in c.points if _is_drawn(p))
    panels: list[Chart] = []
    for number, (task, form, metric) in enumerate(wanted):
        lines, told = [], []
        for at, contender in enumerate(with_points):
            chosen = [p for p in contender.points if (p.task, p.form, p.metric) == (task, form, metric)]
            x = [float(p.step or 0) for p in chosen]
            lines.append(charts.Line(x, [p.value for p in chosen], at))
            if len(with_points) == 1 and all(p.low is not None for p in chosen):
                lines.append(charts.Line(x, [float(p.low or 0) for p in chosen], at, faint=True))
                lines.append(charts.Line(x, [float(p.high or 0) for p in chosen], at, faint=True))
            if chosen:
                told.append(
                    f"{contender.name} from {plain(chosen[0].value, 3)} to {plain(chosen[-1].value, 3)}"
                )
        label = metric_words(metric)
        short = label.split(" of the ")[0]  # the axis is no longer than that
        svg = charts.lines(lines, f"series-{number}", x_label="step", y_label=short)
        title = task if form in ("gold_bpb", "likelihood", "generation") else f"{task}, {form}"
        detail = told[0].removeprefix(f"{with_points[0].name} ") if len(told) == 1 else ""
        panels.append(Chart(title, svg, f"{title}, {label}: " + "; ".join(told), detail=detail))
    blocks: list[Block] = [
        Prose(
            "The same questions at every checkpoint; faint lines are intervals of 95 % over questions.",
            "lead",
        ),
        Charts(tuple(panels), _legend([c.name for c in with_points])),
    ]
    return Section("checkpoints", "Over training", GROUP, tuple(blocks))


def _is_drawn(point: Point) -> bool:
    return point.metric in DRAWN or point.metric in ("accuracy_per_char", "accuracy_none")


def _diagnostics(contenders: Sequence[Contender]) -> Section:
    panels = []
    for key, label in BY_LAYER:
        lines, told = [], []
        for at, contender in enumerate(contenders):
            rows = (contender.diagnostics or {})["layers"]
            values = [float(row[key]) for row in rows]
            lines.append(charts.Line([float(row["layer"]) for row in rows], values, at))
            told.append(f"{contender.name} {plain(values[0], 3)} to {plain(values[-1], 3)}")
        svg = charts.lines(lines, f"inside-{key}".replace("_", "-"), x_label="layer", y_label="")
        panels.append(Chart(label, svg, f"{label} by layer: " + "; ".join(told)))
    rows = tuple(_inside_row(contender) for contender in contenders)
    columns = (
        Column("Model", False), Column("Logits, RMS"), Column("Largest logit"), Column("Mean squared logsumexp"),
        Column("Dead channels"), Column("Huge channels"), Column("Tokens"),
    )  # fmt: skip
    caption = (
        "Dead: feed-forward channels below a thousandth of their layer's mean size, of all. Huge: residual channels "
        "above 100 times the median size, in the layer that has most."
    )
    return Section(
        "inside",
        "Inside the models",
        GROUP,
        (Charts(tuple(panels), _legend([c.name for c in contenders])), Table(caption, columns, rows)),
    )


def _inside_row(contender: Contender) -> tuple[Cell, ...]:
    found: dict[str, Any] = contender.diagnostics or {}
    dead = [row["dead_channels"] for row in found["layers"]]
    return (
        Cell(contender.name),
        Cell(plain(found["logit_rms"], 2)),
        Cell(plain(found["largest_logit"], 1)),
        Cell(plain(found["squared_normaliser"], 1)),
        Cell(percent(sum(dead) / len(dead), 2)),
        Cell(count(max(row["huge_channels"] for row in found["layers"]))),
        Cell(compact(found["tokens"])),
    )


def _speed(contenders: Sequence[Contender]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    panels: list[Chart] = []
    named: list[str] = []
    for contender in contenders:
        found: dict[str, Any] = contender.speed or {}
        lines, told = [], []
        for precision in found["precisions"]:
            name = precision["name"]
            measured = [cell for cell in precision["cells"] if "decode" in cell]
            if measured:
                if name not in named:
                    named.append(name)
                x = [cell["context"] / 1024 for cell in measured]
                y = [cell["decode"]["median"] for cell in measured]
                lines.append(charts.Line(x, y, named.index(name)))
                told.append(f"{name} from {plain(y[0], 1)} to {plain(y[-1], 1)}")
            rows += [_speed_row(contender.name, precision, cell) for cell in precision["cells"]]
            if "skipped" in precision:
                nothing = [Cell(DASH, tone="quiet")] * 6
                rows.append((Cell(contender.name), Cell(name), *nothing, Cell(precision["skipped"])))
        if lines:
            svg = charts.lines(
                lines, f"speed-{len(panels)}", x_label="thousand tokens of context", y_label="tokens a second"
            )
            panels.append(Chart(contender.name, svg, f"{contender.name}: " + "; ".join(told)))
    columns = (
        Column("Model", False), Column("Precision", False), Column("Context"), Column("Tokens a second"),
        Column("Prompt, tokens a second"), Column("KV cache"), Column("Weights"), Column("Peak of the process"),
        Column("Not measured, because", False, True),
    )  # fmt: skip
    machines = sorted(
        {f"{(c.speed or {})['device']}, {(c.speed or {})['threads']} threads" for c in contenders}
    )
    lead = f"One row decoded greedily ({'; '.join(machines)}). Below the median is the range of the repeats."
    blocks: list[Block] = [Prose(lead, "lead")]
    if panels:
        blocks.append(Charts(tuple(panels), _legend(named)))
    blocks.append(Table("Decoding by context length and precision.", columns, tuple(rows)))
    moved = [
        _moved_row(c.name, p)
        for c in contenders
        for p in (c.speed or {})["precisions"]
        if "bits_per_byte" in p
    ]
    if moved:
        heads = (
            Column("Model", False),
            Column("Precision", False),
            Column("Bits per byte"),
            Column("Moved by"),
        )
        caption = "What a precision does to bits per byte; intervals of 95 % over documents."
        blocks.append(Table(caption, heads, tuple(moved)))
    return Section("speed", "Decoding speed and memory", GROUP, tuple(blocks))


def _speed_row(name: str, precision: dict[str, Any], cell: dict[str, Any]) -> tuple[Cell, ...]:
    weights = Cell(size(precision["weight_bytes"]), f"{size(precision['packed_bytes'])} packed")
    head = (Cell(name), Cell(precision["name"]), Cell(count(cell["context"])))
    if "skipped" in cell:
        nothing = Cell(DASH, tone="quiet")
        return (
            *head,
            nothing,
            nothing,
            Cell(size(cell["kv_cache_bytes"])),
            weights,
            nothing,
            Cell(cell["skipped"]),
        )
    decode, prefill = cell["decode"], cell["prefill"]
    return (
        *head,
        Cell(plain(decode["median"], 1), span(decode["low"], decode["high"], 1)),
        Cell(count(prefill["tokens_per_second"]), f"{count(prefill['tokens'])} tokens read"),
        Cell(size(cell["kv_cache_bytes"])),
        weights,
        Cell(size(cell["peak_bytes"])),
        Cell(),
    )


def _moved_row(name: str, precision: dict[str, Any]) -> tuple[Cell, ...]:
    moved = precision["bits_per_byte"]
    between = span(moved["low"], moved["high"], 4, sign=True)
    return (
        Cell(name),
        Cell(precision["name"]),
        Cell(plain(moved["value"], 4)),
        Cell(signed(moved["difference"], 4), between),
    )


def _legend(names: Sequence[str]) -> tuple[Key, ...]:
    if len(names) < 2:
        return ()
    return tuple(Key(name, f"k{at % charts.LINES}") for at, name in enumerate(names))
