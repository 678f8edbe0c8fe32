"""Losses over the vocabulary that never hold tokens x vocabulary numbers.

Each takes hidden states [N, D] and the output weight [V, D] and walks over the tokens in chunks: the logits
of one chunk are made, reduced and (where a gradient is wanted) turned into their gradient in place, then
dropped. Softmax, sums and the weight's gradient are float32 (float64 for float64 input); under
`torch.autocast` the matrix products are in autocast's precision.

These functions are `torch.autograd.Function`s: reverse mode, once. For forward-mode AD (`torch.func.jvp`),
`vmap` and second derivatives use `plain_cross_entropy`, the same loss made of ordinary operations.
Distances to a teacher live in training.distillation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from curation.errors import DataError

IGNORED = -100
# Logits of one chunk when `chunk` is not given. On a CPU a chunk should stay near its core: of 2048 tokens of
# width 128 and a vocabulary of 4096, forward and backward in bfloat16 took 50 ms of one Zen 5 thread in chunks
# of 128 tokens, 58 of 256 and 76 of 512. An accelerator wants large products: 2**26 is 256 MiB in float32
# (chosen, not measured).
CHUNK_LOGITS_CPU, CHUNK_LOGITS = 1 << 19, 1 << 26

Reduction = Literal["sum", "mean", "none"]
# An objective sees the float32 logits [C, V] of the tokens `rows`, which it may overwrite, and returns their
# values [C, K] and, given the gradient of those values [C, K], the gradient of the logits [C, V].
Objective = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Cross-entropy in nats of softmax(hidden @ weight.T) against `labels`, in chunks of tokens.

    hidden [N, D], weight [V, D], labels int64 [N], -100 = ignored
    chunk     : tokens per chunk; by default as many as fill CHUNK_LOGITS. Does not change the result.
    z_loss    : adds z_loss * logsumexp(logits)**2 to each token (PaLM, section 5)
    reduction : "sum" over the labelled tokens, their "mean", or "none": a loss per token [N], 0 if ignored

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
    objective = _cross_entropy_objective(labels, z_loss)
    if reduction == "none":
        return chunked_values(hidden, weight, rows, objective, 1, chunk)[:, 0]
    total = chunked_sum(hidden, weight, rows, objective, chunk)
    return total / len(rows) if reduction == "mean" else total


def linear_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of its distribution, in nats: (logp [N], entropy [N]).

    Both are of softmax(hidden @ weight.T / temperature), 0 where the label is -100, and both can be
    differentiated; the backward computes the logits again.
    """
    rows = labelled_rows(labels, weight.shape[0])

    def objective(logits: Tensor, rows: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
        logp = logits.div_(temperature).log_softmax(-1)
        at = (torch.arange(len(rows), device=rows.device), labels[rows])
        probability = torch.exp(logp, out=logits)
        entropy = -(probability * logp).sum(-1)
        values = torch.stack((logp[at], entropy), -1)
        if grad is None:
            return values, None
        # d logp_y / d z = onehot - p;  d entropy / d z = -p (log p + entropy)
        slope = probability.mul_(-(grad[:, :1] + grad[:, 1:] * (logp + entropy[:, None])))
        slope[at] += grad[:, 0]
        return values, slope.div_(temperature)

    values = chunked_values(hidden, weight, rows, objective, 2, chunk)
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


def chunk_tokens(chunk: int | None, weight: Tensor) -> int:
    """Tokens per chunk: as asked, or so many that a chunk has CHUNK_LOGITS logits, at least 128."""
    logits = CHUNK_LOGITS_CPU if weight.device.type == "cpu" else CHUNK_LOGITS
    return max(chunk, 1) if chunk else max(logits // weight.shape[0], 128)


def chunked_values(
    hidden: Tensor, weight: Tensor, rows: Tensor, objective: Objective, columns: int, chunk: int | None
) -> Tensor:
    """Values [N, columns] of `objective` at `rows`, 0 elsewhere; differentiable in `hidden` and `weight`."""
    return _ChunkedValues.apply(hidden, weight, rows, objective, columns, chunk_tokens(chunk, weight))


def chunked_sum(
    hidden: Tensor, weight: Tensor, rows: Tensor, objective: Objective, chunk: int | None
) -> Tensor:
    """Sum of `objective` over `rows`; its gradients are computed on the way, so the backward is free."""
    return _ChunkedSum.apply(hidden, weight, rows, objective, chunk_tokens(chunk, weight))


def _cross_entropy_objective(labels: Tensor, z_loss: float) -> Objective:
    def objective(logits: Tensor, rows: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
        at = (torch.arange(len(rows), device=rows.device), labels[rows])
        chosen = logits[at]
        if grad is None:
            normaliser = logits.logsumexp(-1)
            return (normaliser - chosen + z_loss * normaliser.square())[:, None], None
        slope = logits.softmax(-1)
        normaliser = _normaliser(logits, chosen, slope[at])
        values = (normaliser - chosen + z_loss * normaliser.square())[:, None]
        # d loss / d z = p (1 + 2 z_loss logsumexp) - onehot
        slope *= grad * (1 + 2 * z_loss * normaliser[:, None])
        slope[at] -= grad[:, 0]
        return values, slope

    return objective


def _normaliser(logits: Tensor, chosen: Tensor, probability: Tensor) -> Tensor:
    """logsumexp of `logits` [C, V] to [C], read off one logit and its probability where that is exact enough.

    It saves a CPU a second pass of exponentials. Elsewhere the look at the probabilities would be a wait.
    """
    if logits.device.type == "cpu" and len(chosen) and probability.min() > 1e-30:
        return chosen - probability.log()
    return logits.logsumexp(-1)


def wide_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden @ weight.T, multiplied in the arguments' precision and returned as float32 or more."""
    logits = hidden @ weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Precision of the matrix products: autocast's where it is on, else that of `hidden`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _Walk:
    """One pass over the labelled tokens in chunks, gathering values and, if asked, both gradients."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor,
        objective: Objective,
        chunk: int,
        dtype: torch.dtype,
    ) -> None:
        self.hidden, self.weight = hidden, weight
        self.rows, self.objective, self.chunk = rows, objective, chunk
        self.narrow_weight = weight.to(dtype)
        self.dtype, self.wide = dtype, torch.promote_types(dtype, torch.float32)

    def values(self, columns: int) -> Tensor:
        """Values [N, columns] of the objective, 0 outside `rows`."""
        values = self.hidden.new_zeros(len(self.hidden), columns, dtype=self.wide)
        for rows in self.rows.split(self.chunk):
            logits = wide_logits(self.hidden[rows].to(self.dtype), self.narrow_weight)
            values[rows] = self.objective(logits, rows, None)[0]
        return values

    def gradients(
        self, grad: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sum of the values, and d / d hidden, d / d weight for the values' gradient `grad` [N or 1, K]."""
        total = self.hidden.new_zeros((), dtype=self.wide)
        grad_hidden = torch.zeros_like(self.hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(self.weight, dtype=self.wide) if wanted[1] else None
        for rows in self.rows.split(self.chunk):
            states = self.hidden[rows].to(self.dtype)
            scale = grad[rows] if len(grad) > 1 else grad.expand(len(rows), -1)
            values, slope = self.objective(wide_logits(states, self.narrow_weight), rows, scale)
            total += values.sum()
            assert slope is not None
            slope = slope.to(self.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (slope @ self.narrow_weight).to(grad_hidden.dtype)
            if grad_weight is not None and self.dtype == self.wide:
                grad_weight.addmm_(slope.T, states)
            elif grad_weight is not None:
                grad_weight += slope.T @ states
        return total, grad_hidden, grad_weight


class _ChunkedSum(torch.autograd.Function):
    """Sum of an objective's values, its gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, rows: Tensor, objective: Objective, chunk: int
    ) -> Tensor:
        walk = _Walk(hidden, weight, rows, objective, chunk, product_dtype(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            wanted = ctx.needs_input_grad[:2]
            if not any(wanted):
                return walk.values(1).sum()
            one = torch.ones(1, 1, dtype=walk.wide, device=hidden.device)
            total, grad_hidden, grad_weight = walk.gradients(one, wanted)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else (grad_hidden * grad).to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


class _ChunkedValues(torch.autograd.Function):
    """An objective's value per token; the backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, rows: Tensor, objective: Objective, columns: int, chunk: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, rows)
        ctx.objective, ctx.chunk, ctx.product_dtype = objective, chunk, product_dtype(hidden)
        walk = _Walk(hidden, weight, rows, objective, chunk, ctx.product_dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return walk.values(columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, rows = ctx.saved_tensors
        # The backward may run outside autocast; it multiplies in the precision of the forward.
        walk = _Walk(hidden, weight, rows, ctx.objective, ctx.chunk, ctx.product_dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            _, grad_hidden, grad_weight = walk.gradients(grad, ctx.needs_input_grad[:2])
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None
