"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from training.sharding import is_sharded, like, whole


class MuonAndAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW`, each on its own parameters, that step together.

    Muon (Jordan, https://kellerjordan.github.io/posts/muon) moves a matrix along its momentum with all singular
    values made about 1. Embeddings, an output weight of its own, gains and biases are AdamW's. Muon's rate is scaled
    by 0.2 sqrt(max(rows, columns)) (Moonlight, arXiv 2502.16982, Eq. 4), which makes its steps as long as
    AdamW's usual ones, so that learning rate, schedule and weight decay mean the same for both.

    Its parts share `state` and `param_groups` with it.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.parts = (muon, adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise NotImplementedError("The loop computes gradients before the step")
        for part in self.parts:
            part.step()


class ShardedMuon(torch.optim.Muon):
    """`torch.optim.Muon` for matrices of which every rank has some rows only (FSDP).

    Momentum, decay and the step itself are of each number alone, and stay where the rows are. What is turned is a
    whole matrix: it is gathered, one at a time, turned by every rank alike, and each keeps its rows of the result.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient, by the arithmetic of torch's own step, in its order."""
        for group in self.param_groups:
            rate, decay, momentum = (float(group[name]) for name in ("lr", "weight_decay", "momentum"))
            for matrix in (p for p in group["params"] if p.grad is not None):
                state = self.state[matrix]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(matrix.grad))
                buffer.lerp_(matrix.grad, 1 - momentum)
                update = whole(matrix.grad.lerp(buffer, momentum))  # Nesterov's
                turned = _zeropower_via_newtonschulz(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                matrix.mul_(1 - rate * decay)
                matrix.add_(
                    like(matrix, turned), alpha=-_adjust_lr(rate, group["adjust_lr_fn"], matrix.shape)
                )


def build_muon(
    model: nn.Module,
    *,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    momentum: float = 0.95,
    fused: bool = True,
) -> MuonAndAdamW:
    """Muon with Nesterov momentum for the matrices of `model.layers`, AdamW for the rest; rates are set later.

    Weight decay applies to matrices and embeddings, as in `training.optimizer.build_adamw`.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in named.items() if name.startswith("layers.") and p.dim() == 2}
    others = [p for name, p in named.items() if name not in matrices]
    kind = ShardedMuon if any(map(is_sharded, matrices.values())) else torch.optim.Muon
    muon = kind(
        list(matrices.values()),
        lr=0.0,
        weight_decay=weight_decay,
        momentum=momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=fused)
    return MuonAndAdamW(muon, adamw)


def muon_parameters(optimizer: torch.optim.Optimizer) -> set[Tensor]:
    """The parameters that Muon moves; none where the optimizer is another."""
    if not isinstance(optimizer, MuonAndAdamW):
        return set()
    return {parameter for group in optimizer.parts[0].param_groups for parameter in group["params"]}
