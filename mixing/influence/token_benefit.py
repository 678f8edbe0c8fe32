"""Which tokens of a document help or hurt a probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mixing.influence.adapters import LossAdapter, adapt, scoring
from mixing.influence.directions import Direction
from mixing.influence.documents import BatchPlan, Reduction, RowBatch, Tokenized, Windows, check_vocabulary
from mixing.influence.forward_mode import ForwardMode
from mixing.influence.scorers import Vectors, check_directions, dot
from mixing.influence.texts import Text, as_documents


def token_benefit(
    model: nn.Module,
    document: Tokenized | Text,
    directions: Mapping[str, Direction | Vectors],
    *,
    reduction: Reduction = "mean",
    context: int = 1024,
    windows: Windows = "first",
    tokenizer: Any = None,
) -> np.ndarray:
    """Benefit of each token of `document` for each direction, float64 [tokens of the document, k].

    Row t is the derivative, along the direction, of the loss of predicting token t from what stands before it, times
    the weight that this loss has in the document's (1 / targets for the "mean", 1 for the "sum"). So the rows add up
    to the document's benefit exactly, and a row answers a question that a reader has: would learning to predict this
    token help the probe? The other division, of the gradient by the position at which weights are used (which the
    ghost products give), adds up as well, but credits a position for the losses of all tokens after it.

    Row 0 is 0: the first token is read and never predicted; so are tokens that `windows` leaves out. By
    forward-mode differentiation, or, for a model with an operation that has no forward derivative, one backward
    pass for each token.
    """
    adapter = adapt(model)
    context = adapter.context(context)
    given = as_documents([document], tokenizer, adapter.vocabulary, with_end=True, what="document")[0]
    check_vocabulary([given], adapter.vocabulary)
    vectors = [d.vectors if isinstance(d, Direction) else d for d in directions.values()]
    check_directions(vectors)
    plan = BatchPlan(
        [given], context=context, windows=windows, reduction=reduction, batch_tokens=1, device=adapter.device
    )
    found = np.zeros((len(given.ids), len(vectors)))
    with scoring(adapter):
        for batch, start in plan.with_starts():
            values = _derivatives(adapter, batch, vectors) * float(batch.weights[0])
            found[start + 1 : start + 1 + len(values)] = values
    return found


def _derivatives(adapter: LossAdapter, batch: RowBatch, vectors: list[Vectors]) -> np.ndarray:
    """Derivative of each target's loss in a batch of one row, [T, k]."""
    try:
        forward = ForwardMode(adapter, vectors)
        parts = [forward.token_derivatives(batch, k)[0].double() for k in range(len(vectors))]
        return torch.stack(parts, -1).cpu().numpy()
    except (NotImplementedError, RuntimeError):
        return _one_by_one(adapter, batch, vectors)


def _one_by_one(adapter: LossAdapter, batch: RowBatch, vectors: list[Vectors]) -> np.ndarray:
    names = sorted({n for v in vectors for n in v})
    own = adapter.named()
    wanted = [own[n].requires_grad_(True) for n in names]
    found = np.zeros((batch.input_ids.shape[1], len(vectors)))
    with torch.enable_grad():
        losses = adapter(batch)[0]
        for at in range(len(losses)):
            parts = torch.autograd.grad(losses[at], wanted, retain_graph=True, allow_unused=True)
            gradient = {n: g for n, g in zip(names, parts, strict=True) if g is not None}
            found[at] = [dot(gradient, v) for v in vectors]
    for parameter in wanted:
        parameter.requires_grad_(False)  # as within `scoring`, which gives back what was before it
    return found
