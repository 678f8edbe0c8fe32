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
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.atomic import read_json, replacing_folder, write_json, writing_to
from curation.errors import DataError
from curation.progress import progress
from training.chunked_logits import wide_logits
from training.sparse_distillation import (
    Entries,
    SparseTargets,
    multinomial_entries,
    sampled_entries,
    top_k_entries,
)
from training.teacher import Teacher, not_finite
from training.tokens import TokenSource

SCHEMA = 1
PART_TOKENS = 1 << 18  # what a kill can lose
FORWARD_TOKENS = 1 << 13
CHUNK_NUMBERS = 1 << 23  # probabilities at a time, in float64 while they are sampled
ARRAYS = ("documents", "ids", "weights", "entropy")


@dataclass(frozen=True)
class CacheIdentity:
    """All that the entries of a source depend on; hashes as of `hash_teacher` and `TokenSource`."""

    teacher: str
    tokenizer: str
    tokens: str
    kind: Entries
    entries: int
    temperature: float
    context: int
    precision: str
    vocabulary: int
    seed: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes on the disk for one token."""
        return self.entries * (self.ids.itemsize + 2) + 2

    @property
    def ids(self) -> np.dtype[Any]:
        """Type of the stored ids; one above the vocabulary must fit."""
        return np.dtype("<u2" if self.vocabulary < 1 << 16 else "<u4")


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
            arrays = _entries_of_documents(group, self.source, teacher, self.identity)
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


def uniforms(seed: int, source: str, numbers: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each of `numbers`, from splitmix64: independent of what is computed together."""
    digest = hashlib.sha256(json.dumps([seed, source]).encode()).digest()
    x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(int.from_bytes(digest[:8], "big"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


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


def _entries_of_documents(
    documents: list[int], source: TokenSource, teacher: Teacher, identity: CacheIdentity
) -> dict[str, np.ndarray]:
    offsets = source.offsets
    starts = np.concatenate(([0], np.cumsum(np.diff(offsets)[documents])))
    ids = np.zeros((starts[-1], identity.entries), dtype=identity.ids)
    weights = np.zeros((starts[-1], identity.entries), dtype=np.float16)
    entropy = np.zeros(starts[-1], dtype=np.float16)
    windows = [
        (int(offsets[document]) + begin, min(identity.context, length - begin), int(start) + begin)
        for document, start, length in zip(
            documents, starts[:-1], np.diff(offsets)[documents].tolist(), strict=True
        )
        for begin in range(0, length, identity.context)
    ]
    for rows in _rows(windows, identity.context):
        for at, states, tokens in _states(rows, source, teacher, identity.context):
            for chunk in torch.arange(len(at)).split(max(CHUNK_NUMBERS // identity.vocabulary, 1)):
                found = _entries(
                    states[chunk.to(states.device)], tokens[chunk.numpy()], teacher, identity, source
                )
                ids[at[chunk]], weights[at[chunk]], entropy[at[chunk]] = found
    return {
        "documents": np.array(documents, dtype=np.int64),
        "ids": ids,
        "weights": weights,
        "entropy": entropy,
    }


def _rows(windows: list[tuple[int, int, int]], context: int) -> Iterator[list[list[tuple[int, int, int]]]]:
    """Windows (first token of the source, tokens, place in the part), packed in rows of `context` tokens."""
    rows: list[list[tuple[int, int, int]]] = []
    room = 0
    for window in windows:
        if window[1] > room:
            if rows and (len(rows) + 1) * context > FORWARD_TOKENS:
                yield rows
                rows = []
            rows.append([])
            room = context
        rows[-1].append(window)
        room -= window[1]
    if rows:
        yield rows


def _states(
    rows: list[list[tuple[int, int, int]]], source: TokenSource, teacher: Teacher, context: int
) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray]]:
    """Of one forward pass: places in the part [n], hidden states [n, E] and tokens of the source [n]."""
    ids = np.zeros((len(rows), context), dtype=np.int64)
    positions, pieces = np.zeros_like(ids), np.full_like(ids, -1)
    places, numbers = np.full_like(ids, -1), np.zeros_like(ids)
    for row, windows in enumerate(rows):
        at = 0
        for piece, (first, length, place) in enumerate(windows):
            here = slice(at, at + length)
            ids[row, here] = source.tokens[first : first + length]
            positions[row, here] = np.arange(length)
            pieces[row, here] = piece
            places[row, here] = np.arange(place, place + length)
            numbers[row, here] = np.arange(first, first + length)
            at += length
        # Padding is a document of its own that nobody reads.
        positions[row, at:] = np.arange(context - at)
    states = teacher.hidden(*(torch.from_numpy(x) for x in (ids, positions, pieces))).flatten(0, 1)
    real = np.flatnonzero(places.ravel() >= 0)
    yield places.ravel()[real], states[torch.from_numpy(real).to(states.device)], numbers.ravel()[real]


def _entries(
    states: Tensor, tokens: np.ndarray, teacher: Teacher, identity: CacheIdentity, source: TokenSource
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = wide_logits(states, teacher.weight).div_(identity.temperature)
    if not bool(logits.isfinite().all()):
        document = int(np.searchsorted(source.offsets, tokens[0], side="right")) - 1
        raise not_finite(teacher.name, f"document {source.ids[document]} of {source.name}, or one near it")
    logp = logits.log_softmax(-1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    if identity.kind == "top_k":
        ids, weights = top_k_entries(p, identity.entries)
    elif identity.kind == "sampled":
        drawn = torch.from_numpy(uniforms(identity.seed, source.hash, tokens)).to(p.device)
        ids, weights = sampled_entries(p, identity.entries, drawn)
    else:
        numbers = tokens[:, None] * identity.entries + np.arange(identity.entries)
        drawn = torch.from_numpy(uniforms(identity.seed, source.hash, numbers)).to(p.device)
        ids, weights = multinomial_entries(p, identity.entries, drawn)
    return (
        ids.cpu().numpy().astype(identity.ids),
        weights.cpu().numpy().astype(np.float16),
        entropy.cpu().numpy().astype(np.float16),
    )


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
