"""From the JSON of a run's files to records; KeyError, TypeError or ValueError where a file is something else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mixing.report.records import (
    Benefit,
    ComparedRun,
    Comparison,
    Density,
    Difference,
    Effect,
    Influence,
    LabelRule,
    LeaveOneOut,
    Phase,
    ReadCounts,
    RecipeFacts,
    Recommendation,
    Reference,
    Setting,
    Trajectory,
)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def needed(value: Any) -> float:
    """A finite number; ValueError for anything else."""
    found = number(value)
    if found is None:
        raise ValueError(f"{value!r} stands where a number is needed")
    return found


def texts(values: Any) -> tuple[str, ...]:
    """One text or several, as several."""
    if isinstance(values, str | int | float):
        return (str(values),)
    return tuple(str(v) for v in values or ())


def parse_recipe(file: Path) -> RecipeFacts:
    text = file.read_text(encoding="utf-8")
    value = yaml.safe_load(text)
    if not isinstance(value, dict):
        return RecipeFacts(text)
    sources = value.get("sources") or []
    if isinstance(sources, dict):
        sources = [{"name": name, **(entry or {})} for name, entry in sources.items()]
    labels = (value.get("curation") or {}).get("labels") or {}
    return RecipeFacts(
        text,
        {str(s["name"]): texts(s.get("capabilities")) for s in sources},
        tuple(parse_label(str(task), rule) for task, rules in labels.items() for rule in rules),
        tuple(p for p in (value.get("final") or {}).get("phases") or () if isinstance(p, dict)),
        (value.get("influence") or {}).get("checkpoint_weights", "step"),
        value.get("seed"),
    )


def parse_label(task: str, rule: Mapping[str, Any]) -> LabelRule:
    given = []
    if rule.get("corrupt"):
        given.append(f"damaged copies ({str(rule['corrupt']).replace('_', ' ')})")
    if rule.get("sources"):
        given.append(f"documents of {', '.join(texts(rule['sources']))}")
    if rule.get("pattern"):
        times = rule.get("minimum_matches", 1)
        given.append(
            f"documents that match {rule['pattern']}" + (f" {times} times or more" if times != 1 else "")
        )
    return LabelRule(
        task,
        str(rule["name"]),
        needed(rule["label"]),
        "; ".join(given) or "all others",
        str(rule.get("why", "")),
    )


def parse_label_counts(value: Any) -> dict[tuple[str, str], int]:
    """Examples that each rule made: {(task, rule): examples}."""
    return {(str(t), str(r["rule"])): int(r["examples"]) for t, rows in value.items() for r in rows}


def parse_recommendation(value: Any) -> Recommendation:
    return Recommendation(str(value["mixture"]), str(value.get("why", "")))


def parse_leave_one_out(value: Any) -> LeaveOneOut:
    seeds = value.get("seeds", ())
    return LeaveOneOut(
        unit=str(value.get("unit", "bits per byte")),
        tokens_per_run=number(value.get("tokens_per_run")),
        seeds=texts(seeds),
        effects=tuple(
            Effect(
                str(e["source"]),
                str(e["capability"]),
                needed(e["delta"]),
                number(e.get("low")),
                number(e.get("high")),
                {str(seed): needed(d) for seed, d in (e.get("per_seed") or {}).items()},
            )
            for e in value["effects"]
        ),
        trajectories=tuple(
            Trajectory(
                str(t["source"]),
                str(t["capability"]),
                tuple(needed(s) for s in t["steps"]),
                tuple(needed(d) for d in t["delta"]),
            )
            for t in value.get("trajectories", ())
        ),
        notes=texts(value.get("notes")),
        level=number(value.get("level")) or 0.9,
    )


def parse_influence(value: Any, recipe: RecipeFacts) -> Influence:
    return Influence(
        references=tuple(_reference(str(name), entry) for name, entry in value["references"].items()),
        chosen=str(value["chosen"]),
        why=str(value.get("why", "")),
        pilots=tuple(p for p in value.get("pilots", ()) if isinstance(p, dict)),
        rule=_rule(value, recipe),
        normalise=str(value.get("normalise", "none")),
    )


def _rule(value: Any, recipe: RecipeFacts) -> Any:
    """How checkpoints were joined, as `joint_benefit` takes it: rates as weights, since the logs may be gone."""
    rule = value.get("checkpoint_weights", recipe.checkpoint_rule)
    given = value.get("learning_rates") if rule == "learning_rate" else rule
    return {int(step): float(rate) for step, rate in given.items()} if isinstance(given, Mapping) else rule


def _reference(name: str, entry: Mapping[str, Any]) -> Reference:
    return Reference(
        name=name,
        table=tuple(
            Benefit(
                str(row["source"]),
                str(row["capability"]),
                needed(row["benefit"]),
                number(row.get("low")),
                number(row.get("high")),
                row.get("documents"),
                row.get("tokens"),
            )
            for row in entry["table"]
        ),
        weights=tuple(
            Density(
                str(row["source"]),
                needed(row["rho"]),
                number(row.get("rho_low")),
                number(row.get("rho_high")),
                needed(row["weight"]),
                number(row.get("low")),
                number(row.get("high")),
                bool(row.get("clipped")),
            )
            for row in entry["weights"]
        ),
        noise_below_uniform=entry.get("noise_below_uniform"),
        agreement=entry.get("agreement"),
    )


def parse_comparison(value: Any) -> Comparison:
    return Comparison(
        unit=str(value.get("unit", "bits per byte")),
        mixtures={
            str(name): {str(s): needed(w) for s, w in weights.items()}
            for name, weights in value.get("mixtures", {}).items()
        },
        seeds=texts(value.get("seeds")),
        runs=tuple(
            ComparedRun(str(r["mixture"]), str(r["seed"]), str(r["capability"]), needed(r["bits_per_byte"]))
            for r in value["runs"]
        ),
        differences=tuple(
            Difference(
                str(d["mixture"]),
                str(d.get("against", "uniform")),
                str(d["capability"]),
                needed(d["difference"]),
                number(d.get("relative")),
                number(d.get("low")),
                number(d.get("high")),
                number(d.get("p_sign_flip")),
                tuple(needed(x) for x in d.get("per_seed") or ()),
                number(d.get("smallest_detectable")),
                str(d.get("verdict", "not separable")),
                number(d.get("p_holm")),
                number(d.get("margin")),
                number(d.get("p_equivalence")),
                d["equivalent"] if isinstance(d.get("equivalent"), bool) else None,
                number(d.get("p_bootstrap")),
            )
            for d in value["differences"]
        ),
        notes=texts(value.get("notes")),
        level=number(value.get("level")) or 0.9,
        rule=str(value.get("rule", "")),
    )


def parse_reads(value: Any) -> ReadCounts:
    counts = {name: int(v) for name, v in value.items() if isinstance(v, int) and not isinstance(v, bool)}
    examples = tuple(
        (str(e.get("where", "")), str(e.get("why", ""))) for e in value.get("broken_examples", ())
    )
    return ReadCounts(str(value["source"]), counts, examples)


def parse_funnel(value: Any) -> tuple[tuple[str, str, int], ...]:
    return tuple((str(r["source"]), str(r["stage"]), int(r["documents"])) for r in value)


def parse_settings(value: Any) -> tuple[Setting, ...]:
    return tuple(
        Setting(str(r["setting"]), str(r.get("value", "")), str(r.get("paper", "")), str(r.get("why", "")))
        for r in value
    )


def parse_phases(value: Iterable[Any]) -> tuple[Phase, ...]:
    """Phases as the trainer or the recipe records them, as long as their mixtures are spelled out."""
    rows = [v for v in value if isinstance(v, dict) and isinstance(v.get("weights"), dict)]
    sizes = [number(v.get("share")) or number(v.get("sequences")) or 0.0 for v in rows]
    total = sum(sizes) or 1.0
    return tuple(
        Phase(
            str(v.get("name", f"phase {at + 1}")),
            size / total,
            {str(k): float(w) for k, w in v["weights"].items()},
        )
        for at, (v, size) in enumerate(zip(rows, sizes, strict=True))
    )
