"""Activation checkpointing: layers forget what their backward needs, and compute it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.model import Decoder


def recompute_layers(model: Decoder, every: int | None) -> None:
    """Let each `every`-th layer (1 = all, None = none) recompute its inside in the backward pass.

    Such a layer keeps its input only, and costs a second forward pass. It runs the same kernels on the same
    numbers twice, so that gradients keep every bit. (Chen et al., 2016, arXiv:1604.06174.)
    """
    model.around_layer = None if every is None else _Recompute(every)


class _Recompute:
    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, index: int, call: Callable[..., Tensor], given: tuple[Any, ...]) -> Tensor:
        if index % self.every or not torch.is_grad_enabled():
            return call(*given)
        # Nothing random happens in a layer, so there is no random state to put back.
        return checkpoint(call, *given, use_reentrant=False, preserve_rng_state=False)
