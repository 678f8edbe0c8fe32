"""Log-probability of continuations: how likely a model finds an answer after its question.

Context and continuation are tokenized together and split at the number of tokens of the context alone; spaces at
the end of the context belong to the continuation. Only tokens of the continuation are scored. This is what
lm-evaluation-harness does, and the values are equal to its own.

A sequence that begins another one of the same call is not run: causal attention gives its values on the way. So
choices of one token cost one pass over their question. What many contexts begin with, such as few-shot examples, is
run once, and a context once for all its continuations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from curation.errors import DataError, RecipeError
from probes.shared_contexts import SharedContext, score_shared
from training.losses import linear_cross_entropy
from training.text_encoding import Encode

if TYPE_CHECKING:
    from training.model import Decoder


SHARED_TOKENS = 32  # contexts from here on are run once for all their continuations
BEGINNING_TOKENS = 64  # beginnings from here on are run once for all contexts
CUTS = 4  # how deep stretches of contexts are cut into stretches with longer beginnings


@dataclass(frozen=True)
class Continuation:
    """Token ids [n] int64 of context and continuation, of which those from `first` on are scored."""

    ids: np.ndarray
    first: int

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.first

    def dropped(self, context: int) -> int:
        """Tokens of the context that the first scored token cannot see, with `context` tokens fed at once."""
        return next(_windows(self, context))[0]


@dataclass(frozen=True)
class _Target:
    """Scored tokens `labels` of the pair `pair`, the first of them predicted at position `at` of a sequence."""

    pair: int
    at: int
    labels: np.ndarray


def encode_pairs(
    encode: Encode, pairs: Sequence[tuple[str, str]], prefix: int, bos: bool
) -> list[Continuation]:
    """Tokenize (context, continuation) pairs.

    prefix : id of the bos token (eos where there is none), before every context if `bos`, else before empty ones
    Raises DataError on an empty continuation.
    """
    moved = []
    for context, continuation in pairs:
        if not continuation:
            raise DataError(
                "A continuation is empty, so there is nothing to score", where=repr(context[-60:])
            )
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    # Choices share their context: each is tokenized once.
    contexts = list(dict.fromkeys(context for context, _ in moved))
    lengths = dict(zip(contexts, map(len, encode(contexts)), strict=True))
    encoded = []
    for (context, _), whole in zip(moved, encode([c + k for c, k in moved]), strict=True):
        # A tokenizer may merge the whole continuation into the context's last token: then that one is scored.
        split = min(lengths[context], len(whole) - 1)
        first = [prefix] if bos or split <= 0 else []
        encoded.append(Continuation(np.asarray([*first, *whole], dtype=np.int64), len(first) + max(split, 0)))
    return encoded


def score_continuations(
    model: Decoder,
    pairs: Sequence[Continuation],
    *,
    context: int,
    batch_tokens: int = 8192,
) -> np.ndarray:
    """Nats float64 [pairs]: minus the summed log-probability of each continuation.

    context      : most tokens fed at once. A longer sequence loses tokens on the left of its context; a
                   continuation that is itself longer is scored in rolling windows, each token once
    batch_tokens : most tokens, padding included, in one forward pass

    Raises DataError on a token that the model does not know and on log-probabilities that are not numbers.
    """
    if not 1 <= context <= model.config.max_positions:
        raise RecipeError(
            f"A context of {context} tokens is not possible: the model has {model.config.max_positions} positions",
            where="context",
        )
    for pair in pairs:
        if pair.ids.min() < 0 or pair.ids.max() >= model.config.vocab_size:
            raise DataError(
                f"A text holds token {int(pair.ids.max())}, but the model knows {model.config.vocab_size}",
                remedy="Score with the tokenizer that the model was trained with",
            )
    nats = np.zeros(len(pairs))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            beginnings, rest = _beginnings(pairs, context)
            for length, members in beginnings:
                groups = _grouped(pairs, members)
                score_shared(model, groups, batch_tokens, nats, pairs[members[0]].ids[:length])
            shared, alone = _shared(pairs, rest, context)
            score_shared(model, shared, batch_tokens, nats)
            for batch in _batches(_sequences(pairs, alone, context), batch_tokens):
                _score_batch(model, batch, nats)
    finally:
        model.train(was_training)
    broken = np.flatnonzero(~np.isfinite(nats))
    if broken.size:
        raise DataError(
            f"The model gives no finite log-probability to {broken.size} of {len(pairs)} continuations",
            remedy="Its training has probably diverged: take an earlier checkpoint",
        )
    return nats


def _windows(pair: Continuation, context: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): feed ids[begin:end - 1], score ids[first:end]."""
    step = context if pair.tokens <= context else max(1, context // 2)
    for first in range(pair.first, len(pair.ids), step):
        end = min(first + step, len(pair.ids))
        yield max(0, end - 1 - context), first, end


def _beginnings(pairs: Sequence[Continuation], context: int) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """(length, pairs) of beginnings that contexts share, worth a run of their own; and the pairs of none.

    A beginning is at least as long as what follows it on average: else the copies of its keys and values, and attention
    without the fused layer, cost more than they save.
    """
    order = sorted(
        (i for i, pair in enumerate(pairs) if len(pair.ids) - 1 <= context and pair.first > BEGINNING_TOKENS),
        key=lambda i: pairs[i].ids[: pairs[i].first].astype(">u4").tobytes(),
    )
    # Equal contexts are no reason: `_shared` runs those once as well.
    common = [_common(pairs[a], pairs[b]) for a, b in itertools.pairwise(order)]
    found: list[tuple[int, list[int]]] = []
    taken: set[int] = set()
    for first, last in _runs(common):
        members = order[first : last + 1]
        # The last token of a context is run with the rest, so that there is a state to score from.
        length = min(min(common[first:last]), min(pairs[i].first for i in members) - 1)
        contexts = {pairs[i].ids[: pairs[i].first].tobytes() for i in members}
        after = sum(len(pairs[i].ids) - length for i in members) / len(members)
        if len(contexts) > 1 and length >= max(BEGINNING_TOKENS, after):
            found.append((length, members))
            taken.update(members)
    return found, [i for i in range(len(pairs)) if i not in taken]


def _common(a: Continuation, b: Continuation) -> int:
    """Tokens that two contexts have in common at their beginning."""
    size = min(a.first, b.first)
    differs = np.flatnonzero(a.ids[:size] != b.ids[:size])
    return int(differs[0]) if differs.size else size


def _runs(common: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) stretches of neighbours that share a beginning, cut where that saves more tokens.

    `common[i]` is what sorted contexts i and i + 1 share. A stretch of n saves (n - 1) times its least; it is
    cut at the least where the parts save more.

    >>> _runs([100, 100, 5, 90]), _runs([100, 99, 98]), _runs([10, 900, 900, 10, 900])
    ([(0, 2), (3, 4)], [(0, 3)], [(1, 3), (4, 5)])
    """

    def best(first: int, last: int, depth: int) -> tuple[int, list[tuple[int, int]]]:
        if first >= last:
            return 0, []
        least = min(common[first:last])
        whole = (last - first) * least if least >= BEGINNING_TOKENS else 0
        if depth == 0:
            return whole, [(first, last)] if whole else []
        cuts = [at for at in range(first, last) if common[at] == least]
        parts = [
            best(a, b, depth - 1)
            for a, b in zip([first, *(at + 1 for at in cuts)], [*cuts, last], strict=True)
        ]
        saved = sum(part[0] for part in parts)
        if saved > whole:
            return saved, [stretch for part in parts for stretch in part[1]]
        return whole, [(first, last)] if whole else []

    return best(0, len(common), CUTS)[1]


def _grouped(pairs: Sequence[Continuation], members: Sequence[int]) -> list[SharedContext]:
    """The members by their contexts."""
    groups: dict[bytes, list[int]] = {}
    for index in members:
        groups.setdefault(pairs[index].ids[: pairs[index].first].tobytes(), []).append(index)
    return [
        SharedContext(
            pairs[of[0]].ids[: pairs[of[0]].first],
            tuple(pairs[i].ids[pairs[i].first :] for i in of),
            tuple(of),
        )
        for of in groups.values()
    ]


def _shared(
    pairs: Sequence[Continuation], chosen: Sequence[int], context: int
) -> tuple[list[SharedContext], list[int]]:
    """Contexts long enough, and with continuations long enough, to be run once for all; the other pairs."""
    groups: dict[bytes, list[int]] = {}
    for index in chosen:
        pair = pairs[index]
        if len(pair.ids) - 1 <= context:
            groups.setdefault(pair.ids[: pair.first].tobytes(), []).append(index)
    shared, taken = [], set()
    for members in groups.values():
        before = pairs[members[0]].first
        # Continuations of one token cost nothing but their context anyway.
        fed = [pairs[i].tokens - 1 for i in members if pairs[i].tokens > 1]
        if len(fed) > 1 and before >= SHARED_TOKENS and before >= max(fed):
            shared += _grouped(pairs, members)
            taken.update(members)
    return shared, [i for i in chosen if i not in taken]


def _sequences(
    pairs: Sequence[Continuation], chosen: Sequence[int], context: int
) -> list[tuple[np.ndarray, list[_Target]]]:
    """Sequences to be fed, longest first, none of which begins another, with what is scored along each."""
    wanted: list[tuple[bytes, _Target]] = []
    for index in chosen:
        pair = pairs[index]
        for begin, first, end in _windows(pair, context):
            # Big-endian bytes sort as the ids do, and a prefix of ids is a prefix of bytes.
            key = pair.ids[begin : end - 1].astype(">u4").tobytes()
            wanted.append((key, _Target(index, first - begin - 1, pair.ids[first:end])))
    wanted.sort(key=lambda entry: entry[0])
    found: list[tuple[bytes, list[_Target]]] = []
    for key, target in reversed(wanted):
        # In sorted order whatever begins with `key` follows it directly.
        if found and found[-1][0].startswith(key):
            found[-1][1].append(target)
        else:
            found.append((key, [target]))
    sequences = [(np.frombuffer(key, dtype=">u4").astype(np.int64), targets) for key, targets in found]
    sequences.sort(key=lambda entry: (-len(entry[0]), entry[1][0].pair))
    return sequences


def _batches(
    sequences: list[tuple[np.ndarray, list[_Target]]], batch_tokens: int
) -> Iterator[list[tuple[np.ndarray, list[_Target]]]]:
    batch: list[tuple[np.ndarray, list[_Target]]] = []
    for sequence in sequences:
        if batch and (len(batch) + 1) * len(batch[0][0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def _score_batch(model: Decoder, batch: list[tuple[np.ndarray, list[_Target]]], nats: np.ndarray) -> None:
    width = len(batch[0][0])
    inputs = np.zeros((len(batch), width), dtype=np.int64)
    rows, labels, owners = [], [], []
    for row, (ids, targets) in enumerate(batch):
        inputs[row, : len(ids)] = ids
        for target in targets:
            rows.append(row * width + target.at + np.arange(len(target.labels)))
            labels.append(target.labels)
            owners.append(np.full(len(target.labels), target.pair))
    device = model.output_weight.device
    hidden = model(torch.from_numpy(inputs).to(device))
    chosen = hidden.reshape(-1, hidden.shape[-1])[torch.from_numpy(np.concatenate(rows)).to(device)]
    losses = linear_cross_entropy(
        chosen, model.output_weight, torch.from_numpy(np.concatenate(labels)).to(device), reduction="none"
    )
    np.add.at(nats, np.concatenate(owners), losses.to("cpu", torch.float64).numpy())
