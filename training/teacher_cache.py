"""What a teacher says at every token of a source's documents, in a few entries each, computed once.

    SOURCE/cache.json           what the cache was made from: teacher, tokenizer, tokens, settings
    SOURCE/part-N/documents.npy int64 [documents], indices in the source, rising
    SOURCE/part-N/ids.npy       uint16 or uint32 [tokens, entries]
    SOURCE/part-N/weights.npy   float16 [tokens, entries]
    SOURCE/part-N/entropy.npy   float16 [tokens], nats
    SOURCE/part-N/part.json     counts; written with the rest, which appears as a whole or not at all

The key is (document, token), not the step, so that any mixture, phase and epoch reads the same entries. The
teacher reads each document from its start, in consecutive windows of `context` tokens. That is not quite what
an online teacher reads: there a document that began in an earlier sequence continues without its beginning.

A token costs entries x (4 + 2) + 2 bytes, (2 + 2) for vocabularies below 65,536. float16 rounds a probability
by at most 1 part in 2048; the largest entry is read as 1 minus the others, so that they always sum to 1.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from curation.atomic import read_json, replacing_folder, write_json, writing_to
from curation.errors import DataError
from curation.progress import progress
from training.sparse_distillation import Entries, SparseTargets
from training.teacher import Teacher
from training.teacher_pass import CacheIdentity, entries_of_documents
from training.tokens import TokenSource

SCHEMA = 1
PART_TOKENS = 1 << 18  # what a kill can lose
ARRAYS = ("documents", "ids", "weights", "entropy")


class TeacherCache:
    """The cache of one source, as far as it has been computed.

    Raises DataError when the folder's cache was made from something else, naming what, or is damaged.
    """

    def __init__(self, folder: Path, identity: CacheIdentity, source: TokenSource) -> None:
        self.folder, self.identity, self.source = folder, identity, source
        self._parts: list[dict[str, np.ndarray]] = []
        # Of every document: the part that holds it, -1 = none, and its first row there.
        self._part_of = np.full(len(source.ids), -1, dtype=np.int32)
        self._row_of = np.zeros(len(source.ids), dtype=np.int64)
        _check_identity(folder, identity)
        self._next = 0
        for part in sorted(folder.glob("part-*")):
            self._add(part)

    def missing(self, documents: Sequence[int]) -> list[int]:
        """Those of `documents` that are not there yet, in rising order."""
        wanted = np.unique(np.asarray(documents, dtype=np.int64))
        return wanted[self._part_of[wanted] < 0].tolist()

    def fill(self, documents: Sequence[int], teacher: Teacher, tick: Callable[[int], None]) -> None:
        """Compute and store the entries of `documents`; a kill loses at most one part. `tick` gets tokens."""
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "cache.json", {"schema": SCHEMA, **asdict(self.identity)})
        for group in _parts(documents, self.source):
            arrays = entries_of_documents(group, self.source, teacher, self.identity)
            part = self.folder / f"part-{self._next:06d}"
            with replacing_folder(part) as temporary:
                for name in ARRAYS:
                    np.save(temporary / f"{name}.npy", arrays[name])
                tokens = len(arrays["entropy"])
                write_json(temporary / "part.json", {"documents": len(group), "tokens": tokens})
            self._add(part)
            tick(tokens)

    def read(self, pieces: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, weights and entropies of pieces (document, first token, token after the last), end to end."""
        found: list[tuple[np.ndarray, ...]] = []
        for document, start, stop in pieces:
            if self._part_of[document] < 0:
                raise _damaged(self.folder, f"lacks the document {self.source.ids[document]}")
            arrays, row = self._parts[self._part_of[document]], self._row_of[document]
            found.append(tuple(arrays[name][row + start : row + stop] for name in ARRAYS[1:]))
        ids, weights, entropy = (np.concatenate(column) for column in zip(*found, strict=True))
        return ids.astype(np.int64), whole(weights), entropy.astype(np.float32)

    def _add(self, part: Path) -> None:
        try:
            record = read_json(part / "part.json")
            arrays = {name: np.load(part / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            tokens, count = int(record["tokens"]), int(record["documents"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise _damaged(part, f"cannot be read: {error}") from error
        documents = np.asarray(arrays["documents"])
        shape = (tokens, self.identity.entries)
        if not len(documents) == count or not 0 <= documents.min(initial=0) <= documents.max(initial=0) < len(
            self.source.ids
        ):
            raise _damaged(part, "has documents that the source has not")
        lengths = np.diff(self.source.offsets)[documents]
        whole_part = arrays["ids"].shape == shape == arrays["weights"].shape
        if not whole_part or len(arrays["entropy"]) != tokens or lengths.sum() != tokens:
            raise _damaged(part, "does not hold as many entries as its documents have tokens")
        self._part_of[documents] = len(self._parts)
        self._row_of[documents] = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        self._parts.append(arrays)
        self._next = int(part.name.removeprefix("part-")) + 1


def fill_caches(
    caches: dict[str, TeacherCache],
    needed: dict[str, list[int]],
    load: Callable[[], Teacher],
    label: str = "asking the teacher",
) -> None:
    """Compute what the caches lack of the needed documents; the teacher is loaded only if anything does."""
    missing = {name: caches[name].missing(documents) for name, documents in needed.items()}
    total = sum(
        int(np.diff(caches[name].source.offsets)[documents].sum())
        for name, documents in missing.items()
        if documents
    )
    if not total:
        return
    teacher = load()
    with progress(label, total, "tokens") as task:
        for name, documents in missing.items():
            if documents:
                caches[name].fill(documents, teacher, task.advance)


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of caches: of several processes one computes, the others wait and read."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def whole(weights: np.ndarray) -> np.ndarray:
    """Stored weights [n, K] as float32 that sum to 1: the largest is 1 minus the others.

    >>> whole(np.array([[0.7, 0.2]], dtype=np.float16)).round(4).tolist()
    [[0.8, 0.2]]
    """
    wide = weights.astype(np.float32)
    rows, largest = np.arange(len(wide)), wide.argmax(-1)
    wide[rows, largest] = 0
    wide[rows, largest] = 1 - wide.sum(-1)
    return wide


def targets_on(
    device: torch.device, kind: Entries, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> SparseTargets:
    """What `TeacherCache.read` gave, as the tensors of a loss."""
    ids, weights, entropy = (torch.from_numpy(array).to(device) for array in arrays)
    return SparseTargets(kind, ids, weights, entropy)


def _parts(documents: Sequence[int], source: TokenSource) -> Iterator[list[int]]:
    """Runs of documents of about PART_TOKENS tokens; what is left after a kill gives the same runs."""
    group: list[int] = []
    tokens = 0
    for document in documents:
        group.append(document)
        tokens += int(source.offsets[document + 1] - source.offsets[document])
        if tokens >= PART_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _check_identity(folder: Path, identity: CacheIdentity) -> None:
    path = folder / "cache.json"
    if not path.exists():
        return
    try:
        found = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, f"has a broken cache.json: {error}") from error
    wanted = {"schema": SCHEMA, **asdict(identity)}
    differing = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if differing:
        raise DataError(
            "The cache of the teacher does not fit this run: other " + ", ".join(differing),
            where=str(folder),
            remedy="Name another cache_folder, or delete this one to ask the teacher again",
        )


def _damaged(where: Path, why: str) -> DataError:
    return DataError(
        f"The cache of the teacher {why}",
        where=str(where),
        remedy="Delete this folder; what it held is computed again",
    )
