"""The documents that are scored, on the disk: memory does not grow with their number, and workers share them.

A store is a folder with `tokens.bin` (token ids, memory-mapped), `documents.arrow` (id, source, where the tokens
lie; memory-mapped too) and `store.json` (counts and the hash of the content).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.atomic import hash_value, read_json, replacing_folder, write_json
from curation.errors import DataError
from mixing.influence.documents import SampleDocument, Tokenized

ROWS = 4096  # documents in a record batch
COLUMNS = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("start", pa.int64()), ("tokens", pa.int64())]
)


class TokenizedSource(Protocol):
    """What `training.tokens.TokenSource` offers."""

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> Any: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def ids(self) -> Sequence[str]: ...


class TokenSamples(Sequence[SampleDocument]):
    """Chosen documents of token shards; the tokens of one are read when it is asked for."""

    def __init__(self, picks: Sequence[tuple[TokenizedSource, np.ndarray]]) -> None:
        self._sources = [source for source, _ in picks]
        self._which = np.repeat(np.arange(len(picks)), [len(chosen) for _, chosen in picks])
        self._index = np.concatenate([chosen for _, chosen in picks]) if picks else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, key: int) -> SampleDocument: ...
    @overload
    def __getitem__(self, key: slice) -> list[SampleDocument]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[at] for at in range(*key.indices(len(self)))]
        source, index = self._sources[int(self._which[key])], int(self._index[key])
        start, stop = int(source.offsets[index]), int(source.offsets[index + 1])
        ids = np.asarray(source.tokens[start:stop], dtype=np.int64)
        return SampleDocument(source.ids[index], source.name, ids)


def choose_samples(
    sources: Iterable[TokenizedSource], per_source: int, seed: int, exclude: Iterable[str] = ()
) -> TokenSamples:
    """At most `per_source` documents of each source, drawn without replacement, in the order of the source.

    The draw of a source depends on the seed and its name alone. `exclude` gives ids that may not be drawn, such
    as those of the probes. The tokens stay on the disk.
    """
    left_out = set(exclude)
    picks = []
    for source in sources:
        rng = np.random.default_rng([seed, int(hash_value(source.name)[:16], 16)])
        count = len(source.offsets) - 1
        allowed = (
            np.array([i for i, name in enumerate(source.ids) if name not in left_out], dtype=np.int64)
            if left_out
            else np.arange(count)
        )
        picks.append((source, np.sort(rng.permutation(allowed)[:per_source])))
    return TokenSamples(picks)


class SampleStore(Sequence[SampleDocument]):
    """Documents in a folder that `write_store` made; picklable as its path, opened anew where it is used."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        record = read_json(self.folder / "store.json")
        self.hash: str = record["hash"]
        self.notes: list[str] = record["notes"]
        table = pa.ipc.open_file(pa.memory_map(str(self.folder / "documents.arrow"))).read_all()
        self._ids, self._names = table["id"], table["source"]
        self.starts, self.lengths = table["start"].to_numpy(), table["tokens"].to_numpy()
        self._tokens = (
            np.memmap(self.folder / "tokens.bin", dtype=np.uint32, mode="r")
            if self.lengths.sum()
            else np.zeros(0, np.uint32)
        )

    def __reduce__(self) -> tuple[type[SampleStore], tuple[Path]]:
        return SampleStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, key: int) -> SampleDocument: ...
    @overload
    def __getitem__(self, key: slice) -> list[SampleDocument]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[at] for at in range(*key.indices(len(self)))]
        key = int(key)
        start = int(self.starts[key])
        ids = np.asarray(self._tokens[start : start + int(self.lengths[key])], dtype=np.int64)
        return SampleDocument(self._ids[key].as_py(), self._names[key].as_py(), ids)

    def numbers(self) -> dict[str, np.ndarray]:
        """The numbers of the documents of each source that have anything to predict, sources by name."""
        codes = self._names.combine_chunks().dictionary_encode()
        which = codes.indices.to_numpy()
        names = codes.dictionary.to_pylist()
        kept = self.lengths > 1
        return {
            name: np.flatnonzero((which == names.index(name)) & kept)
            for name in sorted(names)
            if ((which == names.index(name)) & kept).any()
        }

    def sources(self) -> set[str]:
        """Names of all sources."""
        return set(pc.unique(self._names).to_pylist())

    def shared(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that are ids of documents here, sorted."""
        wanted = pa.array(sorted(set(ids)), pa.string())
        found = pc.is_in(wanted, value_set=self._ids.combine_chunks())
        return wanted.filter(found).to_pylist()


def write_store(
    folder: Path, documents: Iterable[Tokenized], *, notes: list[str] | None = None, rename: bool = False
) -> SampleStore:
    """Write documents as they come; some thousands are held at a time, and a few bytes for each id.

    notes  : stored with them; read at the end, so that `documents` may add to it while it is read
    rename : a second document with the same source and id becomes `id#2`; otherwise it is a DataError, since the
             two could not be told apart
    """
    digest = hashlib.sha256()
    position = renamed = 0
    notes = [] if notes is None else notes
    seen: set[int] = set()
    with replacing_folder(folder) as temporary:
        with (
            (temporary / "tokens.bin").open("wb") as tokens,
            pa.OSFile(str(temporary / "documents.arrow"), "wb") as file,
            pa.ipc.new_file(file, COLUMNS) as writer,
        ):
            for batch in _batches(documents):
                rows = []
                for document in batch:
                    ids = np.ascontiguousarray(document.ids, dtype=np.uint32)
                    name, copies = document.id, 1
                    while (key := _key(document.source, name)) in seen:
                        if not rename:
                            raise DataError(
                                f"Two documents have the id {document.id!r}",
                                where=f"source {document.source}",
                                remedy="Give each document an id of its own",
                            )
                        copies += 1
                        name = f"{document.id}#{copies}"
                    renamed += copies > 1
                    seen.add(key)
                    digest.update(f"{name}\0{document.source}\0{len(ids)}\0".encode())
                    digest.update(ids.tobytes())
                    tokens.write(ids.tobytes())
                    rows.append((name, document.source, position, len(ids)))
                    position += len(ids)
                columns = [
                    pa.array(c, t) for c, t in zip(zip(*rows, strict=True), COLUMNS.types, strict=True)
                ]
                writer.write_batch(pa.record_batch(columns, schema=COLUMNS))
        if renamed:
            notes.append(f"{renamed} documents repeat an id of their source; they are called id#2, id#3 ...")
        write_json(
            temporary / "store.json", {"hash": digest.hexdigest(), "tokens": position, "notes": list(notes)}
        )
    return SampleStore(folder)


def _key(source: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{source}\0{name}".encode()).digest()[:8], "big")


def _batches(documents: Iterable[Tokenized]) -> Iterator[list[Tokenized]]:
    batch: list[Tokenized] = []
    for document in documents:
        batch.append(document)
        if len(batch) == ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def documents_hash(documents: Iterable[Tokenized]) -> str:
    """Hex sha256 of ids, sources and tokens."""
    return hash_value([(d.id, d.source, hash_value(np.asarray(d.ids).tolist())) for d in documents])


def spread_over(numbers: Mapping[str, np.ndarray], count: int) -> list[int]:
    """`spread_over_sources` for documents that are known by their numbers alone: evenly spaced, sources in turn."""
    share = dict.fromkeys(sorted(numbers), 0)
    left = min(count, sum(map(len, numbers.values())))
    while left:
        for name in share:
            if left and share[name] < len(numbers[name]):
                share[name] += 1
                left -= 1
    return sorted(
        int(numbers[name][at * len(numbers[name]) // wanted])
        for name, wanted in share.items()
        for at in range(wanted)
    )
