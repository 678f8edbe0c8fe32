"""The section on the final model: its phases, SFT, GRPO before and after, the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixing.report.elements import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Palette,
    Prose,
    Section,
    Segment,
    StackedBars,
    Table,
)
from mixing.report.gather import number
from mixing.report.mixtures import LABELLED
from mixing.report.numbers import (
    compact,
    count,
    duration,
    listed,
    percent,
    percent_span,
    plain,
    scientific,
    size,
)
from mixing.report.records import Model, Phase, RunFacts, Trained

GROUP = "Model"
TITLES = {
    "pretrain": "Pre-training",
    "compression": "Mid-training",
    "sft": "Fine-tuning (SFT)",
    "grpo": "Reinforcement learning (GRPO)",
}
SHORT = {"pretrain": "pre-training", "compression": "mid-training", "sft": "SFT", "grpo": "GRPO"}
LOSS = "nats per token"


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """The final model."""
    return [_final(facts, palette)]


def before_and_after(result: Mapping[str, Any]) -> list[str]:
    """What reinforcement learning did to the share of right answers on held-out problems, in a sentence."""
    before, after = result.get("before"), result.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    start, end = _accuracy(before), _accuracy(after)
    if start is None or end is None:
        return []
    total = number(after.get("total"))
    over = "" if total is None else f" of {count(total)} held-out problems"
    level = number(after.get("level")) or 0.95
    spans = [percent_span(number(r.get("low")), number(r.get("high")), 0) for r in (before, after)]
    low, high = number(before.get("high")), number(after.get("low"))
    apart = low is not None and high is not None and high > low
    change = "raised" if end > start else "lowered"
    # "From 41 % to 41 %" is no sentence.
    digits = 0 if percent(start, 0) != percent(end, 0) else 1
    back = (number(before.get("low")), number(after.get("high")))
    fell = end < start and back[0] is not None and back[1] is not None and back[1] < back[0]
    sure = "the intervals do not overlap" if apart or fell else "the intervals overlap, so this may be chance"
    if end == start:
        return [f"Reinforcement learning did not change the share of right answers{over}: {percent(end, 0)}."]
    return [
        f"Reinforcement learning {change} the share of right answers{over} from {percent(start, digits)} "
        f"({spans[0]}) to {percent(end, digits)} ({spans[1]}; {percent(level, 0)} intervals; {sure})."
    ]


def _accuracy(row: Mapping[str, Any]) -> float | None:
    return number(row.get("value", row.get("accuracy")))


def _final(facts: RunFacts, palette: Palette) -> Section:
    title = "The final model: from text to reasoning"
    if not facts.trained and facts.model is None:
        return Section(
            "model",
            title,
            GROUP,
            missing="No final model was trained",
            command="mixwright train recipe.yaml --stage pretrain",
        )
    blocks: list[Block] = []
    grpo = facts.trained.get("grpo")
    told = before_and_after(grpo.result) if grpo else []
    stages = [title for n, title in SHORT.items() if n in facts.trained]
    blocks.append(Prose(" ".join([f"The final model went through {listed(stages)}.", *told]), "lead"))
    pretrain = facts.trained.get("pretrain")
    if pretrain and pretrain.phases:
        blocks.append(_phases(pretrain.phases, palette))
    blocks.append(_stages(facts.trained))
    if grpo and isinstance(grpo.result.get("before"), dict) and isinstance(grpo.result.get("after"), dict):
        blocks.append(_reward_table(grpo.result))
    for name in ("sft", "grpo"):
        if name not in facts.trained:
            blocks.append(Prose(f"{TITLES[name]}: not run. See mixwright {name} --help.", "note"))
    blocks += _folder(facts.model)
    return Section("model", title, GROUP, tuple(blocks))


def _phases(phases: Sequence[Phase], palette: Palette) -> StackedBars:
    bars = []
    for phase in phases:
        segments = tuple(
            Segment(
                n,
                phase.weights[n],
                palette.of_source(n),
                percent(phase.weights[n], 0) if phase.weights[n] >= LABELLED else "",
            )
            for n in palette.sort(set(phase.weights))
            if phase.weights[n] > 0
        )
        bars.append((f"{phase.name}, {percent(phase.share, 0)} of the tokens", segments))
    names = palette.sort({n for p in phases for n, w in p.weights.items() if w > 0})
    return StackedBars(
        tuple(bars),
        tuple(palette.key(n) for n in names),
        "The phases of pre-training, each with its own mixture",
    )


def _stages(trained: Mapping[str, Trained]) -> Table:
    rows = []
    for name in (*(n for n in TITLES if n in trained), *sorted(set(trained) - set(TITLES))):
        t = trained[name]
        if not t.result and t.curve is None:
            continue  # it has several arms, and a section of its own
        _, loss = t.curve.points("step", "loss") if t.curve else ((), ())
        shown = loss if name != "grpo" else ()
        rows.append(
            (
                Cell(TITLES.get(name, name)),
                Cell(count(number(t.result.get("steps")) or (len(loss) or None))),
                Cell(compact(number(t.result.get("tokens")))),
                Cell(plain(_mean(shown[: max(1, len(shown) // 20)]), 3)),
                Cell(plain(_mean(shown[-max(1, len(shown) // 20) :]), 3)),
                Cell(scientific(number(t.result.get("flops")))),
                Cell(duration(number(t.result.get("seconds")))),
            )
        )
    return Table(
        f"Stages of the final model; losses in {LOSS}, the means of the first and the last twentieth of the steps. "
        "A training loss has no interval: it is one run's own text",
        (
            Column("Stage", numeric=False),
            Column("Steps"),
            Column("Tokens"),
            Column("First loss"),
            Column("Last loss"),
            Column("FLOPs"),
            Column("Time of updates"),
        ),
        tuple(rows),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _reward_table(result: Mapping[str, Any]) -> Table:
    rows = []
    for title, key in (("before", "before"), ("after", "after")):
        row = result[key]
        right, total = number(row.get("right")), number(row.get("total"))
        rows.append(
            (
                Cell(title),
                Cell("–" if right is None or total is None else f"{count(right)} of {count(total)}"),
                Cell(percent(_accuracy(row)), tone="sure"),
                Cell(percent_span(number(row.get("low")), number(row.get("high"))), tone="quiet"),
                Cell(plain(number(row.get("reward")), 2)),
                Cell(plain(number(row.get("length")), 1)),
                Cell(percent(number(row.get("truncated")), 0)),
            )
        )
    level = number(result["after"].get("level")) or 0.95
    return Table(
        f"Greedy answers to held-out problems before and after GRPO, with {percent(level, 0)} Wilson intervals",
        (
            Column("", numeric=False),
            Column("Right"),
            Column("Share"),
            Column("Interval"),
            Column("Reward"),
            Column("Tokens"),
            Column("Cut at the limit"),
        ),
        tuple(rows),
    )


def _folder(model: Model | None) -> list[Block]:
    if model is None:
        return [Prose("The folder model/ is not there: the run did not get so far.", "note")]
    config = model.config
    shape = [
        f"{k.replace('_', ' ')} {config[k]}"
        for k in ("num_hidden_layers", "hidden_size", "vocab_size")
        if k in config
    ]
    if model.logit_difference is None:
        check = "not recorded"
    else:
        check = f"largest difference {scientific(model.logit_difference)} between our logits and those of transformers"
    facts = (
        (
            "class",
            listed([str(a) for a in config.get("architectures") or [config.get("model_type", "unknown")]]),
        ),
        ("parameters", count(model.parameters)),
        ("shape", ", ".join(shape) or "–"),
        ("files", ", ".join(f"{n} ({size(s)})" for n, s in model.files.items())),
        ("missing", listed(model.problems) if model.problems else "nothing that a Hugging Face folder needs"),
        ("equal logits", check),
    )
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        'model = AutoModelForCausalLM.from_pretrained("model")\n'
        'tokenizer = AutoTokenizer.from_pretrained("model")'
    )
    return [Facts(facts), Code(load, "To load it, from the run folder")]
