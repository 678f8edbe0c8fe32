"""One update: the gradient of a batch's mean loss, clipping, and the optimizer's step."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curation.errors import DataError
from training.distributed import ALONE, Ranks
from training.document_rows import LONG_ROW, by_documents
from training.gradient_sum import GradientSum
from training.lessons import Lessons, batch_loss, batch_on, rows_of
from training.losses import IGNORED, linear_cross_entropy
from training.model import Decoder
from training.optimizer import WeightMean, set_rate
from training.order import Batch
from training.settings import TrainSettings
from training.sharding import ShardedSum, whole
from training.weighing import BatchWeigher


@dataclass
class Run:
    """What changes while training, the ranks that do it, and how their gradients are summed (None = alone).

    lessons : of the phases, if any has a teacher
    weigher : weighs the tokens of each batch; None: all labels count alike
    """

    model: Decoder
    optimizer: torch.optim.Optimizer
    mean: WeightMean | None
    step: int
    ranks: Ranks = ALONE
    gradients: GradientSum | ShardedSum | None = None
    lessons: Lessons | None = None
    weigher: BatchWeigher | None = None


def accumulate_gradients(
    model: Decoder,
    batch: Batch,
    *,
    micro_batch_sequences: int | None = None,
    precision: str = "float32",
    z_loss: float = 0.0,
    lessons: Lessons | None = None,
    parts: dict[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
    gradients: GradientSum | ShardedSum | None = None,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Add the gradient of the batch's mean loss to the parameters' `.grad`; returns the loss, nats per token.

    The mean is over the labels of the whole batch, so loss and gradient do not depend on micro-batches. Of
    several ranks each gives its part of the batch; loss and gradient are those of all parts together.

    lessons : where rows learn from a teacher
    parts   : is then given the means "cross_entropy" and "divergence", which is 0 for rows without a teacher
    token_weights : [B, T], sum 1: the loss is the tokens' losses weighed by them; without ranks and lessons
    """
    device = model.output_weight.device
    labels = max(ranks.total(int((batch.labels != IGNORED).sum())), 1)
    count = len(batch.labels)
    size = micro_batch_sequences or max(count, 1)
    wide = torch.promote_types(model.output_weight.dtype, torch.float32)
    total, hard, soft = torch.zeros(3, dtype=wide, device=device).unbind()
    if gradients is not None:
        gradients.start()
    for first in range(0, count, size):
        if gradients is not None and first + size >= count:
            gradients.begin()
        part = batch_on(rows_of(batch, first, min(first + size, count)), device)
        with _precision(precision, device):
            hidden = _read(model, part)
            if token_weights is not None:
                each = _each_loss(model, hidden, part, z_loss)
                loss = (each * token_weights[first : first + size].to(each)).sum()
                loss.backward()
                total += loss.detach()
                continue
            summed = batch_loss(hidden, model.output_weight, part, z_loss, lessons, model.softcap)
        loss = summed.total / labels
        loss.backward()
        total += loss.detach()
        hard += summed.cross_entropy / labels
        soft += summed.divergence / labels
    if gradients is not None:
        gradients.finish()
    if parts is not None and lessons is not None:
        parts |= {"cross_entropy": ranks.sum_(hard), "divergence": ranks.sum_(soft)}
    return ranks.sum_(total)


def token_losses(
    model: Decoder, batch: Batch, *, micro_batch_sequences: int | None = None, precision: str = "float32"
) -> Tensor:
    """Loss of each token [B, T] in nats, 0 without a label, on the model's device and without a gradient."""
    device, count = model.output_weight.device, len(batch.labels)
    found = []
    for first in range(0, count, micro_batch_sequences or count):
        part = batch_on(rows_of(batch, first, min(first + (micro_batch_sequences or count), count)), device)
        with torch.no_grad(), _precision(precision, device):
            found.append(_each_loss(model, _read(model, part), part, 0.0))
    return torch.cat(found)


def _each_loss(model: Decoder, hidden: Tensor, part: Batch, z_loss: float) -> Tensor:
    losses = linear_cross_entropy(
        hidden.flatten(0, 1),
        model.output_weight,
        part.labels.flatten(),
        z_loss=z_loss,
        reduction="none",
        softcap=model.softcap,
    )
    return losses.view(part.labels.shape)


def _read(model: Decoder, part: Batch) -> Tensor:
    """Hidden states [B, T, D] of packed rows."""
    device, tokens = part.input_ids.device, part.input_ids.shape[1]
    if device.type == "cpu" and tokens > LONG_ROW:
        # A mask of T x T numbers would be gigabytes at 32k, and most of the products it masks are for nothing.
        return by_documents(lambda ids, lengths: model(ids), part.input_ids, part.document_ids)
    return model(part.input_ids, positions=part.positions, document_ids=part.document_ids)


def update(run: Run, batch: Batch, settings: TrainSettings) -> dict[str, Any]:
    """One update, and its row of the log; `batch` is this rank's part of it."""
    rate = settings.rate(run.step)
    parts: dict[str, Tensor] = {}
    token_weights, columns = run.weigher.weigh(run.model, batch) if run.weigher else (None, {})
    loss = accumulate_gradients(
        run.model,
        batch,
        micro_batch_sequences=settings.micro_batch_sequences,
        precision=settings.precision,
        z_loss=settings.z_loss,
        lessons=run.lessons,
        parts=parts,
        ranks=run.ranks,
        gradients=run.gradients,
        token_weights=token_weights,
    )
    parameters = list(run.model.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    # One look at all numbers: on a GPU, the only wait of the step.
    loss_value, norm_value, *values = torch.stack((loss, whole(norm).to(loss), *parts.values())).tolist()
    _refuse_non_finite(loss_value, norm_value, run.step + 1, rate)
    if settings.clip is not None and norm_value > settings.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm, foreach=True)
    set_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    if settings.average_from is not None and run.step > settings.average_from * settings.steps:
        run.mean = run.mean or WeightMean(run.model.named_parameters())
        run.mean.add(run.model)
    return {
        "step": run.step,
        "tokens": run.step * settings.tokens_per_step,
        "loss": loss_value,
        "learning_rate": rate,
        "grad_norm": norm_value,
        **dict(zip(parts, values, strict=True)),
        **columns,
    }


def _precision(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _refuse_non_finite(loss: float, norm: float, step: int, rate: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
    raise DataError(
        f"The {what} at step {step} (learning rate {rate:.3g}); the update was not made",
        remedy="Lower learning_rate or lengthen the warm-up, and look at what the step reads (data show)",
    )
