"""The section on loss curves: the final model, its rewards, and every small model of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from mixing.report import charts
from mixing.report.elements import (
    Block,
    Chart,
    Charts,
    Key,
    Prose,
    Section,
)
from mixing.report.model import GROUP, LOSS, TITLES
from mixing.report.numbers import (
    plain,
    words,
)
from mixing.report.records import Curve, RunFacts

RUNS = {
    "proxy_runs": "Proxy runs (leave-one-out)",
    "domain_models": "Domain models",
    "comparison": "Models of the comparison",
}
REWARD_CURVES = (
    ("reward", "mean reward"),
    ("accuracy", "share of right answers"),
    ("length", "tokens of an answer"),
)
EVALUATION_CURVES = (("value", "share of right answers"), ("length", "tokens of an answer"))


def sections(facts: RunFacts) -> list[Section]:
    """Loss curves."""
    return [_curves(facts)]


def _curves(facts: RunFacts) -> Section:
    title = "Loss curves"
    panels: list[Chart] = []
    for name in ("pretrain", "sft"):
        trained = facts.trained.get(name)
        if trained is not None and trained.curve is not None:
            panels += _loss_panel(name, TITLES[name], [trained.curve])
    grpo = facts.trained.get("grpo")
    if grpo is not None and grpo.curve is not None:
        panels += _reward_panels(grpo.curve)
    small: list[Chart] = []
    legend: list[Key] = []
    for group, heading in RUNS.items():
        curves = facts.curves.get(group, ())
        named = group == "domain_models" and 1 < len(curves) <= charts.LINES
        small += _loss_panel(group, heading, curves, faint=not named)
        if named:
            legend = [Key(f"domain model: {_short(c)}", f"k{i}") for i, c in enumerate(curves)]
    if not panels and not small:
        return Section(
            "curves", title, GROUP, missing="Nothing was trained", command="mixwright run recipe.yaml"
        )
    caption = (
        "Training loss is the loss on the text of the moment, whose mixture differs between runs and phases."
    )
    blocks: list[Block] = []
    if panels:
        blocks.append(Charts(tuple(panels), caption=f"The final model. {caption}"))
    if small:
        count_of = words(sum(len(c) for c in facts.curves.values()), "small model")
        blocks.append(Charts(tuple(small), tuple(legend), f"{count_of}, one line each."))
    lead = "A loss that jumps or never falls would make every number above worthless; here one can look."
    return Section("curves", title, GROUP, (Prose(lead, "lead"), *blocks))


def _loss_panel(name: str, title: str, curves: Sequence[Curve], faint: bool = False) -> list[Chart]:
    drawn = []
    for at, curve in enumerate(curves):
        tokens, loss = curve.points("tokens", "loss")
        if not loss:
            tokens, loss = curve.points("step", "loss")
        if loss:
            drawn.append((at, tokens, loss))
    if not drawn:
        return []
    in_tokens = all(curve.points("tokens", "loss")[0] for curve in curves)
    top = max(max(x) for _, x, _ in drawn)
    size, unit = axis_of(top) if in_tokens else (1, "step")
    lines = [charts.Line([v / size for v in x], y, 0 if faint else at, faint) for at, x, y in drawn]
    ends = [y[-1] for _, _, y in drawn]
    ending = plain(ends[0], 2) if len(ends) == 1 else f"{plain(min(ends), 2)} to {plain(max(ends), 2)}"
    svg = charts.lines(lines, f"curve-{name}".replace("_", "-"), x_label=unit, y_label=LOSS)
    text = f"{title}: {words(len(drawn), 'run')}, training loss ends at {ending} {LOSS}"
    return [Chart(title, svg, text, detail=f"ends at {ending}")]


def axis_of(most: float) -> tuple[float, str]:
    """The size and the name of the unit of an axis of tokens that ends at `most`.

    >>> axis_of(1_601_536)
    (1000000.0, 'million tokens')
    """
    for size, unit in ((1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens")):
        if most >= size:
            return size, unit
    return 1.0, "tokens"


def grpo_evaluation_panels(evaluations: Curve) -> list[Chart]:
    """Accuracy on held-out problems with its interval, and the length of the answers, at each evaluation of GRPO."""
    panels = []
    for key, label in EVALUATION_CURVES:
        steps, values = evaluations.points("step", key)
        if not values:
            continue
        drawn = [charts.Line(steps, values)]
        if key == "value":
            ends = (evaluations.points("step", end) for end in ("low", "high"))
            drawn += [charts.Line(x, y, faint=True) for x, y in ends if y]
        svg = charts.lines(drawn, f"grpo-held-out-{key}", x_label="step", y_label=label)
        first, last = plain(values[0], 2), plain(values[-1], 2)
        title = f"Held-out: {label}"
        panels.append(Chart(title, svg, f"{title} from {first} to {last}", detail=f"{first} → {last}"))
    return panels


def _reward_panels(curve: Curve) -> list[Chart]:
    panels = []
    for key, label in REWARD_CURVES:
        steps, values = curve.points("step", key)
        if not values:
            continue
        svg = charts.lines([charts.Line(steps, values)], f"grpo-{key}", x_label="step", y_label=label)
        first, last = plain(values[0], 2), plain(values[-1], 2)
        panels.append(
            Chart(f"GRPO: {label}", svg, f"{label} from {first} to {last}", detail=f"{first} → {last}")
        )
    return panels


def _short(curve: Curve) -> str:
    """The name of a run from the folder of its log."""
    parts = [p for p in PurePosixPath(curve.name).parts[1:] if p not in ("train", "runs")]
    return "/".join(parts) or curve.name
