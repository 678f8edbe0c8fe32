"""Progress that a person can read: a bar at a terminal, a line now and then in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

Mode = Literal["auto", "bar", "plain", "quiet"]
PLAIN_SECONDS = 10.0
REDRAW_SECONDS = 0.2

_mode: Mode = "auto"


def set_progress_mode(mode: Mode) -> None:
    """Choose how progress is shown in this process; `auto` is a bar at a terminal and plain lines elsewhere."""
    global _mode
    _mode = mode


def progress_mode() -> Mode:
    """The mode in force, with `auto` resolved."""
    if _mode != "auto":
        return _mode
    return "bar" if sys.stderr.isatty() else "plain"


class Task:
    """One piece of work with a known amount; `advance` is cheap enough for inner loops."""

    def __init__(self, description: str, total: float, unit: str, bar: Progress | None, quiet: bool) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0.0
        self._bar, self._quiet = bar, quiet
        self._started = self._printed = time.monotonic()
        if bar is not None:
            self._id = bar.add_task(description, total=total, rate="")

    def advance(self, amount: float = 1) -> None:
        """Record that `amount` more units are done."""
        self.done += amount
        if self._quiet:
            return
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed
        if self._bar is not None:
            self._bar.update(self._id, completed=self.done, rate=f"{rate:,.0f} {self.unit}/s")
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            left = f"{(self.total - self.done) / rate:.0f} s left" if rate else "nothing done yet"
            share = 100 * self.done / self.total if self.total else 100
            print(
                f"  {self.description}: {share:.0f} % ({self.done:,.0f} of {self.total:,.0f} {self.unit}), "
                f"{rate:,.0f} {self.unit}/s, {left}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def progress(description: str, total: float, unit: str = "items") -> Iterator[Task]:
    """Show the progress of `total` units of work under `description`, with rate and time left.

    >>> set_progress_mode("quiet")
    >>> with progress("scoring", total=2, unit="documents") as task:
    ...     task.advance(2)
    >>> set_progress_mode("auto")
    """
    mode = progress_mode()
    if mode != "bar":
        yield Task(description, total, unit, None, quiet=mode == "quiet")
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Task(description, total, unit, bar, quiet=False)


def note(words: str) -> None:
    """A line for the log about what happens; nothing for "" or when quiet."""
    if words and progress_mode() != "quiet":
        print(f"  {words}", file=sys.stderr, flush=True)


class StatusLine:
    """One line that its owner words itself: drawn anew in place at a terminal, printed now and then in a log."""

    def __init__(self, bar: Progress | None, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._every = PLAIN_SECONDS if bar is None else REDRAW_SECONDS
        # A log waits for its first line; a terminal shows it at once.
        self._shown = time.monotonic() if bar is None else float("-inf")
        if bar is not None:
            self._id = bar.add_task("", total=None)

    def show(self, words: Callable[[], str]) -> None:
        """Show what `words` returns, unless the last line is too young; then `words` is not called."""
        if self._quiet or time.monotonic() - self._shown < self._every:
            return
        self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._id, description=words())
        else:
            print(f"  {words()}", file=sys.stderr, flush=True)


@contextmanager
def status_line() -> Iterator[StatusLine]:
    """Show a line of free text about work that goes on.

    >>> set_progress_mode("quiet")
    >>> with status_line() as line:
    ...     line.show(lambda: "step 1 of 2")
    >>> set_progress_mode("auto")
    """
    mode = progress_mode()
    if mode != "bar":
        yield StatusLine(None, quiet=mode == "quiet")
        return
    column = TextColumn("  {task.description}", markup=False, table_column=Column(no_wrap=True))
    with Progress(column, console=Console(stderr=True), transient=True) as bar:
        yield StatusLine(bar, quiet=False)
