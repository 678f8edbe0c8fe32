"""The optimizer: AdamW with decay on matrices only, or Muon beside it, and the mean of the last weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from training.muon import build_muon, muon_parameters

OptimizerName = Literal["adamw", "muon"]
MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTUM = ("momentum_buffer",)


def build_optimizer(
    name: OptimizerName, model: nn.Module, *, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> torch.optim.Optimizer:
    """`build_adamw` or `training.muon.build_muon`; for "muon" the betas and epsilon are AdamW's part's."""
    build = build_muon if name == "muon" else build_adamw
    return build(model, weight_decay=weight_decay, beta1=beta1, beta2=beta2, epsilon=epsilon)


def build_adamw(
    model: nn.Module, *, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter) with one fused kernel for all parameters; set the rate before each step.

    Weight decay applies to matrices, embeddings included; gains and biases have none. (The paper says only
    "weight decay 0.1".) Decay is decoupled: a step shrinks a weight by learning_rate * weight_decay.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make the next step with learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, by name; zeros before a step.

    Adam's moments are "exp_avg.<parameter>" and "exp_avg_sq.<parameter>". A matrix that Muon moves has only
    "momentum_buffer.<parameter>": there is no second moment of it.
    """
    found: dict[str, Tensor] = {}
    for name, parameter, kinds in _remembered(model, optimizer):
        state = optimizer.state.get(parameter, {})
        for kind in kinds:
            value = state.get(kind)
            found[f"{kind}.{name}"] = torch.zeros_like(parameter) if value is None else value
    return found


def restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor], steps: int
) -> None:
    """Put back what `moments` returned after `steps` steps; KeyError for what another optimizer has saved."""
    if steps == 0:
        return  # the optimizer makes its own zeros at the first step
    for name, parameter, kinds in _remembered(model, optimizer):
        state = optimizer.state[parameter]
        if kinds == MOMENTS:
            # The fused kernel counts steps in a float32 tensor on the parameter's device.
            state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=parameter.device)
        for kind in kinds:
            state[kind] = saved[f"{kind}.{name}"].to(parameter).clone()


def _remembered(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter, tuple[str, ...]]]:
    by_muon = muon_parameters(optimizer)
    for name, parameter in model.named_parameters():
        yield name, parameter, MOMENTUM if parameter in by_muon else MOMENTS


class WeightMean:
    """The plain mean of the weights after each of the last updates, in the weights' own precision.

    weights : by parameter name; the weights themselves until the first `add`
    count   : updates that have been added
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], count: int = 0) -> None:
        self.weights = {name: weight.detach().clone() for name, weight in named}
        self.count = count

    def add(self, model: nn.Module) -> None:
        """Take the model's present weights into the mean."""
        self.count += 1
        present = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), present, 1.0 / self.count)

    @contextmanager
    def in_place_of_weights(self, model: nn.Module) -> Iterator[None]:
        """For the time of the block the model computes with the mean; nothing is copied."""
        parameters = dict(model.named_parameters())
        own = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.weights[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = own[name]
