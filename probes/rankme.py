"""RankMe: in how many directions the vectors of a set really spread (arXiv 2210.02885; MobileLLM-R1, Eq. 9).

    p_k = s_k / sum_i s_i + eps,    RankMe(Z) = exp(-sum_k p_k log p_k)

with s the singular values of Z. It is 1 when all vectors are multiples of one, and their number or their dimension,
whichever is less, when they spread evenly. The paper reports it for output embeddings, whose exact set it does not
name: here it is either the hidden states that the output weight reads, at the tokens of a probe set, or that weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from curation.errors import DataError
from training.model import Decoder

EPSILON = 1e-7


def rankme(vectors: Tensor, epsilon: float = EPSILON) -> float:
    """RankMe of vectors [N, D], in float64; between 1 and min(N, D), up to epsilon.

    Singular values are the roots of the eigenvalues of the smaller Gram matrix, so a large N costs N D^2 once and
    no memory. Those below 1e-8 of the largest are lost in rounding; they weigh nothing. Raises DataError for
    vectors that are all zero or not finite.

    >>> round(rankme(torch.eye(4)), 3), round(rankme(torch.ones(9, 4)), 3)
    (4.0, 1.0)
    """
    if vectors.dim() != 2 or vectors.numel() == 0:
        raise DataError(f"RankMe is of a matrix, not of the shape {list(vectors.shape)}", where="RankMe")
    vectors = vectors.detach().to(torch.float64)
    return rankme_of_gram(
        vectors.T @ vectors if len(vectors) > vectors.shape[1] else vectors @ vectors.T, epsilon
    )


def rankme_of_gram(gram: Tensor, epsilon: float = EPSILON) -> float:
    """RankMe from Z^T Z or Z Z^T, float64 [K, K]; sums of such over parts of Z are Z's own."""
    if not bool(torch.isfinite(gram).all()) or float(gram.diagonal().sum()) == 0.0:
        raise DataError(
            "The vectors are all zero, or not finite, and have no rank",
            where="RankMe",
            remedy="Look at the loss of the step: the model has diverged",
        )
    singular = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    shares = singular / singular.sum() + epsilon
    return float((-(shares * shares.log()).sum()).exp())


@torch.no_grad()
def representation_rankme(
    model: Decoder,
    texts: Sequence[Sequence[int] | np.ndarray],
    *,
    context: int | None = None,
    epsilon: float = EPSILON,
) -> float:
    """RankMe of the final hidden states at every token of `texts`, each text alone and cut after `context`.

    texts : token ids of each, the first token included; DataError when there is none
    """
    device = model.output_weight.device
    dim = model.config.dim
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    limit = min(context or model.config.max_positions, model.config.max_positions)
    for ids in texts:
        if len(ids):
            row = torch.tensor([list(ids[:limit])], dtype=torch.int64, device=device)
            states = model(row)[0].to(torch.float64)
            gram += states.T @ states
    return rankme_of_gram(gram, epsilon)


@torch.no_grad()
def rankme_of_model(
    model: Decoder, probes: Mapping[str, Sequence[Sequence[int] | np.ndarray]], *, context: int | None = None
) -> dict[str, float]:
    """RankMe of the output weight ("embeddings") and of the representations of each probe set, by its name."""
    found = {"embeddings": rankme(model.output_weight)}
    for name, texts in probes.items():
        found[name] = representation_rankme(model, texts, context=context)
    return found
