"""The funnel and the budget as tables of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.atomic import read_json
from curation.budget import SourceBudget
from recipes.cli.output import console, print_table, warn

STEPS = {
    "read": "read",
    "exact": "exact copies out",
    "minhash": "near copies out",
    "language": "in its languages",
    "educational": "educational",
    "reasoning": "reasoning",
    "domain": "domain",
    "deduplicated": "paraphrases out",
    "representative": "representative",
}


def print_funnel(rows: Sequence[dict[str, Any]]) -> None:
    """A block of rows for each source: documents, tokens and shares at each step."""
    table, last = [], None
    for row in rows:
        table.append(
            {
                "source": row["source"] if row["source"] != last else "",
                "step": STEPS.get(row["stage"], row["stage"]),
                "documents": f"{row['documents']:,}",
                "tokens": compact(row["tokens"]),
                "share": percent(row["share"]),
                "of_read": percent(row["of_read"]),
            }
        )
        last = row["source"]
    headings = {
        "source": "Source",
        "step": "Step",
        "documents": "Documents",
        "tokens": "Tokens",
        "share": "Kept",
        "of_read": "Of all",
    }
    print_table("The funnel: what is left, the share kept of the step before, and of all", table, headings)


def print_warnings(run: Path) -> None:
    """What the cuts warned of, a line each; notes on rechecks are left to the page."""
    from mixing.report.curated import RECHECKED

    file = run / "representative" / "warnings.json"
    for warning in read_json(file) if file.is_file() else ():
        if RECHECKED not in warning:
            warn(f"{warning.rstrip('.')}.")


def print_budget(plans: Sequence[SourceBudget]) -> None:
    """What must be read of each source, what it has, what the models cost, and what stands against it."""
    if not plans:
        return
    table = []
    for plan in plans:
        more = "+" if plan.at_least and plan.available is not None else ""
        table.append(
            {
                "source": plan.source,
                "pilot": compact(plan.pilot),
                "needed": compact(plan.needed),
                "interval": f"{compact(plan.low)} to {'any' if plan.high is None else compact(plan.high)}",
                "available": compact(plan.available) + more,
                "gives": compact(plan.expected),
                "verdict": plan.verdict,
            }
        )
    target, level = plans[0].target, plans[0].level
    print_table(
        f"To end with {target:,} documents of each source ({level:.0%} intervals)",
        table,
        {
            "source": "Source",
            "pilot": "Pilot",
            "needed": "To read",
            "interval": "Interval",
            "available": "Has",
            "gives": "Gives",
            "verdict": "Verdict",
        },
    )
    seconds: dict[str, float] = {}
    for plan in plans:
        for model, spent in plan.seconds.items():
            seconds[model] = seconds.get(model, 0.0) + spent
    for model, spent in seconds.items():
        _line(f"  {model}: {_hours(spent)} of one processor thread, as measured on the pilot")
    known = [plan.flops for plan in plans if plan.flops is not None]
    absent = list(dict.fromkeys(model for plan in plans for model in plan.flops_unknown))
    without = f", without those of the {' and the '.join(absent)}, whose size is not known" if absent else ""
    if known:
        gpu = f"{_hours(sum(known) / 1e14)} of a GPU that sustains 100 TFLOP/s"
        _line(f"  about {sum(known):.2g} FLOPs{without}; {gpu}")
    elif absent:
        _line(f"  FLOPs are not known: nor is the size of the {' and the '.join(absent)}")
    for note in (note for plan in plans for note in plan.notes):
        _line(f"  {note}.")


def _line(text: str) -> None:
    """A line of the result, printed in quiet mode too."""
    console.print(text, markup=False)


def compact(value: float | None) -> str:
    """A number in at most six characters.

    >>> [compact(n) for n in (None, 950, 12_345, 4_000_000, 2.5e9)]
    ['-', '950', '12.3k', '4M', '2.5G']
    """
    if value is None:
        return "-"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= factor:
            return f"{value / (1e3 if unit == 'k' else factor):.3g}{unit}"
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share as a percentage with three digits."""
    return "" if share is None else f"{100 * share:.3g} %"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds:,.0f} seconds"
