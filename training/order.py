"""The data order: a pure function (schedule, seed, index) -> (source, pieces of its documents).

Because any index can be asked for at any time, the data state of a training run is one integer, any step's
data can be listed without running it, and the order does not know about ranks, workers or batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.atomic import hash_value
from curation.errors import DataError, RecipeError
from training.packing import Piece, SourceStream, seeded_permutation
from training.tokens import TokenSource

# Shares are kept as integers in units of 2**-32 sequences, so that no rounding depends on the machine.
UNIT = 1 << 32
MOST_SEQUENCES = 1 << 31
KEPT_BLOCKS = 4


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


@dataclass(frozen=True)
class Window:
    """What one sequence reads: pieces (document index, first token, token after the last) of one source."""

    source: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Batch:
    """Sequences, int64 [count, T] each.

    labels       : the next token of the same document, -100 where the document ends
    positions    : from 0 at the start of each piece
    document_ids : the number of the piece in its row; tokens of different pieces must not see each other
    first        : the index in the data order of the first sequence; the others follow it

    A document that began in an earlier sequence continues here as a piece of its own, without its beginning:
    positions restart at 0, and there is no bos token.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    document_ids: Tensor
    first: int = 0


@dataclass(frozen=True)
class SourceUse:
    """What a phase reads of a source.

    asked, share : its part of the phase's tokens, as weighted and as rounded to whole sequences
    epochs       : passes over the source in this phase; epochs_so_far : in this phase and those before
    """

    phase: str
    source: str
    asked: float
    share: float
    sequences: int
    tokens: int
    epochs: float
    epochs_so_far: float


class DataOrder:
    """The order in which a schedule reads its sources, in sequences of `sequence_tokens` tokens.

    The sources take turns by their weights, and each keeps its own place: its k-th turn reads the k-th
    sequence of its stream, also when the phase, and so the weights, have changed in between. Two schedules
    with the same seed and other weights read each source in the same order, which makes their runs paired.
    Raises RecipeError for weights and sizes that cannot be.
    """

    def __init__(
        self, schedule: MixtureSchedule, sources: Mapping[str, TokenSource], sequence_tokens: int
    ) -> None:
        _check_schedule(schedule, sources, sequence_tokens)
        self.schedule, self.sequence_tokens = schedule, sequence_tokens
        self.sources = {name: sources[name] for name in sorted(sources)}
        self.sequences = schedule.sequences
        self._names = list(self.sources)
        self._starts, self._taken = _block_counts(schedule, self._names)
        self._streams = [
            SourceStream(name, source, schedule.seed, sequence_tokens)
            for name, source in self.sources.items()
        ]
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def turn(self, index: int) -> tuple[str, int]:
        """Whose turn sequence `index` is, and the number of that turn, from 0: (source, turn)."""
        source, number = self._turn(index)
        return self._names[source], number

    def window(self, index: int) -> Window:
        """What sequence `index`, from 0, reads."""
        source, number = self._turn(index)
        return Window(self._names[source], self._streams[source].pieces(number))

    def batch(self, first: int, count: int) -> Batch:
        """The sequences first ... first + count - 1. Rank r of R takes batch(first + r * n, n) of its n."""
        rows = [np.empty((count, self.sequence_tokens), dtype=np.int64) for _ in range(4)]
        for row in range(count):
            source, number = self._turn(first + row)
            self._streams[source].fill(number, *(array[row] for array in rows))
        ids, labels, positions, documents = (torch.from_numpy(array) for array in rows)
        return Batch(ids, labels, positions, documents, first)

    def phase_of(self, index: int) -> Phase:
        """The phase that sequence `index` belongs to."""
        end = 0
        for phase in self.schedule.phases:
            end += phase.sequences
            if index < end:
                return phase
        raise self._beyond(index)

    def describe(self, index: int) -> dict[str, Any]:
        """Sequence `index` for people: its phase, source, epoch and documents with their token ranges."""
        source, number = self._turn(index)
        stream = self._streams[source]
        documents = [
            {"id": stream.source.ids[document], "start": start, "stop": stop, "tokens": stop - start}
            for document, start, stop in stream.pieces(number)
        ]
        return {
            "index": index,
            "phase": self.phase_of(index).name,
            "source": stream.name,
            "sequence_of_source": number,
            "epoch": stream.epoch_of(number),
            "documents": documents,
        }

    def plan(self) -> tuple[SourceUse, ...]:
        """What each phase reads of each source that it reads, in the order of phases and of names."""
        uses, first = [], 0
        for phase in self.schedule.phases:
            before = self._taken[np.searchsorted(self._starts, first)]
            first += phase.sequences
            after = self._taken[np.searchsorted(self._starts, first)]
            shares = token_shares(phase.weights)
            for name, start, end in zip(self._names, before.tolist(), after.tolist(), strict=True):
                asked = shares.get(name, 0.0)
                if asked == 0.0 and start == end:
                    continue
                sequences, size = end - start, self.sources[name].total_tokens
                tokens = sequences * self.sequence_tokens
                so_far = end * self.sequence_tokens / size
                share = sequences / phase.sequences
                uses.append(
                    SourceUse(phase.name, name, asked, share, sequences, tokens, tokens / size, so_far)
                )
        return tuple(uses)

    def epochs(self, source: str) -> float:
        """How often the whole schedule reads `source`."""
        if source not in self.sources:
            raise RecipeError(f"There is no source {source!r}", remedy=f"Sources: {', '.join(self._names)}")
        sequences = int(self._taken[-1, self._names.index(source)])
        return sequences * self.sequence_tokens / self.sources[source].total_tokens

    def check_epochs(self, most: float | Mapping[str, float]) -> None:
        """Raise RecipeError if a source is read more than `most` times; it names the tokens that are missing.

        most : one cap for all sources, or one by source; a source that is not named has none
        """
        for name, source in self.sources.items():
            cap = most.get(name, math.inf) if isinstance(most, Mapping) else most
            read = round(self.epochs(name) * source.total_tokens)
            # Shares come in whole sequences: what rounding adds is not the user's mistake.
            if read - self.sequence_tokens >= cap * source.total_tokens:
                missing = math.ceil(read - cap * source.total_tokens)
                raise RecipeError(
                    f"The mixture reads {name} {self.epochs(name):.2f} times, and the cap is {cap:g}: "
                    f"{missing:,} tokens are missing (it has {source.total_tokens:,})",
                    where=f"weights.{name}",
                    remedy="Lower its weight or the budget, raise max_epochs, or add documents",
                )

    def fingerprint(self) -> str:
        """Hex sha256 of all that the order depends on: the schedule, the sources' content, the length."""
        schedule = self.schedule
        phases = [[p.name, p.sequences, sorted(p.weights.items())] for p in schedule.phases]
        contents = {name: source.hash for name, source in self.sources.items()}
        return hash_value([phases, schedule.seed, schedule.block, contents, self.sequence_tokens])

    def _turn(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.sequences:
            raise self._beyond(index)
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        if block not in self._blocks:
            while len(self._blocks) >= KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[block] = self._order_block(block)
        sources, numbers = self._blocks[block]
        at = index - int(self._starts[block])
        return int(sources[at]), int(numbers[at])

    def _order_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each sequence of a block, and the number of that source's turn."""
        before = self._taken[block]
        counts = self._taken[block + 1] - before
        order = seeded_permutation(int(counts.sum()), self.schedule.seed, "block", block)
        sources = np.repeat(np.arange(len(counts)), counts)[order]
        numbers = np.empty_like(sources)
        for source in np.flatnonzero(counts):
            turns = np.flatnonzero(sources == source)
            numbers[turns] = before[source] + np.arange(len(turns))
        return sources, numbers

    def _beyond(self, index: int) -> DataError:
        return DataError(
            f"There is no sequence {index}: the schedule has {self.sequences}",
            where="data order",
            remedy="Ask for an index from 0, or add sequences to the schedule's phases",
        )


def _block_counts(schedule: MixtureSchedule, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
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


def token_shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights divided by their sum."""
    largest = max(weights.values())  # divided out first, so that no sum overflows
    total = math.fsum(weight / largest for weight in weights.values())
    return {name: weight / largest / total for name, weight in weights.items()}


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


def _check_schedule(
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
