"""Quantised matrices in the layouts of torch's own CPU kernels, so that decoding reads 8 or 4 bits a weight.

torchao decides the numbers (which integer, which scale); on a CPU its tensors then unpack a whole matrix at every call,
a table of embeddings for every token. The modules here hold the same numbers and multiply by
`_weight_int8pack_mm` and `_weight_int4pack_mm_for_cpu`. Those are kernels for few rows: a prompt unpacks a matrix piece
by piece for a product in bfloat16. What flows between the layers is bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of activations up to which a packed product beats unpacking. One thread of a Zen 4 core, 128,256 x 576.
FEW_ROWS = 16
UNPACKED_ROWS = 8192  # of a matrix that are unpacked at once
INT4_TILE = 16  # the kernel's outputs come in tiles of so many


class PackedEmbedding(nn.Module):
    """Rows of integers [V, D] with a scale for each row or group [V, G]."""

    integers: Tensor
    scales: Tensor

    def __init__(self, integers: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("integers", integers)
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        return unpacked(self.integers[ids], self.scales[ids], torch.bfloat16)


class Int8Linear(nn.Module):
    """x W' for 8-bit weights [N, K] with one scale a row [N, 1]."""

    integers: Tensor
    scales: Tensor
    ones: Tensor
    bias: Tensor | None

    def __init__(self, integers: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("integers", integers.contiguous())
        self.register_buffer("scales", scales.float().flatten())
        self.register_buffer("bias", bias)
        # The kernel would round the scales to bfloat16: it multiplies by ones, and they come after.
        self.register_buffer("ones", torch.ones(len(integers), dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(torch.bfloat16)
        if len(rows) <= FEW_ROWS:
            out = torch._weight_int8pack_mm(rows.contiguous(), self.integers, self.ones)
        else:
            out = torch.cat(
                [F.linear(rows, piece.to(torch.bfloat16)) for piece in self.integers.split(UNPACKED_ROWS)], -1
            )
        return _scaled(out, self.scales, self.bias).view(*x.shape[:-1], -1)


class Int4Linear(nn.Module):
    """quantised(x) W' for 4-bit weights [N, K] in groups with scales [N, G]; x is 8-bit, a scale and a zero a token."""

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, integers: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, width = integers.shape
        self.group = width // scales.shape[1]
        spare = -self.outputs % INT4_TILE
        codes = F.pad(integers.to(torch.int32) + 8, (0, 0, 0, spare))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.register_buffer("packed", packed)
        self.register_buffer("bias", bias)
        pairs = torch.stack((scales, torch.zeros_like(scales)), -1).transpose(0, 1)  # [G, N, scale and zero]
        self.register_buffer("scales", F.pad(pairs, (0, 0, 0, spare)).to(torch.bfloat16).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        integers, scale = quantised_tokens(x.flatten(0, -2))
        # Integers up to 255 are exact in bfloat16, so that the product is that of the quantised activations.
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            integers.to(torch.bfloat16), self.packed, self.group, self.scales
        )
        return _scaled(out[:, : self.outputs], scale, self.bias).view(*x.shape[:-1], -1)


def quantised_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit asymmetric quantisation of each row of x [M, K]: (integer minus zero [M, K], scale [M, 1]), float32.

    As torchao's `Int8DynamicActivationIntxWeightConfig` does it: the range always holds 0.
    """
    wide = x.float()
    low, high = wide.amin(-1, keepdim=True).clamp(max=0), wide.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).smallest_normal)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    integers = ((wide * (1 / scale)).round() + zero).clamp(-128, 127)
    return integers - zero, scale


def _scaled(out: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    wide = out * scale  # float32
    return (wide if bias is None else wide + bias).to(torch.bfloat16)


def unpacked(integers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """integers [..., K] times scales [..., G], one for each of G equal groups."""
    groups = integers.unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales[..., None].float()).flatten(-2).to(dtype)


def pack(module: nn.Module) -> nn.Module:
    """The module with torchao's weight as one of the above; itself where there is none for it."""
    weight: Any = getattr(module, "weight", None)
    integers, scales = getattr(weight, "qdata", None), getattr(weight, "scale", None)
    if integers is None or scales is None:
        return module
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(integers, scales)
    bias = None if module.bias is None else module.bias.detach().float()  # type: ignore[operator]
    if str(getattr(weight, "target_dtype", "")).endswith("int4"):
        return Int4Linear(integers, scales, bias)
    if getattr(weight, "act_quant_kwargs", None) is None and scales.numel() == len(integers):
        return Int8Linear(integers, scales, bias)
    return module
