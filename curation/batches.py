"""Batches for models that read text: heads of documents, grouped by length, computed with one thread.

Texts are sorted by length so that little is padding. A score then depends on its batch only through the order
of float32 sums: about 1e-6 of the score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from curation.errors import DataError

# No tokenizer in use averages more characters than this per token on real text; the rest of a long document
# is beyond the truncation anyway, and tokenising it would cost more than the model does.
HEAD_CHARACTERS_PER_TOKEN = 16


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread inside the block: other numbers of threads give other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers while it loads or saves a model; OSError for a damaged file of weights, as for
    other files that cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"the weights are damaged or cut short: {str(error).splitlines()[0]}") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def check_vocabulary(tokenizer: Any, folder: str) -> None:
    """DataError for a tokenizer that knows no words: transformers makes one where a folder has no tokenizer."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise DataError(
            "The tokenizer has no vocabulary, so every text would look the same to the model",
            where=folder,
            remedy="Put the model's tokenizer (tokenizer.json) into its folder",
        )


def check_weights(missing: Collection[str], folder: str, kind: str, remedy: str) -> None:
    """DataError when a folder lacks weights of its model, of this `kind`: transformers makes them up, at random."""
    if missing:
        raise DataError(
            f"The {kind}'s folder lacks {len(missing)} of its weights, such as `{min(missing)}`",
            where=folder,
            remedy=remedy,
        )


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped so that the longest times the count stays within `batch_tokens` (a single one may
    exceed it).

    >>> length_sorted_batches([5, 1, 2, 9], 8)
    [[1, 2], [0], [3]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def head_tokens(tokenizer: Any, texts: Sequence[str], max_tokens: int, *, special: bool) -> list[list[int]]:
    """Token ids of each text cut to `max_tokens`, as `tokenizer(text, truncation=True)` would give them.

    Only a head of the text is tokenised; should it fall short of `max_tokens`, all of it is.
    """
    characters = max_tokens * HEAD_CHARACTERS_PER_TOKEN
    options: dict[str, Any] = {"add_special_tokens": special, "verbose": False}
    if special:  # the tokenizer must make room for its own tokens; otherwise a slice is the plainest cut
        options |= {"truncation": True, "max_length": max_tokens}
    heads = tokenizer([text[:characters] for text in texts], **options)["input_ids"]
    short = [i for i, text in enumerate(texts) if len(text) > characters and len(heads[i]) < max_tokens]
    if short:
        for index, ids in zip(
            short, tokenizer([texts[i] for i in short], **options)["input_ids"], strict=True
        ):
            heads[index] = ids
    return [list(ids[:max_tokens]) for ids in heads]


def padded(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [rows, longest], padded at `side` ("left" or "right")."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    return ids, mask
