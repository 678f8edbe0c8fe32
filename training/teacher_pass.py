"""The pass of a teacher over documents that is made once: what it says at each token, in a few entries.

The teacher reads each document from its start, in consecutive windows of `context` tokens that do not see each
other, packed in rows. Which entries are drawn depends on the token's place alone, not on what is computed together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.chunked_logits import wide_logits
from training.sparse_distillation import Entries, multinomial_entries, sampled_entries, top_k_entries
from training.teacher import Teacher, not_finite
from training.tokens import TokenSource

FORWARD_TOKENS = 1 << 13
CHUNK_NUMBERS = 1 << 23  # probabilities at a time, in float64 while they are sampled


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


def entries_of_documents(
    documents: list[int], source: TokenSource, teacher: Teacher, identity: CacheIdentity
) -> dict[str, np.ndarray]:
    """The arrays of a cache's part: documents, and for their tokens, end to end, ids, weights and entropy."""
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


def uniforms(seed: int, source: str, numbers: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each of `numbers`, from splitmix64: independent of what is computed together."""
    digest = hashlib.sha256(json.dumps([seed, source]).encode()).digest()
    x = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(int.from_bytes(digest[:8], "big"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
