"""Distances from a student's token distribution to a teacher's, over the vocabulary in chunks.

With s the student's and t the teacher's softmax at a common temperature, per token and in nats:

    forward KL      KL(t || s): the student must cover what the teacher says (MobileLLM-R1, section 3.2)
    reverse KL      KL(s || t): the student must not say what the teacher would not
    Jensen-Shannon  b KL(t || m) + (1 - b) KL(s || m), m = b t + (1 - b) s  (GKD, arXiv 2306.13649)

The teacher is given by its hidden states and output weight, so that its logits too exist one chunk at a time;
it gets no gradient. Nothing is multiplied by the squared temperature: do so outside to keep gradients' size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from curation.errors import DataError
from training.losses import (
    IGNORED,
    Objective,
    Reduction,
    chunk_tokens,
    chunked_sum,
    chunked_values,
    no_labels_error,
    product_dtype,
    wide_logits,
)

# From log s and log t, both [C, V]: the distance of each token [C] and g = s * d distance / d s [C, V], with
# which d distance / d student logits = g - s * sum(g).
Distance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def linear_forward_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """KL(teacher || student) in nats, of softmax(hidden @ weight.T / temperature) from the teacher's.

    hidden [N, D], weight [V, D], teacher_hidden [N, E], teacher_weight [V, E]
    labels    : int64 [N]; only where a label is -100 matters: those tokens do not count
    chunk     : tokens per chunk; does not change the result
    reduction : "sum", "mean" over the counted tokens, or "none": [N], 0 where ignored

    Raises DataError for vocabularies of different sizes, and for the mean over no token.
    """

    def distance(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        probability = teacher.exp()
        return (probability * (teacher - student)).sum(-1), -probability  # so the gradient is s - t

    return _distance(
        hidden, weight, teacher_hidden, teacher_weight, labels, distance, temperature, chunk, reduction
    )


def linear_reverse_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """KL(student || teacher) in nats; arguments as for `linear_forward_kl`."""

    def distance(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        terms = student.exp() * (student - teacher)
        return terms.sum(-1), terms

    return _distance(
        hidden, weight, teacher_hidden, teacher_weight, labels, distance, temperature, chunk, reduction
    )


def linear_jensen_shannon(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk: int | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Generalised Jensen-Shannon divergence in nats, at most log 2; 0 < `beta` < 1 is the teacher's share.

    Other arguments as for `linear_forward_kl`. For beta -> 0, divided by beta, it is the forward KL; for
    beta -> 1, divided by 1 - beta, the reverse.
    """
    if not 0 < beta < 1:
        raise DataError(
            f"The Jensen-Shannon weight is {beta}",
            where="beta",
            remedy="Choose one between 0 and 1, or use the forward or reverse KL",
        )
    log_teacher, log_student = math.log(beta), math.log1p(-beta)

    def distance(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        middle = torch.logaddexp(teacher + log_teacher, student + log_student)
        from_teacher = beta * (teacher.exp() * (teacher - middle)).sum(-1)
        terms = (1 - beta) * student.exp() * (student - middle)
        return from_teacher + terms.sum(-1), terms

    return _distance(
        hidden, weight, teacher_hidden, teacher_weight, labels, distance, temperature, chunk, reduction
    )


def _distance(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None,
    distance: Distance,
    temperature: float,
    chunk: int | None,
    reduction: Reduction,
) -> Tensor:
    if weight.shape[0] != teacher_weight.shape[0]:
        raise DataError(
            f"The student has {weight.shape[0]} tokens, its teacher {teacher_weight.shape[0]}",
            where="distillation",
            remedy="Choose a teacher with the student's tokenizer",
        )
    if labels is None:
        rows = torch.arange(len(hidden), device=hidden.device)
    else:
        rows = (labels != IGNORED).nonzero()[:, 0]
    if reduction == "mean" and len(rows) == 0:
        raise no_labels_error()
    objective = _objective(teacher_hidden.detach(), teacher_weight.detach(), distance, temperature)
    if reduction == "none":
        return chunked_values(hidden, weight, rows, objective, 1, chunk)[:, 0]
    # Two sets of logits are alive at once, so half as many tokens keep the same memory.
    total = chunked_sum(hidden, weight, rows, objective, chunk or chunk_tokens(None, weight) // 2)
    return total / len(rows) if reduction == "mean" else total


def _objective(
    teacher_hidden: Tensor, teacher_weight: Tensor, distance: Distance, temperature: float
) -> Objective:
    dtype = product_dtype(teacher_hidden)
    narrow_weight = teacher_weight.to(dtype)

    def objective(logits: Tensor, rows: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
        taught = wide_logits(teacher_hidden[rows].to(dtype), narrow_weight).to(logits.dtype)
        teacher = taught.div_(temperature).log_softmax(-1)
        student = logits.div_(temperature).log_softmax(-1)
        values, terms = distance(student, teacher)
        if grad is None:
            return values[:, None], None
        slope = terms.addcmul_(student.exp_(), terms.sum(-1, keepdim=True), value=-1)
        return values[:, None], slope.mul_(grad / temperature)

    return objective
