"""How well a model predicts held-out text: nats per document, each token scored exactly once.

The text of a document is scored in rolling windows. A window feeds at most `context` tokens and scores the
tokens that no earlier window has scored: the first window up to `context` of them, every later one up to
`stride`, which then have at least `context - stride` tokens of their own document before them. A document
that fits into one window is scored whole. The first token is predicted from bos; eos is not scored.

Bytes are those of the document's UTF-8 text and know nothing of the tokenizer, so bits per byte compares
models with different tokenizers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from curation.errors import DataError, RecipeError
from curation.progress import progress
from training.losses import linear_cross_entropy
from training.text_encoding import text_encoder

if TYPE_CHECKING:
    from training.model import Decoder

LIKELIHOOD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("nats", pa.float64(), nullable=False),
    ]
)
"""A row a document: `tokens` scored, `bytes` of its text in UTF-8, `nats` = - summed log-probability."""


class _Text(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True)
class TokenizedDocument:
    """A document ready to be scored.

    ids   : int64 [n], bos first, no eos; the n - 1 tokens after bos are scored
    bytes : length of the text in UTF-8 bytes, whatever the tokenizer does to it
    """

    id: str
    source: str
    ids: np.ndarray
    bytes: int


@dataclass(frozen=True)
class Window:
    """One forward pass over `ids[begin:end - 1]` of a document, scoring the tokens `ids[first:end]`."""

    document: int
    begin: int
    first: int
    end: int

    @property
    def inputs(self) -> int:
        return self.end - 1 - self.begin


def tokenize_documents(documents: Sequence[_Text], tokenizer: Any) -> list[TokenizedDocument]:
    """Tokenize texts as `[bos] + tokens`, in the given order; special tokens written in a text stay text.

    tokenizer : a transformers tokenizer with a bos token (else its eos token opens the document)
    Raises DataError when it has neither, or when an id occurs twice (scores are joined by id).
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise DataError(
            "The tokenizer has neither a bos nor an eos token, so the first token of a document "
            "has no context",
            where=str(getattr(tokenizer, "name_or_path", "tokenizer")),
            remedy="Set `bos_token` in its tokenizer_config.json",
        )
    double = [name for name, count in Counter(d.id for d in documents).items() if count > 1]
    if double:
        raise DataError(f"Document {double[0]} is there twice", remedy="Score each document once")
    encoded = text_encoder(tokenizer)([d.text for d in documents]) if documents else []
    return [
        TokenizedDocument(
            id=document.id,
            source=document.source,
            ids=np.asarray([bos, *ids], dtype=np.int64),
            bytes=len(document.text.encode("utf-8")),
        )
        for document, ids in zip(documents, encoded, strict=True)
    ]


def rolling_windows(tokens: int, context: int, stride: int, document: int = 0) -> Iterator[Window]:
    """The windows that score tokens 1 .. `tokens` - 1 of a document once each.

    tokens : length of the document with bos
    Example: 8 tokens, context 4, stride 2 scores 1-4 | 5-6 | 7, and every window after the first feeds 4
    tokens.

    >>> [(w.begin, w.first, w.end) for w in rolling_windows(8, context=4, stride=2)]
    [(0, 1, 5), (2, 5, 7), (3, 7, 8)]
    """
    first, end = 1, min(tokens, context + 1)
    while first < tokens:
        yield Window(document, max(0, end - 1 - context), first, end)
        first, end = end, min(tokens, end + stride)


def score_documents(
    model: Decoder,
    documents: Sequence[TokenizedDocument],
    *,
    context: int,
    stride: int,
    batch_tokens: int = 8192,
    progress_label: str | None = None,
) -> pa.Table:
    """Score documents with a model; one row a document, in the given order (`LIKELIHOOD_SCHEMA`).

    context      : most tokens fed at once (at most the model's `max_positions`)
    stride       : new tokens that each window after the first scores, 1 <= stride <= context
    batch_tokens : most tokens, padding included, in one forward pass

    The result does not depend on batching beyond float32 rounding: a window is padded on the right, where
    causal attention cannot see. Sums over tokens are taken in float64.
    Raises RecipeError on impossible settings, DataError on a token outside the vocabulary or a loss that is
    not finite.
    """
    _check_settings(model, context, stride, batch_tokens)
    windows = [
        window
        for index, document in enumerate(documents)
        for window in rolling_windows(len(document.ids), context, stride, index)
    ]
    windows.sort(key=lambda w: (-w.inputs, w.document, w.begin))
    nats = np.zeros(len(documents), dtype=np.float64)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _maybe_progress(progress_label, len(windows)) as task:
            for batch in _batches(windows, batch_tokens):
                _score_batch(model, documents, batch, nats)
                if task is not None:
                    task.advance(len(batch))
    finally:
        model.train(was_training)
    _check_finite(documents, nats)
    return pa.Table.from_pydict(
        {
            "id": [d.id for d in documents],
            "source": [d.source for d in documents],
            "tokens": [len(d.ids) - 1 for d in documents],
            "bytes": [d.bytes for d in documents],
            "nats": nats,
        },
        schema=LIKELIHOOD_SCHEMA,
    )


def _score_batch(
    model: Decoder, documents: Sequence[TokenizedDocument], batch: list[Window], nats: np.ndarray
) -> None:
    width = batch[0].inputs
    inputs = np.zeros((len(batch), width), dtype=np.int64)
    labels = np.full((len(batch), width), -100, dtype=np.int64)
    for row, window in enumerate(batch):
        ids = documents[window.document].ids
        if ids.min() < 0 or ids.max() >= model.config.vocab_size:
            raise DataError(
                f"Document {documents[window.document].id} holds token {int(ids.max())}, but the model knows "
                f"{model.config.vocab_size}",
                remedy="Score with the tokenizer that the model was trained with",
            )
        inputs[row, : window.inputs] = ids[window.begin : window.end - 1]
        labels[row, window.first - window.begin - 1 : window.inputs] = ids[window.first : window.end]
    device = model.output_weight.device
    hidden = model(torch.from_numpy(inputs).to(device))
    losses = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.output_weight,
        torch.from_numpy(labels).to(device).reshape(-1),
        reduction="none",
    )
    sums = losses.to("cpu", torch.float64).reshape(len(batch), width).sum(dim=1)
    for row, window in enumerate(batch):
        nats[window.document] += float(sums[row])


def _batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length share a batch, so little is padding; the largest batch comes first."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * batch[0].inputs > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


class _maybe_progress:
    def __init__(self, label: str | None, total: int) -> None:
        self._context = progress(label, total, "windows") if label else None

    def __enter__(self) -> Any:
        return self._context.__enter__() if self._context else None

    def __exit__(self, *details: Any) -> None:
        if self._context:
            self._context.__exit__(*details)


def _check_settings(model: Decoder, context: int, stride: int, batch_tokens: int) -> None:
    if context < 1 or context > model.config.max_positions:
        raise RecipeError(
            f"A context of {context} tokens is not possible: the model has "
            f"{model.config.max_positions} positions",
            where="context",
            remedy=f"Choose 1 to {model.config.max_positions}",
        )
    if not 1 <= stride <= context:
        raise RecipeError(
            f"A stride of {stride} tokens does not score each token once with a context of {context}",
            where="stride",
            remedy=f"Choose 1 to {context}",
        )
    if batch_tokens < 1:
        raise RecipeError(
            "A batch needs at least one token", where="batch_tokens", remedy="Choose a positive number"
        )


def _check_finite(documents: Sequence[TokenizedDocument], nats: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(nats))
    if broken.size:
        raise DataError(
            f"The model gives no finite loss on {broken.size} of {len(documents)} documents, such as "
            f"{documents[int(broken[0])].id}",
            remedy=(
                "Its training has probably diverged: lower the learning rate, or take an earlier checkpoint"
            ),
        )
