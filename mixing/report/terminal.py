"""The few lines at the end of `mixwright run`: the mixture, the verdict, where the page is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixing.mixture import Mixture
from mixing.report.gather import gather
from mixing.report.model import before_and_after
from mixing.report.numbers import DASH, percent, percent_span, plain
from mixing.report.verdict import against_uniform, what_it_cost

WIDTH = 80
BAR = 18


def print_summary(run: Path, console: Console) -> None:
    """Print the recommended mixture, whether it beat uniform, what it cost and where the page is, in 80 columns."""
    run = Path(run)
    facts = gather(run)
    width = min(WIDTH, console.width)
    if facts.recommended is not None:
        console.print(mixture_table(facts.recommended), width=width)
    verdict = against_uniform(facts)
    style = {"good": "bold green", "bad": "bold red", "unclear": "bold yellow"}.get(verdict.tone, "bold")
    console.print(Text(f"Against uniform: {verdict.sentence}", style=style), width=width)
    grpo = facts.trained.get("grpo")
    for sentence in before_and_after(grpo.result) if grpo else ():
        console.print(Text(sentence), width=width)
    console.print(Text(f"Cost: {what_it_cost(facts)}"), width=width)
    page = run / "report.html"
    where = str(page) if page.is_file() else f"not written yet: mixwright report {run}"
    # One line, whatever its length: a path that is broken over lines can be neither clicked nor copied.
    console.print(Text("Report: ") + Text(where, style="cyan"), soft_wrap=True)


def mixture_table(mixture: Mixture) -> Table:
    """Weights with intervals, as bars; no name is read as markup."""
    table = Table(
        title=Text(f"Recommended mixture ({mixture.method})"), title_justify="left", box=None, pad_edge=False
    )
    table.add_column("source", overflow="fold", max_width=26)
    for name in ("weight", "interval", "epochs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max(mixture.weights.values()) or 1.0
    for name in sorted(mixture.weights, key=lambda n: (-mixture.weights[n], n)):
        weight = mixture.weights[name]
        low, high = (mixture.intervals or {}).get(name, (None, None))
        table.add_row(
            Text(name),
            percent(weight),
            percent_span(low, high, 0) if mixture.intervals else DASH,
            plain((mixture.epochs or {}).get(name), 2),
            Text("━" * max(1 if weight > 0 else 0, round(BAR * weight / largest)), style="blue"),
        )
    return table
