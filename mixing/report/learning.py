"""The section on what the final model learned while it trained: probe losses, RankMe, distance from a teacher."""

from __future__ import annotations

from collections.abc import Sequence

from mixing.report import charts
from mixing.report.curves import axis_of, grpo_evaluation_panels
from mixing.report.elements import Block, Cell, Chart, Charts, Column, Key, Prose, Section, Table
from mixing.report.model import GROUP
from mixing.report.numbers import count, listed, plain, signed, words
from mixing.report.records import Curve, RunFacts

TITLE = "What the final model learned, and when"
LOSSES, RANKS = "bits_per_byte/", "rankme/"
EMBEDDINGS = "embeddings"
OUTPUT_WEIGHT = "output weight"
MOST_SETS = 12


def sections(facts: RunFacts) -> list[Section]:
    """Trajectories of the final training."""
    pretrain = facts.trained.get("pretrain")
    grpo = facts.trained.get("grpo")
    evaluations = pretrain.evaluations if pretrain else None
    blocks: list[Block] = []
    names = _sets(facts, evaluations)
    if evaluations is not None and names:
        steps = evaluations.columns["step"]
        blocks += [Prose(_lead(evaluations, names, len(steps)), "lead")]
        blocks += _trajectories(names, evaluations, pretrain.curve if pretrain else None)
        blocks += [_table(names, evaluations), *_rankme_explained(facts, names, evaluations)]
    if pretrain is not None and pretrain.curve is not None:
        blocks += _divergence(pretrain.curve)
    if grpo is not None and grpo.evaluations is not None:
        panels = grpo_evaluation_panels(grpo.evaluations)
        if panels:
            caption = (
                "GRPO: greedy answers to held-out problems; the thin lines are the ends of the interval."
            )
            blocks.append(Charts(tuple(panels), caption=caption))
    if not blocks:
        missing = "No probe was measured while the final model trained"
        command = "mixwright run recipe.yaml --set final.evaluations=4"
        return [Section("learning", TITLE, GROUP, missing=missing, command=command)]
    return [Section("learning", TITLE, GROUP, tuple(blocks))]


def _sets(facts: RunFacts, evaluations: Curve | None) -> list[str]:
    """Names of the probe sets that were measured, capabilities first, in the page's order."""
    if evaluations is None or not evaluations.columns.get("step"):
        return []
    found = {key.split("/", 1)[1]: None for key in evaluations.columns if key.startswith((LOSSES, RANKS))}
    order = [c for c in facts.capability_names if c in found]
    rest = [name for name in found if name not in order and name != EMBEDDINGS]
    return [*order, *rest, *([EMBEDDINGS] if EMBEDDINGS in found else [])][:MOST_SETS]


def _lead(evaluations: Curve, names: Sequence[str], times: int) -> str:
    falls = [
        name
        for name in names
        if (values := evaluations.columns.get(LOSSES + name)) and values[-1] < values[0]
    ]
    measured = [name for name in names if LOSSES + name in evaluations.columns]
    text = f"The probes were measured {words(times, 'time')} while the final model pre-trained."
    if times < 2 or not measured:
        return text
    if len(falls) == len(measured):
        return f"{text} The loss on every one of them fell."
    rose = [name for name in measured if name not in falls]
    return f"{text} The loss did not fall on {listed(rose)}."


def _trajectories(names: Sequence[str], evaluations: Curve, trained: Curve | None) -> list[Block]:
    steps, unit, size = _axis(evaluations, trained)
    panels = []
    for prefix, title, label in (
        (LOSSES, "Loss on the probes", "bits per byte"),
        (RANKS, "RankMe", "directions"),
    ):
        drawn = [
            (at, name, evaluations.columns[prefix + name])
            for at, name in enumerate(names)
            if prefix + name in evaluations.columns
        ]
        if drawn:
            svg = charts.lines(
                [charts.Line([s / size for s in steps], values, at) for at, _, values in drawn],
                f"learning-{prefix[:4]}",
                x_label=unit,
                y_label=label,
            )
            told = "; ".join(
                f"{_title(name)} from {plain(v[0], 3)} to {plain(v[-1], 3)}" for _, name, v in drawn
            )
            panels.append(Chart(title, svg, f"{title} in {label}: {told}"))
    keys = tuple(Key(_title(name), f"k{at % charts.LINES}") for at, name in enumerate(names))
    return [Charts(tuple(panels), keys, "Each probe set along the training. One run: no intervals.")]


def _axis(evaluations: Curve, trained: Curve | None) -> tuple[list[float], str, float]:
    """Tokens at each evaluation where the log of updates knows them for all, else steps; unit; its size."""
    steps = list(evaluations.columns["step"])
    known = {0.0: 0.0}
    if trained is not None:
        known |= dict(zip(*trained.points("step", "tokens"), strict=True))
    if len(known) == 1 or any(step not in known for step in steps):
        return steps, "step", 1
    tokens = [known[step] for step in steps]
    size, unit = axis_of(max(tokens))
    return tokens, unit, size


def _table(names: Sequence[str], evaluations: Curve) -> Table:
    rows = []
    for name in names:
        cells = [Cell(_title(name))]
        for prefix, decimals in ((LOSSES, 3), (RANKS, 1)):
            values = evaluations.columns.get(prefix + name)
            first, last = (values[0], values[-1]) if values else (None, None)
            change = None if first is None or last is None else last - first
            cells += [Cell(plain(first, decimals)), Cell(plain(last, decimals), tone="sure")]
            cells.append(Cell(signed(change, decimals)))
        rows.append(tuple(cells))
    columns = [Column("Probe set", numeric=False)]
    for what in ("Bits per byte", "RankMe"):
        columns += [Column(f"{what}, first"), Column("Last"), Column("Change")]
    steps = evaluations.columns["step"]
    caption = f"The first evaluation (step {count(steps[0])}) and the last (step {count(steps[-1])})"
    return Table(caption, tuple(columns), tuple(rows))


def _rankme_explained(facts: RunFacts, names: Sequence[str], evaluations: Curve) -> list[Block]:
    if not any(RANKS + name in evaluations.columns for name in names):
        return []
    width = facts.model.config.get("hidden_size") if facts.model else None
    most = f"the model's width ({count(width)})" if isinstance(width, int) else "the model's width"
    return [
        Prose(
            "RankMe (MobileLLM-R1, Eq. 9) says in how many directions the vectors that the output layer reads at the "
            "tokens of a probe set really spread: the exponential of the entropy of the shares of their singular "
            f"values. It is 1 where all lie on one line and at most {most}. Before training the vectors are noise and "
            "spread evenly, so an early fall is to be expected; a late one means that they collapse onto fewer "
            "directions. The output weight is measured in the same way.",
            "note",
        )
    ]


def _divergence(curve: Curve) -> list[Block]:
    """The distance from the teacher, where a phase was distilled: updates without a teacher have 0."""
    column = "tokens" if curve.points("tokens", "divergence")[0] else "step"
    pairs = [(x, y) for x, y in zip(*curve.points(column, "divergence"), strict=True) if y != 0]
    if not pairs:
        return []
    size, unit = axis_of(max(x for x, _ in pairs)) if column == "tokens" else (1, "step")
    values = [y for _, y in pairs]
    line = charts.Line([x / size for x, _ in pairs], values)
    svg = charts.lines([line], "learning-teacher", x_label=unit, y_label="nats per token")
    first, last = plain(values[0], 3), plain(values[-1], 3)
    told = f"divergence from the teacher, from {first} to {last} nats per token"
    chart = Chart("Distance from the teacher", svg, told, detail=f"{first} → {last}")
    caption = (
        "Distillation: the mean divergence between the teacher's predictions and the model's, in the updates that "
        "had a teacher; 0 would be a perfect copy."
    )
    return [Charts((chart,), caption=caption)]


def _title(name: str) -> str:
    return OUTPUT_WEIGHT if name == EMBEDDINGS else name
