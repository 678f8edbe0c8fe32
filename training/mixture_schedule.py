"""Schedules of mixtures: phases, their weights, and how many sequences of each source every block holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError, RecipeError
from training.tokens import TokenSource

# Shares are kept as integers in units of 2**-32 sequences, so that no rounding depends on the machine.
UNIT = 1 << 32
MOST_SEQUENCES = 1 << 31


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one mixture: `sequences` sequences, and each source's weight in tokens.

    Weights need not sum to one; a source that is not named has weight 0.
    """

    name: str
    sequences: int
    weights: dict[str, float]


@dataclass(frozen=True)
class MixtureSchedule:
    """Phases in their order.

    seed  : of the documents' order in each epoch and of the sources' order in each block
    block : sequences after which every source's share of its phase is exact to within one sequence
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    block: int = 128

    @property
    def sequences(self) -> int:
        """Sequences of all phases."""
        return sum(phase.sequences for phase in self.phases)


def token_shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights divided by their sum."""
    largest = max(weights.values())  # divided out first, so that no sum overflows
    total = math.fsum(weight / largest for weight in weights.values())
    return {name: weight / largest / total for name, weight in weights.items()}


def block_counts(schedule: MixtureSchedule, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """First sequence of each block [B + 1], and sequences that each source has had by then [B + 1, S].

    A source whose share of the first n sequences of a phase is c has had floor(c) or ceil(c) of them at the
    end of every block. That is always possible, but not by rounding each block on its own: a source rounded
    up must wait until its share has caught up. Turns are jobs, released when the share passes k and due when
    it reaches k + 1; taking the job that is due first meets every due date if any order does.

    Each phase counts anew, so that one in which a source has weight 0 never reads it.
    """
    starts, taken = [0], [np.zeros(len(names), dtype=np.int64)]
    for phase in schedule.phases:
        first, before = starts[-1], taken[-1]
        slope = _integer_weights(phase.weights, names)
        had = np.zeros_like(before)
        for begin in range(0, phase.sequences, schedule.block):
            done = min(begin + schedule.block, phase.sequences)
            share = slope * done
            had = np.maximum(had, share // UNIT)
            waiting = np.flatnonzero(had * UNIT < share)
            due = -(-(had[waiting] + 1) * UNIT // slope[waiting])  # rounded up
            had[waiting[np.argsort(due, kind="stable")[: done - int(had.sum())]]] += 1
            starts.append(first + done)
            taken.append(before + had)
    return np.array(starts, dtype=np.int64), np.array(taken)


def _integer_weights(weights: Mapping[str, float], names: list[str]) -> np.ndarray:
    """Weights in the order of `names` as integers that sum to UNIT, by largest remainder."""
    shares = token_shares(weights)
    exact = [shares.get(name, 0.0) * UNIT for name in names]
    whole = np.array([math.floor(x) for x in exact], dtype=np.int64)
    remainders = np.array([x - math.floor(x) for x in exact])
    missing = UNIT - int(whole.sum())
    whole[np.argsort(-remainders, kind="stable")[: max(missing, 0)]] += 1
    whole[int(np.argmax(whole))] += UNIT - int(whole.sum())  # what floating point left over, if anything
    return whole


def check_schedule(
    schedule: MixtureSchedule, sources: Mapping[str, TokenSource], sequence_tokens: int
) -> None:
    if sequence_tokens < 1 or schedule.block < 1:
        raise RecipeError(
            f"Sequences of {sequence_tokens} tokens in blocks of {schedule.block} cannot be made",
            where="sequence_tokens, block",
            remedy="Give positive numbers",
        )
    if not schedule.phases or any(phase.sequences < 1 for phase in schedule.phases):
        raise RecipeError(
            "The schedule has no phases, or one without sequences",
            where="phases",
            remedy="Give every phase at least sequence_tokens tokens",
        )
    if schedule.sequences >= MOST_SEQUENCES:
        raise RecipeError(
            f"A schedule of {schedule.sequences:,} sequences is longer than {MOST_SEQUENCES:,}",
            where="phases",
            remedy="Use longer sequences, or train in several runs",
        )
    for phase in schedule.phases:
        _check_weights(phase, sources)
    if len({source.tokenizer for source in sources.values()}) > 1:
        raise DataError(
            "The sources were tokenized with different tokenizers",
            where=", ".join(sorted(sources)),
            remedy="Tokenize them all with one",
        )


def _check_weights(phase: Phase, sources: Mapping[str, TokenSource]) -> None:
    where = f"phase {phase.name}"
    for name, weight in phase.weights.items():
        if name not in sources:
            known = ", ".join(sorted(sources))
            raise RecipeError(f"There is no source {name!r}", where=where, remedy=f"The sources are {known}")
        if not (math.isfinite(weight) and weight >= 0):
            raise RecipeError(
                f"The weight of {name} is {weight}", where=where, remedy="Give a finite number, zero or more"
            )
    if not any(weight > 0 for weight in phase.weights.values()):
        raise RecipeError(
            "No source has a weight above zero", where=where, remedy="Give at least one a positive weight"
        )
