"""How commands print results: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation.progress import progress_mode

_asked = {"json": False}


def expect_json(asked: bool) -> bool:
    """Remember whether this command's standard output is JSON; what `say` says goes to standard error then."""
    _asked["json"] = asked
    return asked


def output_is_json() -> bool:
    """Whether standard output is for a program."""
    return _asked["json"]


JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on standard output.", callback=expect_json),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the recipe; repeatable."),
]

LEAST_CUT = 8

console = Console(highlight=False)
_errors = Console(stderr=True, highlight=False)


def main_rank() -> bool:
    """Whether this process prints the result: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """A line about what happens, left out when quiet; on standard error where standard output is JSON."""
    if progress_mode() != "quiet":
        (_errors if _asked["json"] else console).print(message, markup=False, soft_wrap=False)


def warn(message: str) -> None:
    """A warning, also when quiet; on standard error where standard output is JSON."""
    (_errors if _asked["json"] else console).print(f"  Warning: {message}", markup=False)


def print_json(value: Any, *, ascii_only: bool = False) -> None:
    """The result for a program: one JSON value on standard output.

    ascii_only : for text of documents, in which characters could command the terminal
    """
    written = json.dumps(value, indent=2, ensure_ascii=ascii_only, sort_keys=False, allow_nan=False)
    sys.stdout.write(written + "\n")


def print_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, cut: str = ""
) -> None:
    """Rows as a table that fits 80 columns; `columns` maps keys to headings, numbers are set to the right.

    cut : the column that is cut where there is no room, instead of taking several lines
    """
    cells = [[_cell(row[key]) for key in columns] for row in rows]
    if cut in columns:
        _cut(cells, list(columns.values()), list(columns).index(cut))
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for key, heading in columns.items():
        numeric = bool(rows) and all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for texts in cells:
        table.add_row(*map(Text, texts))
    console.print(table)


def _cut(cells: list[list[str]], headings: list[str], at: int) -> None:
    """Shorten the texts of column `at`, in place, to the room that the others leave; rich would fold the others."""
    gap = 3  # between columns, and a space on either side of the table
    taken = sum(
        max(map(cell_len, [heading, *(row[column] for row in cells)]))
        for column, heading in enumerate(headings)
        if column != at
    )
    room = max(LEAST_CUT, console.width - taken - gap * (len(headings) - 1) - 2)
    for row in cells:
        if cell_len(row[at]) > room:
            row[at] = f"{set_cell_size(row[at], room - 1)}…"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
