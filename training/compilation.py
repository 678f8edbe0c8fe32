"""torch.compile from outside the model: layer by layer, or the whole forward pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from curation.errors import MachineError
from training.model import Decoder

Compile = Literal["none", "layers", "model"]


def compile_model(model: Decoder, what: Compile) -> None:
    """Replace the forward of each layer, or of the model, by a compiled one wherever gradients are wanted.

    Layers share one compiled graph, which is ready soonest. Evaluations, whose shapes are many and whose time
    is short, stay as they are. A replaced forward also turns off training.fused_layer. Numbers change by
    rounding only. MachineError where there is no compiler to do it.
    """
    if what == "none":
        return
    _check_compiler(model.output_weight.device)
    if what == "model":
        model.attention = "sdpa"  # one kernel to trace, and not the fused layer
    for module in model.layers if what == "layers" else [model]:
        module.forward = _when_training(module)


def _when_training(module: nn.Module) -> Callable[..., Any]:
    plain = module.forward
    compiled = torch.compile(plain)

    def forward(*given: Any, **named: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*given, **named)

    return forward


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn a page of the compiler's frames into a sentence; the backward pass is compiled late, inside autograd."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        raise MachineError(
            f"torch.compile has failed: {str(error).strip().splitlines()[0]}",
            where="compile",
            remedy="Remove its cache (TORCHINDUCTOR_CACHE_DIR, else torchinductor_* in the temporary folder), which a "
            "killed process can leave broken, or set compile to none",
        ) from error


def _check_compiler(device: torch.device) -> None:
    """torch would say so itself, but only after the first forward pass, and in a page of frames."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            raise MachineError(
                "torch.compile needs triton on a GPU, and it is not installed",
                where="compile",
                remedy="Install triton, or set compile to none",
            ) from error
        return
    from torch._inductor.config import cpp

    names = cpp.cxx if isinstance(cpp.cxx, tuple | list) else [cpp.cxx]
    if not any(name and shutil.which(name) for name in names):
        raise MachineError(
            "torch.compile needs a C++ compiler on a CPU, and there is none",
            where="compile",
            remedy="Install g++ (or name one in the variable CXX), or set compile to none",
        )
