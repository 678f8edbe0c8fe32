"""The number format of a model pass, and what makes bfloat16 pay on a CPU.

Passes in bfloat16, or in whole numbers of eight bits (`int8`), are only ever a first look: whatever lies near a
threshold is computed again in float32 (see `recheck` and `semantic_duplicates`), so the format changes what a pass
costs and not what it decides.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import torch

from curation.errors import RecipeError
from curation.packed_encoder import can_pack, pack

Precision = Literal["auto", "float32", "bfloat16"]
ATTENTION = "mixwright_sequence"


def resolve_precision(precision: Precision, device: str = "cpu") -> Literal["float32", "bfloat16"]:
    """`auto` is bfloat16 where the processor multiplies it faster than float32, always the same on one machine.

    On a CPU that means instructions for it (avx512_bf16 or AMX); without them bfloat16 is emulated and slower.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise RecipeError(f"There is no precision `{precision}`", remedy="Choose auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    return "bfloat16" if fast_bfloat16(device) else "float32"


def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether `device` has instructions for products of bfloat16 matrices."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def to_bfloat16(model: Any) -> Any:
    """Turn the body of a transformers model to bfloat16, in place; its head keeps computing in float32.

    A body that `packed_encoder` knows gets its layers, and keeps all else in float32. The head is cheap, and a raw
    score of 3 that leaves it in bfloat16 would be rounded to 1/64.
    """
    body = model.base_model
    if can_pack(body):
        pack(body)
        return model
    body.to(torch.bfloat16)
    for module in () if body is model else model.children():
        if module is not body and any(True for _ in module.parameters()):
            module.register_forward_pre_hook(_to_float32)
    if str(model.device) == "cpu" and getattr(model, "_supports_attention_backend", False):
        _register_attention()
        with suppress(ValueError, NotImplementedError):  # a class that brings its own attention keeps it
            model.set_attn_implementation(ATTENTION)
    return model


def attention_by_sequence(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as plain products, one sequence at a time, so that its scores stay in the cache.

    query, key, value : [batch, heads, tokens, size]; returns [batch, tokens, heads, size]. mask : boolean or
    additive, [batch, 1 or heads, tokens, tokens]. torch's fused kernel takes 1.4 to 1.8 times as long in
    bfloat16 on a CPU (docs/decisions.md).
    """
    batch, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query = query * (size**-0.5 if scaling is None else scaling)
    out = query.new_empty(batch, tokens, heads, size)
    for row in range(batch):
        scores = torch.bmm(query[row].contiguous(), key[row].contiguous().transpose(1, 2))
        if attention_mask is not None:
            mask = attention_mask[row]
            if mask.dtype == torch.bool:
                scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
            else:
                scores += mask
        out[row] = torch.bmm(scores.softmax(-1), value[row].contiguous()).transpose(0, 1)
    return out, None


def _to_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention_by_sequence)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
