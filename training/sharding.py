"""FSDP2 from outside the model: every rank keeps a part of each weight, of its gradient and of its moments.

A layer's weights are gathered before it runs and dropped after it; its gradients are summed and scattered.
Checkpoints do not know about it: `whole` gathers a tensor before it is written, `like` cuts what was read.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

from training.distributed import Ranks
from training.model import Decoder


class ShardedSum:
    """Leaves summing and scattering the gradients to FSDP, and holds it back until the last micro-batch."""

    def __init__(self, model: Decoder, ranks: Ranks, precision: str) -> None:
        """Shard `model` in place, layer by layer; it is on its device already, with equal weights everywhere.

        With bfloat16 the layers' weights travel in that precision, and gradients are summed in float32. The
        embedding, the last norm and the output weight stay in float32, as the residual stream does.
        """
        # Imported here and below: it takes a second or two, which a run that does not shard need not wait.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(model.output_weight.device.type, (ranks.size,))
        narrow = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
            reduce_dtype=torch.float32 if precision == "bfloat16" else None,
            cast_forward_inputs=False,
        )
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=narrow)
        # The output weight is read after the forward pass, by the loss: the outermost group stays whole.
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        self.model: nn.Module = model
        for module in _sharded(model):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def start(self) -> None:
        """An update begins: gradients stay where they are."""
        for module in _sharded(self.model)[:1]:
            module.set_requires_gradient_sync(False)

    def begin(self) -> None:
        """The next backward is the last of this update."""
        for module in _sharded(self.model)[:1]:
            module.set_requires_gradient_sync(True)

    def finish(self) -> None:
        """Every `.grad` is a part of the sum over all ranks by now."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only its part of the tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every rank; any other tensor itself. All ranks must ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of `tensor`, which every rank has whole, where `parameter` is sharded; else itself."""
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    tensor = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_model(model: Decoder, weights: dict[str, Tensor] | None = None) -> Decoder:
    """A copy of a sharded model that computes alone, with its own or other (sharded) weights."""
    copy = Decoder(model.config).to(model.output_weight.device)
    source = weights or dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(whole(source[name]))
    return copy


def _sharded(model: nn.Module) -> list[FSDPModule]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
