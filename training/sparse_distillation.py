"""Distillation from a few entries of the teacher's distribution at each token, so that it can be cached.

Keeping the k likeliest tokens and forgetting the rest teaches a wrong distribution. Two ways are exact:

    sampled      k entries drawn so that the expected weight of every token is its probability. Then the
                 expected gradient of the forward KL is the full one (Sparse Logit Sampling, arXiv 2503.16870).
    top_k        k - 1 likeliest tokens and one bucket for all others: the forward KL between the coarser
                 distributions, in which the student's mass outside is matched to the teacher's.

The paper draws with replacement ("multinomial" here). "sampled" spends the entries better, by fixed-size
sampling with probability proportional to size: tokens of probability p >= c enter with their own p, the others
with probability p / c and weight c, where c makes that k entries (Madow's systematic sampling, 1949). The
weights sum to 1 exactly, no token is drawn twice, and each entry's variance is the least for its inclusion
probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.chunked_logits import Block, Objective, chunked_sum
from training.distillation import DistilledLoss
from training.losses import entries_of, labelled_rows, normaliser_of

Entries = Literal["sampled", "multinomial", "top_k"]


@dataclass(frozen=True)
class SparseTargets:
    """What a teacher says at N tokens, in K entries each.

    ids      : int64 [N, K]; in `top_k` the last one is the size of the vocabulary and means all other tokens
    weights  : float [N, K], summing to 1; an unused entry weighs 0
    entropy  : float [N], of the teacher's whole distribution in nats: turns a cross-entropy into a divergence
    """

    kind: Entries
    ids: Tensor
    weights: Tensor
    entropy: Tensor


def sampled_entries(probabilities: Tensor, entries: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Ids int64 and weights [N, entries] of fixed-size samples of `probabilities` [N, V].

    uniform : [N] in [0, 1), one number for each row, from which the whole sample follows

    E[weight of v] = probabilities[:, v]. Where entries >= V the sample is the distribution. Of (.9, .05, .05)
    two entries are the first with .9, and one of the others with .1:

    >>> ids, weights = sampled_entries(torch.tensor([[0.9, 0.05, 0.05]]), 2, torch.tensor([0.7]))
    >>> ids.tolist(), [round(w, 6) for w in weights[0].tolist()]
    ([[0, 2]], [0.9, 0.1])
    """
    probabilities = probabilities.double()
    vocabulary = probabilities.shape[1]
    if entries >= vocabulary:
        return _all_entries(probabilities, entries)
    largest, ids = probabilities.topk(entries, -1)
    # With the L likeliest kept as they are, `rest` is left for entries - L; the first L that fits is taken.
    rest = (1 - largest.cumsum(-1) + largest).clamp_(min=0)
    left = entries - torch.arange(entries, device=ids.device)
    kept = (largest * left > rest).to(torch.int64).cumprod(-1)
    kept[:, -1] = 0  # one entry for the rest is always a draw
    count = kept.sum(-1)
    share = rest.gather(1, count[:, None]) / left[count][:, None]
    pool = probabilities.scatter(1, ids, torch.where(kept.bool(), 0.0, largest)).cumsum(-1)
    total = pool[:, -1:].contiguous()
    turn = torch.arange(entries, device=ids.device) - count[:, None]
    point = (uniform.double()[:, None] + turn) / left[count][:, None] * total
    drawn = torch.searchsorted(pool, point.clamp_(min=0), right=True)
    # Rounding may put the last point onto the total: the last token with any probability takes it.
    last = torch.searchsorted(pool, total)
    drawn = torch.minimum(drawn, last)
    return torch.where(kept.bool(), ids, drawn), torch.where(kept.bool(), largest, share)


def multinomial_entries(probabilities: Tensor, entries: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's sampling: `entries` draws with replacement, each of weight 1 / entries; ids may repeat.

    uniform : [N, entries] in [0, 1)
    """
    cumulated = probabilities.double().cumsum(-1)
    total = cumulated[:, -1:].contiguous()
    ids = torch.searchsorted(cumulated, uniform.double() * total, right=True)
    ids = torch.minimum(ids, torch.searchsorted(cumulated, total))
    return ids, torch.full(ids.shape, 1 / entries, dtype=torch.float64, device=ids.device)


def top_k_entries(probabilities: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """The entries - 1 likeliest tokens, and last the probability of all others under the id V."""
    vocabulary = probabilities.shape[1]
    weights, ids = probabilities.double().topk(min(entries - 1, vocabulary), -1)
    tail = (1 - weights.sum(-1, keepdim=True)).clamp_(min=0)
    return torch.cat((ids, torch.full_like(tail, vocabulary, dtype=torch.int64)), 1), torch.cat(
        (weights, tail), 1
    )


def linear_sparse_distillation(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    targets: SparseTargets,
    *,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> DistilledLoss:
    """`linear_distillation` by the forward KL from `targets`, made at the same temperature.

    Sampled targets give an unbiased estimate of the divergence and of its gradient; the estimate of a
    single token may be negative. The cost over the cross-entropy alone is that of K entries of each row.
    """
    rows = labelled_rows(labels, weight.shape[0])
    make = _bucket_objective if targets.kind == "top_k" else _sampled_objective
    objective = make(labels, targets, alpha, beta * temperature**2, temperature, z_loss)
    total, parts = chunked_sum(hidden, weight, rows, objective, chunk, columns=3)
    return DistilledLoss(total, parts[1], parts[2])


def _sampled_objective(
    labels: Tensor, targets: SparseTargets, alpha: float, beta: float, temperature: float, z_loss: float
) -> Objective:
    def objective(rows: Tensor) -> Block:
        wanted, ids, entropy = labels[rows], targets.ids[rows], targets.entropy[rows]
        shares = targets.weights[rows]

        def block(logits: Tensor, part: slice, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
            at, said, share = entries_of(wanted[part]), ids[part], shares[part].to(logits.dtype)
            chosen = logits[at]
            slope = logits.softmax(-1)
            normaliser = normaliser_of(logits, chosen, slope[at])
            pull = alpha * (1 + 2 * z_loss * normaliser)
            cooled = normaliser
            if temperature != 1:
                slope *= pull[:, None]
                logits.div_(temperature)
                soft = logits.softmax(-1)
                cooled = normaliser_of(logits, chosen / temperature, soft[at])
                slope.add_(soft, alpha=beta / temperature)
            else:
                slope *= (pull + beta)[:, None]
            divergence = cooled - (share * logits.gather(1, said)).sum(-1) - entropy[part].to(logits.dtype)
            values = _columns(normaliser - chosen, divergence, normaliser, alpha, beta, z_loss)
            if grad is None:
                return values, None
            slope.scatter_add_(1, said, share * (-beta / temperature))
            slope[at] -= alpha
            return values, slope.mul_(grad[:, :1])

        return block

    return objective


def _bucket_objective(
    labels: Tensor, targets: SparseTargets, alpha: float, beta: float, temperature: float, z_loss: float
) -> Objective:
    def objective(rows: Tensor) -> Block:
        wanted, ids, shares = labels[rows], targets.ids[rows][:, :-1], targets.weights[rows]

        def block(logits: Tensor, part: slice, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
            at, said, share = entries_of(wanted[part]), ids[part], shares[part].to(logits.dtype)
            chosen, normaliser = logits[at], logits.logsumexp(-1)
            hard = logits.softmax(-1) if alpha > 0 and grad is not None else None
            soft = (logits.div_(temperature) if temperature != 1 else logits).log_softmax(-1)
            inside = soft.gather(1, said)
            # The student's mass outside the listed tokens is summed, not 1 minus the others: it may be tiny.
            slope = soft.exp_().scatter_(1, said, 0.0)
            outside = slope.sum(-1).clamp_(min=torch.finfo(slope.dtype).tiny)
            known, tail = share[:, :-1], share[:, -1]
            divergence = (torch.xlogy(known, known) - known * inside).sum(-1)
            divergence += torch.xlogy(tail, tail) - tail * outside.log()
            values = _columns(normaliser - chosen, divergence, normaliser, alpha, beta, z_loss)
            if grad is None:
                return values, None
            # d / d z: s - t for the listed tokens; s (1 - tail / outside) for each of the others
            slope *= (1 - tail / outside)[:, None] * (beta / temperature)
            slope.scatter_(1, said, (inside.exp() - known) * (beta / temperature))
            if hard is not None:
                slope.addcmul_(hard, alpha * (1 + 2 * z_loss * normaliser[:, None]))
                slope[at] -= alpha
            return values, slope.mul_(grad[:, :1])

        return block

    return objective


def _columns(
    hard: Tensor, soft: Tensor, normaliser: Tensor, alpha: float, beta: float, z_loss: float
) -> Tensor:
    return torch.stack((alpha * (hard + z_loss * normaliser.square()) + beta * soft, hard, soft), -1)


def _all_entries(probabilities: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """Every token with its probability, and unused entries of weight 0."""
    rows, vocabulary = probabilities.shape
    ids = torch.arange(entries, device=probabilities.device).clamp_(max=vocabulary - 1).expand(rows, -1)
    return ids, torch.nn.functional.pad(probabilities, (0, entries - vocabulary))
