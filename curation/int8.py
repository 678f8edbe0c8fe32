"""Linear layers in whole numbers of eight bits, for a first look that `recheck` and `embedding_recheck` follow up.

On processors with VNNI instructions a product of 8-bit numbers is about twice as fast as one in bfloat16. Weights
are rounded once, to 127 steps of the largest weight of each output; what goes in is rounded at each call, to 127
steps of the largest number of its token, so that what a token gets does not depend on the others in its batch.
Nothing is calibrated on texts: the rounded model is a function of the model alone.

    y[t, o] = s[t] w[o] (sum_i q[t, i] p[o, i]) + b[o],   q = round(x / s), s[t] = max |x[t]| / 127

Sums are exact whole numbers, the rest is bfloat16. Everything between the linear layers (attention, norms,
activations) is what `precision.to_bfloat16` makes of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from curation.precision import to_bfloat16

_STEPS = 127
_ROWS_AT_ONCE = 512
"""Rows that are rounded at once, so that their float32 stays in the cache."""


@lru_cache(maxsize=4)
def fast_int8(device: str = "cpu") -> bool:
    """Whether this processor multiplies 8-bit numbers by instruction, and torch has the product that we use.

    That product (oneDNN's, with its scaling) is one that torch's own quantiser uses on x86; it is not part of
    torch's stable interface, so it is looked for and tried out.
    """
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    if device != "cpu" or probe is None or not probe():
        return False
    try:
        layer = Int8Linear(nn.Linear(4, 2), _LastInput())
        with torch.inference_mode():
            return bool(torch.isfinite(layer(torch.ones(1, 4, dtype=torch.bfloat16))).all())
    except (AttributeError, RuntimeError):
        return False


def to_int8(model: Any) -> Any:
    """Turn the linear layers of a transformers model's body to int8 and the rest of it to bfloat16, in place.

    A pooler stays in bfloat16, and a head keeps computing in float32 (see `to_bfloat16`): both are cheap.
    """
    body = model.base_model
    last = _LastInput()
    for path, module in list(body.named_modules()):
        for name, child in list(module.named_children()):
            if (
                type(child) is nn.Linear and "pooler" not in path
            ):  # a pooler reads one token, and its error counts
                setattr(module, name, Int8Linear(child, last))
    return to_bfloat16(model)


class _LastInput:
    """The last input of a layer and its rounded form: queries, keys and values are made from the same one."""

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None
        self.rounded: tuple[torch.Tensor, torch.Tensor] | None = None


class Int8Linear(nn.Module):
    """A linear layer as the module's text says; for inference."""

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear, last: _LastInput) -> None:
        super().__init__()
        self.in_features, self.out_features, self._last = linear.in_features, linear.out_features, last
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / _STEPS
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        bias = torch.zeros(self.out_features) if linear.bias is None else linear.bias.detach()
        # Not buffers: `.to(bfloat16)` of the body must leave the scales alone.
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.scale, self.zero = scale, torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = bias.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], bfloat16."""
        rounded, scale = self._rounded(x)
        # The activations' zero is 128, since the instruction wants them unsigned.
        product = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,
            128,
            self.packed,
            self.scale,
            self.zero,
            None,
            1.0,
            0,
            torch.bfloat16,
            "none",
            [],
            "",
        )
        torch.addcmul(self.bias, product, scale, out=product)
        return product.view(*x.shape[:-1], self.out_features)

    def _rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = self._last
        if last.value is x and last.rounded is not None:
            return last.rounded
        rows = x.reshape(-1, self.in_features)
        # Without its sign, the bits of a bfloat16 are a whole number of the same order, whose maximum is found faster.
        bits = (rows.to(torch.bfloat16).view(torch.int16) & 0x7FFF).amax(-1, keepdim=True)
        largest = bits.view(torch.bfloat16).float()
        step = (largest / _STEPS).clamp(min=1e-12)
        inverse, middle = 1 / step, torch.tensor(128.5)
        rounded = torch.empty(rows.shape, dtype=torch.uint8)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            rounded[part] = torch.addcmul(middle, rows[part], inverse[part])
        last.value, last.rounded = x, (rounded, step.to(torch.bfloat16))
        return last.rounded
