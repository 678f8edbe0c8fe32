"""The data order: a pure function (schedule, seed, index) -> (source, pieces of its documents).

Because any index can be asked for at any time, the data state of a training run is one integer, any step's
data can be listed without running it, and the order does not know about ranks, workers or batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from curation.atomic import hash_value
from curation.errors import DataError, RecipeError
from training.mixture_schedule import MixtureSchedule, Phase, block_counts, check_schedule, token_shares
from training.packing import Piece, SourceStream, seeded_permutation
from training.tokens import TokenSource

KEPT_BLOCKS = 4


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


class HasVocabulary(Protocol):
    """Anything whose tokens are below `vocab_size`."""

    @property
    def vocab_size(self) -> int: ...


class Order(Protocol):
    """All that training needs of an order: `DataOrder` is one, the chats of `training.sft` are another.

    sources     : by name, whatever is read; only the size of its vocabulary is asked
    batch       : a pure function of the index, so that a run's place in it is one integer
    fingerprint : hash of all that `batch` depends on; a run is not continued with another
    """

    @property
    def sequences(self) -> int: ...
    @property
    def sequence_tokens(self) -> int: ...
    @property
    def sources(self) -> Mapping[str, HasVocabulary]: ...
    def batch(self, first: int, count: int) -> Batch: ...
    def fingerprint(self) -> str: ...


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
        check_schedule(schedule, sources, sequence_tokens)
        self.schedule = schedule
        self.sequence_tokens: int = sequence_tokens
        self.sources: dict[str, TokenSource] = {name: sources[name] for name in sorted(sources)}
        self.sequences: int = schedule.sequences
        self._names = list(self.sources)
        self._starts, self._taken = block_counts(schedule, self._names)
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
        short = []
        for name, source in self.sources.items():
            cap = most.get(name, math.inf) if isinstance(most, Mapping) else most
            read = round(self.epochs(name) * source.total_tokens)
            # Shares come in whole sequences: what rounding adds is not the user's mistake.
            if read - self.sequence_tokens >= cap * source.total_tokens:
                missing = math.ceil(read - cap * source.total_tokens)
                sentence = (
                    f"reads {name} {self.epochs(name):.2f} times, and the cap is {cap:g}: {missing:,} tokens "
                    f"are missing (it has {source.total_tokens:,})"
                )
                short.append((-missing, sentence, f"weights.{name} (phase {self._phase_beyond(name, cap)})"))
        if short:
            _, sentences, places = zip(*sorted(short), strict=True)
            raise RecipeError(
                "The mixture " + "; it ".join(sentences),
                where=", ".join(places),
                remedy="Lower its weight or the budget, raise max_epochs, or add documents",
            )

    def _phase_beyond(self, name: str, cap: float) -> str:
        """The phase in which a source is read more than `cap` times."""
        uses = [use for use in self.plan() if use.source == name]
        return next((use.phase for use in uses if use.epochs_so_far > cap), uses[-1].phase)

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
