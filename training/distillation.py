"""Distances from a student's token distribution to a teacher's, over the vocabulary in chunks.

With s the student's and t the teacher's softmax at a common temperature, per token and in nats:

    forward KL      KL(t || s): the student must cover what the teacher says (MobileLLM-R1, section 3.2)
    reverse KL      KL(s || t): the student must not say what the teacher would not
    Jensen-Shannon  b KL(t || m) + (1 - b) KL(s || m), m = b t + (1 - b) s  (GKD, arXiv 2306.13649)

The teacher is given by its hidden states and output weight, so that its logits too exist one chunk at a time;
it gets no gradient. The distances alone are not multiplied by the squared temperature;
`linear_distillation`, which adds them to the cross-entropy, does so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curation.errors import DataError
from training.chunked_logits import Block, Objective, Reduction, chunked_sum, chunked_values, product_dtype
from training.losses import IGNORED, entries_of, labelled_rows, no_labels_error

Direction = Literal["forward", "reverse", "jensen_shannon"]
# From log s and log t, both [C, V]: the distance of each token [C] and g = s * d distance / d s [C, V], with
# which d distance / d student logits = g - s * sum(g).
Distance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class DistilledLoss(NamedTuple):
    """A sum over the labelled tokens, in nats.

    total         : alpha * cross_entropy + beta * temperature^2 * divergence (+ z-loss); has a gradient
    cross_entropy : from the labels, at temperature 1; for the log
    divergence    : from the teacher, at the temperature; for the log
    """

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
    direction: Direction = "forward",
    teacher_share: float = 0.5,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> DistilledLoss:
    """Cross-entropy and distance to a teacher in one pass over the student's logits, summed over the labels.

    hidden [N, D], weight [V, D], labels int64 [N] (-100 = in neither loss), teacher_hidden [N, E],
    teacher_weight [V, E]; alpha, beta, temperature as in `DistilledLoss`. The factor temperature^2 keeps the
    size of the distance's gradient when the temperature changes (Hinton et al., arXiv 1503.02531, section 2).
    teacher_share is b of the Jensen-Shannon divergence; z_loss is added with weight alpha. Raises DataError
    for a label outside the vocabulary or vocabularies of different sizes.
    """
    check_same_size(weight, teacher_weight)
    rows = labelled_rows(labels, weight.shape[0])
    distance = distance_of(direction, teacher_share)
    objective = _blended(
        _taught(teacher_hidden, teacher_weight, temperature),
        distance,
        temperature,
        labels=labels,
        alpha=alpha,
        beta=beta * temperature**2,
        z_loss=z_loss,
    )
    total, parts = chunked_sum(hidden, weight, rows, objective, chunk, columns=3, sets=2)
    return DistilledLoss(total, parts[1], parts[2])


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

    return _distance(
        hidden, weight, teacher_hidden, teacher_weight, labels, _forward, temperature, chunk, reduction
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

    return _distance(
        hidden, weight, teacher_hidden, teacher_weight, labels, _reverse, temperature, chunk, reduction
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
    distance = distance_of("jensen_shannon", beta)
    return _distance(
        hidden, weight, teacher_hidden, teacher_weight, labels, distance, temperature, chunk, reduction
    )


def distance_of(direction: Direction, teacher_share: float = 0.5) -> Distance:
    """The distance of a name; `teacher_share` is b of the Jensen-Shannon divergence."""
    if direction == "jensen_shannon":
        return _jensen_shannon(teacher_share)
    return _forward if direction == "forward" else _reverse


def _forward(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    probability = teacher.exp()
    return (probability * (teacher - student)).sum(-1), probability.neg_()  # so the gradient is s - t


def _reverse(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    terms = student.exp() * (student - teacher)
    return terms.sum(-1), terms


def _jensen_shannon(beta: float) -> Distance:
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

    return distance


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
    check_same_size(weight, teacher_weight)
    if labels is None:
        rows = torch.arange(len(hidden), device=hidden.device)
    else:
        rows = (labels != IGNORED).nonzero()[:, 0]
    if reduction == "mean" and len(rows) == 0:
        raise no_labels_error()
    taught = _taught(teacher_hidden, teacher_weight, temperature)
    objective = _blended(taught, distance, temperature)
    if reduction == "none":
        return chunked_values(hidden, weight, rows, objective, 1, chunk, sets=2)[:, 0]
    total, _ = chunked_sum(hidden, weight, rows, objective, chunk, sets=2)
    return total / len(rows) if reduction == "mean" else total


def _taught(
    hidden: Tensor, weight: Tensor, temperature: float
) -> Callable[[Tensor], Callable[[slice, torch.dtype], Tensor]]:
    """The teacher's log-probabilities: of a chunk's tokens by one product, then of a block [n, V]."""
    dtype = product_dtype(hidden)
    hidden, narrow_weight = hidden.detach(), weight.detach().to(dtype)

    def of_chunk(rows: Tensor) -> Callable[[slice, torch.dtype], Tensor]:
        logits = hidden[rows].to(dtype) @ narrow_weight.T

        def of_block(part: slice, wide: torch.dtype) -> Tensor:
            return logits[part].to(wide).div_(temperature).log_softmax(-1)

        return of_block

    return of_chunk


def _blended(
    taught: Callable[[Tensor], Callable[[slice, torch.dtype], Tensor]],
    distance: Distance,
    temperature: float,
    *,
    labels: Tensor | None = None,
    alpha: float = 0.0,
    beta: float = 1.0,
    z_loss: float = 0.0,
) -> Objective:
    """Without labels the distance alone, in one column; with them its total, cross-entropy and distance."""

    def objective(rows: Tensor) -> Block:
        teacher = taught(rows)
        wanted = None if labels is None else labels[rows]

        def block(logits: Tensor, part: slice, grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
            plain, hard = logits, logits.new_zeros(())
            if wanted is not None:
                at = entries_of(wanted[part])
                chosen = logits[at]
                plain = logits.log_softmax(-1)
                hard = -plain[at]
                normaliser = chosen + hard
            soft_logits = logits.div_(temperature) if temperature != 1 else logits
            student = plain if wanted is not None and temperature == 1 else soft_logits.log_softmax(-1)
            soft, terms = distance(student, teacher(part, logits.dtype))
            if wanted is None:
                values = soft[:, None]
            else:
                values = torch.stack(
                    (alpha * (hard + z_loss * normaliser.square()) + beta * soft, hard, soft), -1
                )
            if grad is None:
                return values, None
            probability = torch.exp(student, out=soft_logits)
            slope = terms.addcmul_(probability, terms.sum(-1, keepdim=True), value=-1)
            slope.mul_(beta / temperature)
            if wanted is not None and alpha > 0:
                hard_probability = probability if temperature == 1 else plain.exp_()
                slope.addcmul_(hard_probability, alpha * (1 + 2 * z_loss * normaliser[:, None]))
                slope[at] -= alpha
            return values, slope.mul_(grad[:, :1])

        return block

    return objective


def check_same_size(weight: Tensor, teacher_weight: Tensor) -> None:
    """Raise DataError unless both output weights are of one vocabulary's size."""
    if weight.shape[0] != teacher_weight.shape[0]:
        raise DataError(
            f"The student has {weight.shape[0]} tokens, its teacher {teacher_weight.shape[0]}",
            where="distillation",
            remedy="Choose a teacher with the student's tokenizer",
        )
