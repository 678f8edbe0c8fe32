"""What gets one score each: a document, or a random group of documents of one source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.atomic import hash_value
from curation.errors import DataError
from mixing.influence.documents import SampleDocument
from mixing.influence.samples import SampleStore


@dataclass(frozen=True)
class Units:
    """The units of a store. Unit u holds the documents `starts[u] ... starts[u + 1] - 1` of `members`.

    by_source : source -> numbers of its units, sources by name
    """

    store: SampleStore
    members: np.ndarray
    starts: np.ndarray
    by_source: dict[str, np.ndarray]
    grouped: bool

    @property
    def count(self) -> int:
        return len(self.starts) - 1

    def documents(self, unit: int) -> list[SampleDocument]:
        """The documents of one unit."""
        return [self.store[int(at)] for at in self.members[self.starts[unit] : self.starts[unit + 1]]]

    def name(self, unit: int) -> tuple[str, str]:
        """How the unit is called in tables, and its source."""
        first = self.store[int(self.members[self.starts[unit]])]
        if not self.grouped:
            return first.id, first.source
        return f"group of {int(self.starts[unit + 1] - self.starts[unit])} with {first.id}", first.source


def make_units(store: SampleStore, group_documents: int, seed: int) -> Units:
    """Each document with something to predict (0), or groups of so many, drawn by the seed and source's name.

    Documents that are left over spread over the groups of their source, so that sizes differ by one at most.
    """
    numbers = store.numbers()
    empty = sorted(store.sources() - numbers.keys())
    if empty:
        raise DataError(
            f"No token of source {empty[0]!r} can be scored",
            where="influence",
            remedy="Give documents of two tokens or more, or leave the source out",
        )
    if group_documents == 0:
        members = np.sort(np.concatenate(list(numbers.values()))) if numbers else np.zeros(0, np.int64)
        place = {name: np.searchsorted(members, found) for name, found in numbers.items()}
        return Units(store, members, np.arange(len(members) + 1), place, False)
    parts: list[np.ndarray] = []
    by_source = {}
    for name, found in numbers.items():
        rng = np.random.default_rng([seed, 2, int(hash_value(name)[:16], 16)])
        groups = np.array_split(rng.permutation(found), max(1, len(found) // group_documents))
        by_source[name] = np.arange(len(parts), len(parts) + len(groups))
        parts += groups
    starts = np.concatenate(([0], np.cumsum([len(p) for p in parts])))
    return Units(store, np.concatenate(parts), starts, by_source, True)
