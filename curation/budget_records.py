"""The records of the budget planner: what a pilot saw, what models cost, and the answer for a source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["enough", "perhaps", "not enough", "unknown"]


@dataclass(frozen=True)
class Cut:
    """One cut of a funnel, as a pilot saw it.

    reached, passed : documents of the pilot before and behind it
    share           : what it keeps by definition; None for a counted cut
    duplicates      : whether it drops copies, of which a larger corpus has more
    groups          : of such a cut, sizes of the groups of duplicates among `reached`, from which their growth is
                      predicted (see `duplicate_growth`); one document of each passes, or none where another source
                      has it. Without them the pilot's share is taken for that of any size
    """

    name: str
    reached: int
    passed: int
    share: float | None = None
    duplicates: bool = False
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cost:
    """What one document costs a model.

    at      : name of the cut before which the model reads; it reads whatever reaches that cut
    seconds : of one processor thread, measured
    flops   : estimated from parameters and tokens; None when the model's size is not known
    """

    model: str
    at: str
    seconds: float
    flops: float | None = None


@dataclass(frozen=True)
class Rate:
    """The share that a cut lets through; `low` and `high` are Clopper and Pearson's, or the share itself."""

    name: str
    value: float | None
    low: float
    high: float
    fixed: bool


@dataclass(frozen=True)
class SourceBudget:
    """The answer for one source.

    target        : documents wanted in the end
    rates         : of each cut
    needed        : documents to read, from the pilot's rates; None when nothing passed the pilot
    low, high     : interval of that number; `high` is None when no number can be said to be enough
    available     : documents that the source has, if known; `at_least` when it may have more
    expected, expected_low, expected_high : documents in the end if all available ones are read
    verdict       : whether the source can give them
    seconds, flops : of the models, for reading `needed`; `flops` of those whose operations are known, None if none are
    flops_unknown  : the models that `flops` leaves out
    notes         : sentences for people
    """

    source: str
    target: int
    level: float
    pilot: int
    rates: tuple[Rate, ...]
    needed: float | None
    low: float
    high: float | None
    available: int | None
    at_least: bool
    expected: float | None
    expected_low: float | None
    expected_high: float | None
    verdict: Verdict
    seconds: dict[str, float] = field(default_factory=dict)
    flops: float | None = None
    flops_unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
