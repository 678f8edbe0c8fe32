"""Losses over the vocabulary that never hold tokens x vocabulary numbers.

Each takes hidden states [N, D] and the output weight [V, D] and walks over the tokens in chunks, see
training.chunked_logits. Softmax, sums and the weight's gradient are float32 (float64 for float64 input).

These functions are `torch.autograd.Function`s: reverse mode, once. For forward-mode AD (`torch.func.jvp`),
`vmap` and second derivatives use `plain_cross_entropy`, the same loss made of ordinary operations.
Distances to a teacher live in training.distillation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curation.errors import DataError
from training.chunked_logits import Block, Objective, Reduction, chunked_sum, chunked_values

IGNORED = -100


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "sum",
    softcap: float | None = None,
) -> Tensor:
    """Cross-entropy in nats of softmax(hidden @ weight.T) against `labels`, in chunks of tokens.

    hidden [N, D], weight [V, D], labels int64 [N], -100 = ignored
    chunk     : tokens per chunk; None = as many as are fast. Does not change the result.
    z_loss    : adds z_loss * logsumexp(logits)**2 to each token (PaLM, section 5)
    reduction : "sum" over the labelled tokens, their "mean", or "none": a loss per token [N], 0 if ignored
    softcap   : logits are softcap * tanh(logits / softcap) (Gemma 2); None leaves them as they are

    "sum" and "mean" compute the gradients during the forward pass, and keep [N, D] and [V, D] numbers for the
    backward; "none" keeps nothing and computes the logits again. Raises DataError when a label is outside the
    vocabulary, and for "mean" when every label is ignored. A guess among V equals costs log V, here 2 log 8:

    >>> loss = linear_cross_entropy(torch.zeros(3, 2), torch.ones(8, 2), torch.tensor([1, -100, 5]))
    >>> round(loss.item(), 4)
    4.1589
    """
    rows = labelled_rows(labels, weight.shape[0])
    if reduction == "mean" and len(rows) == 0:
        raise no_labels_error()
    objective = softly_capped(_cross_entropy_objective(labels, z_loss), softcap)
    if reduction == "none":
        return chunked_values(hidden, weight, rows, objective, 1, chunk)[:, 0]
    total, _ = chunked_sum(hidden, weight, rows, objective, chunk)
    return total / len(rows) if reduction == "mean" else total


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of its distribution, in nats: (logp [N], entropy [N]).

    Both are of softmax(hidden @ weight.T / temperature), 0 where the label is -100, and both can be
    differentiated; the backward computes the logits again. softcap is linear_cross_entropy's.
    """
    rows = labelled_rows(labels, weight.shape[0])

    def objective(rows: Tensor) -> Block:
        wanted = labels[rows]

        def block(logits: Tensor, part: slice, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
            logp = logits.div_(temperature).log_softmax(-1)
            at = entries_of(wanted[part])
            probability = torch.exp(logp, out=logits)
            entropy = -(probability * logp).sum(-1)
            values = torch.stack((logp[at], entropy), -1)
            if grad is None:
                return values, None
            # d logp_y / d z = onehot - p;  d entropy / d z = -p (log p + entropy)
            slope = probability.mul_(-(grad[:, :1] + grad[:, 1:] * (logp + entropy[:, None])))
            slope[at] += grad[:, 0]
            return values, slope.div_(temperature)

        return block

    values = chunked_values(hidden, weight, rows, softly_capped(objective, softcap), 2, chunk)
    return values[:, 0], values[:, 1]


def plain_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, z_loss: float = 0.0, reduction: Reduction = "sum"
) -> Tensor:
    """`linear_cross_entropy` from ordinary operations, holding all N x V logits.

    Goes through `torch.func` (jvp, vjp, vmap, hessians) and is the oracle of the chunked one. hidden [..., D]
    and labels [...] may have any leading shape. It reads no value of a tensor, so labels are not checked, and
    the "mean" of no labels is 0 / 0.
    """
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = labels != IGNORED
    normaliser = logits.logsumexp(-1)
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    losses = torch.where(valid, normaliser - chosen + z_loss * normaliser.square(), 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / valid.sum() if reduction == "mean" else losses.sum()


def labelled_rows(labels: Tensor, vocabulary: int) -> Tensor:
    """Indices int64 [n] of the labels that are not ignored; DataError if one is outside the vocabulary.

    One look at the labels per call (on a GPU one synchronisation) saves the products of every ignored token,
    and turns an illegal label into a sentence instead of a device-side assertion.
    """
    rows = (labels != IGNORED).nonzero()[:, 0]
    if len(rows):
        low, high = (int(x) for x in labels[rows].aminmax())
        if low < 0 or high >= vocabulary:
            raise DataError(
                f"A label is {low if low < 0 else high}, but the model has {vocabulary} tokens",
                where="loss",
                remedy=f"Use the tokenizer the model was made for; {IGNORED} marks tokens without a label",
            )
    return rows


def no_labels_error() -> DataError:
    """The mean over no token is not a number."""
    return DataError(
        "Every label of this batch is ignored, so there is no mean loss",
        where="loss",
        remedy='Leave the batch out, or use reduction="sum", which gives 0',
    )


def entries_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the entry of each label in logits [n, V]."""
    return torch.arange(len(labels), device=labels.device), labels


def softly_capped(objective: Objective, cap: float | None) -> Objective:
    """The objective of cap * tanh(logits / cap); `objective` itself without a cap."""
    if cap is None:
        return objective

    def capped(rows: Tensor) -> Block:
        inner = objective(rows)

        def block(logits: Tensor, part: slice, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
            bent = torch.tanh(logits / cap)
            values, slope = inner(cap * bent, part, grad)
            return values, None if slope is None else slope * (1 - bent.square())

        return block

    return capped


def _cross_entropy_objective(labels: Tensor, z_loss: float) -> Objective:
    def objective(rows: Tensor) -> Block:
        wanted = labels[rows]

        def block(logits: Tensor, part: slice, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
            at = entries_of(wanted[part])
            chosen = logits[at]
            if grad is None:
                normaliser = logits.logsumexp(-1)
                return (normaliser - chosen + z_loss * normaliser.square())[:, None], None
            slope = logits.softmax(-1)
            normaliser = normaliser_of(logits, chosen, slope[at])
            values = (normaliser - chosen + z_loss * normaliser.square())[:, None]
            # d loss / d z = p (1 + 2 z_loss logsumexp) - onehot
            slope *= grad * (1 + 2 * z_loss * normaliser[:, None])
            slope[at] -= grad[:, 0]
            return values, slope

        return block

    return objective


def normaliser_of(logits: Tensor, chosen: Tensor, probability: Tensor) -> Tensor:
    """logsumexp of `logits` [C, V] to [C], read off one logit and its probability where that is exact enough.

    It saves a CPU a second pass of exponentials. Elsewhere the look at the probabilities would be a wait.
    """
    if logits.device.type == "cpu" and len(chosen) and probability.min() > 1e-30:
        return chosen - probability.log()
    return logits.logsumexp(-1)
