"""One averaged gradient for a group of documents: the exact benefits for any number of directions at 3 F.

Eq. 6 needs of a source only rho = v' g, where g is the token-weighted mean of its documents' gradients. One
forward and backward pass over a sample of documents makes g, and one dot product each gives rho for every probe
and every preconditioner. Documents are taken in small random groups, so that the spread of the groups gives an
interval, and adaptive sampling and the bootstrap work on groups as they do on documents. A group of one document
gives the document's own benefit and the norm of its gradient, which the cosine needs.

Example: gradients (1, 0) with 1 token and (0, 2) with 3 tokens have the mean (.25, 1.5); along v = (2, 2) that
is 3.5, which is also the token-weighted mean of 2 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from curation.errors import DataError
from mixing.influence.adapters import adapt, scoring
from mixing.influence.directions import Direction
from mixing.influence.documents import BatchPlan, Reduction, Tokenized, Windows, check_vocabulary
from mixing.influence.explicit import weighted_gradient
from mixing.influence.scorers import Vectors, check_directions, dot, norm

FORWARDS = 3.0  # a forward and a backward pass


def mean_gradient(
    model: nn.Module,
    documents: Sequence[Tokenized],
    names: Sequence[str],
    *,
    reduction: Reduction = "mean",
    context: int = 1024,
    windows: Windows = "first",
    batch_tokens: int = 4096,
) -> tuple[Vectors, int, int]:
    """sum_x s_x grad L(x) / sum_x s_x over the parameters `names`, the sum of s_x, and the tokens read.

    s_x counts the scored targets of document x and L(x) is their mean or sum, so that the product with a
    direction is the token-weighted mean of the documents' benefits.
    """
    adapter = adapt(model)
    check_vocabulary(documents, adapter.vocabulary)
    plan = BatchPlan(
        documents,
        context=adapter.context(context),
        windows=windows,
        reduction=reduction,
        batch_tokens=batch_tokens,
        device=adapter.device,
    )
    share = torch.as_tensor(plan.counts / max(plan.targets, 1), dtype=torch.float64, device=adapter.device)
    total: Vectors = {}
    with scoring(adapter):
        for batch in plan:
            weights = batch.weights * share[list(batch.documents)]
            loss, part = weighted_gradient(adapter, replace(batch, weights=weights), names)
            if not np.isfinite(loss):
                worst = plan.documents[batch.documents[0]]
                raise DataError(
                    f"The loss of a document near {worst.id!r} is not finite",
                    where=f"source {worst.source}",
                    remedy="Look at the checkpoint: its training may have diverged",
                )
            for name, gradient in part.items():
                total[name] = total[name] + gradient if name in total else gradient
    return total, plan.targets, plan.read_tokens


def averaged_benefits(
    model: nn.Module,
    groups: Iterable[Sequence[Tokenized]],
    directions: Mapping[str, Direction | Vectors],
    *,
    cosine: bool = False,
    reduction: Reduction = "mean",
    context: int = 1024,
    windows: Windows = "first",
    batch_tokens: int = 4096,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Benefit of each group for each direction [groups, k], its targets [groups], and the tokens read in all.

    cosine : divides by the lengths of the group's mean gradient and of the direction, both over the direction's
             parameters; meant for groups of one document
    """
    vectors = [d.vectors if isinstance(d, Direction) else d for d in directions.values()]
    check_directions(vectors)
    names = sorted({name for v in vectors for name in v})
    lengths = [norm(v) for v in vectors]
    values, targets, read = [], [], 0
    for group in groups:
        gradient, count, tokens = mean_gradient(
            model,
            group,
            names,
            reduction=reduction,
            context=context,
            windows=windows,
            batch_tokens=batch_tokens,
        )
        row = [dot(gradient, v) for v in vectors]
        if cosine:
            sizes = [norm({n: g for n, g in gradient.items() if n in v}) for v in vectors]
            row = [b / (s * v) if s > 0 else 0.0 for b, s, v in zip(row, sizes, lengths, strict=True)]
        values.append(row)
        targets.append(count)
        read += tokens
    return np.array(values).reshape(len(values), len(vectors)), np.array(targets, dtype=np.int64), read
