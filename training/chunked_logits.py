"""A walk over a vocabulary's logits, a chunk of tokens at a time, for losses that never hold them all.

The logits of a chunk are made by one matrix product, turned into their gradient block by block in place, and
give both gradients by two more products. A block is small enough for a core's cache, a chunk large enough for
the products to be fast; neither changes the result. Softmax, sums and the weight's gradient are float32
(float64 for float64 input); under `torch.autocast` the products are in autocast's precision.

What is computed for the logits is an objective: training.losses and training.distillation have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of a chunk's logits, and numbers of a block's, when `chunk` is not given. On one Zen 5 thread, forward and
# backward in bfloat16 of 1024 tokens of width 256 with 128,256 entries took 2.52 s in chunks of 128 tokens
# without blocks, 2.07 s with blocks of 4 tokens, 1.48 s in chunks of 512 with them; more gains nothing.
CHUNK_BYTES_CPU, BLOCK_LOGITS_CPU = 1 << 27, 1 << 19
FEWEST_TOKENS, MOST_TOKENS_CPU = 128, 512
# An accelerator wants large products and few kernels: 2**26 is 128 MiB in bfloat16 (chosen, not measured).
CHUNK_LOGITS = 1 << 26

Reduction = Literal["sum", "mean", "none"]
# A block objective sees the float32 logits [n, V] of a slice of its chunk's tokens, which it may overwrite, and
# returns their values [n, K] and, given the gradient of those [n, K], the gradient of the logits [n, V].
Block = Callable[[Tensor, slice, Tensor | None], tuple[Tensor, Tensor | None]]
# An objective is asked once for each chunk, with the indices of its tokens [C], for the function of its blocks.
Objective = Callable[[Tensor], Block]


def chunk_tokens(chunk: int | None, weight: Tensor, dtype: torch.dtype, sets: int = 1) -> int:
    """Tokens per chunk: as asked, or so many that `sets` sets of logits [C, V] fill the bytes of a chunk."""
    if chunk:
        return max(chunk, 1)
    if weight.device.type != "cpu":
        return max(CHUNK_LOGITS // sets // weight.shape[0], FEWEST_TOKENS)
    fitting = CHUNK_BYTES_CPU // (dtype.itemsize * weight.shape[0] * sets)
    return min(max(fitting, FEWEST_TOKENS), MOST_TOKENS_CPU)


def chunked_values(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    objective: Objective,
    columns: int,
    chunk: int | None,
    sets: int = 1,
) -> Tensor:
    """Values [N, columns] of `objective` at `rows`, 0 elsewhere; differentiable in `hidden` and `weight`."""
    size = chunk_tokens(chunk, weight, product_dtype(hidden), sets)
    return _ChunkedValues.apply(hidden, weight, rows, objective, columns, size)


def chunked_sum(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    objective: Objective,
    chunk: int | None,
    *,
    columns: int = 1,
    sets: int = 1,
) -> tuple[Tensor, Tensor]:
    """Sum of the objective's first column over `rows`, and the sums of all columns [K], for information.

    The gradients of the first are computed on the way, so that the backward is free; the others have none.
    """
    size = chunk_tokens(chunk, weight, product_dtype(hidden), sets)
    return _ChunkedSum.apply(hidden, weight, rows, objective, columns, size)


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
        columns: int,
        chunk: int,
        dtype: torch.dtype,
    ) -> None:
        self.hidden, self.weight = hidden, weight
        self.rows, self.objective, self.columns, self.chunk = rows, objective, columns, chunk
        self.narrow_weight = weight.to(dtype)
        self.dtype, self.wide = dtype, torch.promote_types(dtype, torch.float32)
        on_cpu = weight.device.type == "cpu"
        self.block = max(BLOCK_LOGITS_CPU // weight.shape[0], 1) if on_cpu else chunk
        # One buffer for all chunks: fresh memory of this size costs a CPU a page fault for every 4 kB.
        self.buffer = torch.empty(min(chunk, len(rows)), weight.shape[0], dtype=dtype, device=weight.device)

    def values(self) -> Tensor:
        """Values [N, columns] of the objective, 0 outside `rows`."""
        values = self.hidden.new_zeros(len(self.hidden), self.columns, dtype=self.wide)
        for rows in self.rows.split(self.chunk):
            logits, block = self._logits(self.hidden[rows].to(self.dtype)), self.objective(rows)
            for part in _slices(len(rows), self.block):
                values[rows[part]] = block(logits[part].to(self.wide), part, None)[0]
        return values

    def gradients(
        self, grad: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sums of the values [K], and d / d hidden, d / d weight for the values' gradient `grad` [N or 1, K]."""
        totals = self.hidden.new_zeros(self.columns, dtype=self.wide)
        grad_hidden = torch.zeros_like(self.hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(self.weight, dtype=self.wide) if wanted[1] else None
        for rows in self.rows.split(self.chunk):
            states = self.hidden[rows].to(self.dtype)
            scale = grad[rows] if len(grad) > 1 else grad.expand(len(rows), -1)
            logits, block = self._logits(states), self.objective(rows)
            for part in _slices(len(rows), self.block):
                values, slope = block(logits[part].to(self.wide), part, scale[part])
                totals += values.sum(0)
                assert slope is not None
                logits[part] = slope
            if grad_hidden is not None:
                grad_hidden[rows] = (logits @ self.narrow_weight).to(grad_hidden.dtype)
            if grad_weight is not None and self.dtype == self.wide:
                grad_weight.addmm_(logits.T, states)
            elif grad_weight is not None:
                grad_weight += logits.T @ states
        return totals, grad_hidden, grad_weight

    def _logits(self, states: Tensor) -> Tensor:
        return torch.mm(states, self.narrow_weight.T, out=self.buffer[: len(states)])


def _slices(count: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


class _ChunkedSum(torch.autograd.Function):
    """Sums of an objective's values; the gradients of the first column's are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, rows: Tensor, objective: Objective, columns: int, chunk: int
    ) -> tuple[Tensor, Tensor]:
        walk = _Walk(hidden, weight, rows, objective, columns, chunk, product_dtype(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            wanted = ctx.needs_input_grad[:2]
            if any(wanted):
                first = torch.zeros(1, columns, dtype=walk.wide, device=hidden.device)
                first[:, 0] = 1
                totals, grad_hidden, grad_weight = walk.gradients(first, wanted)
                ctx.save_for_backward(grad_hidden, grad_weight)
                ctx.weight_dtype = weight.dtype
            else:
                totals = walk.values().sum(0)
        total = totals[0].clone()
        ctx.mark_non_differentiable(totals)
        return total, totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else (grad_hidden * grad).to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype),
            None,
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
        ctx.objective, ctx.columns, ctx.chunk = objective, columns, chunk
        ctx.product_dtype = product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return _Walk(hidden, weight, rows, objective, columns, chunk, ctx.product_dtype).values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, rows = ctx.saved_tensors
        # The backward may run outside autocast; it multiplies in the precision of the forward.
        walk = _Walk(hidden, weight, rows, ctx.objective, ctx.columns, ctx.chunk, ctx.product_dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            _, grad_hidden, grad_weight = walk.gradients(grad, ctx.needs_input_grad[:2])
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None
