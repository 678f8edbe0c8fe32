"""One decoder layer as a single differentiable function with a hand-written backward, for training on a CPU.

Small models on a CPU spend more time on passes over activations than on matrix products: casts of autocast,
masks, float32 copies of scores. This function makes the same numbers as `training.model.Layer` (up to
rounding; to 1e-12 in float64, see its test) with fewer passes:

* activations are in the precision of the products (bfloat16 under autocast); residual stream, root mean
  squares and rotations are float32 or more, and a softmax is float32 inside its one pass;
* the gain of a norm is folded into the weights that read it: (x g) W' = x (W g)', so that its gradient
  falls out of theirs; queries, keys and values are one product, and so are gate and up;
* attention walks over blocks of queries and leaves out the keys behind them.

It is reverse mode, once, and no hook sees its inside. `Layer` therefore uses it only where nothing else is
asked for; see `training.model.Decoder.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.attention import causal_mask

# Queries of one block of attention. A row of 256 tokens makes 2 blocks, of 3/4 of the scores.
# The layers of width 128, forward and backward: 121 ms of one Zen 5 thread for 8 x 256 tokens (256: 129), and
# 197 for 2 x 1024 (256: 208, 64: 216), against 190 and 379 of the plain layer with torch's attention.
BLOCK = 128
# The shares of attention are kept for the backward, heads T T / 2 numbers of each row and layer: beyond this
# many tokens torch's attention, which keeps none, is the better one.
FUSED_TOKENS = 1024


@dataclass(frozen=True)
class LayerShape:
    """What a fused layer must know besides tensors.

    groups : queries that share a key head      normed : queries and keys are divided by their root mean square
    dtype  : precision of the matrix products
    """

    kv_heads: int
    groups: int
    head_dim: int
    interleaved: bool
    normed: bool
    eps: float
    dtype: torch.dtype


def shared_by_layers(
    cos: Tensor, sin: Tensor, mask: Tensor | None, tokens: int, shape: LayerShape
) -> tuple[Tensor, Tensor, LayerShape]:
    """What `FusedLayer` takes besides x and weights: rotation, additive mask and shape.

    cos, sin : [B or 1, 1, T, hd / 2] become complex numbers [B or 1, T, 1, hd / 2]
    mask     : bool [B or 1, 1, T, T], true = may read (None = causal), becomes 0 there and -inf elsewhere
    """
    if mask is None:
        mask = causal_mask(tokens, cos.device)[None, None]
    added = torch.zeros(mask.shape, dtype=shape.dtype).masked_fill_(~mask, float("-inf"))
    return torch.complex(cos, sin).transpose(1, 2), added, shape


class FusedLayer(torch.autograd.Function):
    """x [B, T, D] float32 -> the layer's output; weights in the order of `Layer.named_parameters`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        turn: Tensor,
        mask: Tensor,
        shape: LayerShape,
        gain1: Tensor,
        wq: Tensor,
        wk: Tensor,
        wv: Tensor,
        wo: Tensor,
        gain2: Tensor,
        w_gate: Tensor,
        w_up: Tensor,
        w_down: Tensor,
    ) -> Tensor:
        """turn, mask, shape: see `shared_by_layers`."""
        rows, tokens, dim = x.shape
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, dim)
            w_qkv, w_in = torch.cat((wq, wk, wv)), torch.cat((w_gate, w_up))
            narrow_qkv, narrow_in = (w_qkv * gain1).to(shape.dtype), (w_in * gain2).to(shape.dtype)
            narrow_o, narrow_down = wo.to(shape.dtype), w_down.to(shape.dtype)

            unit1, scale1 = _unit_rms(flat, shape.eps, shape.dtype)
            qkv = (unit1 @ narrow_qkv.T).view(rows, tokens, -1, shape.head_dim)
            qk, scale_qk = turned_pairs(qkv[:, :, : -shape.kv_heads], turn, shape)
            value = qkv[:, :, -shape.kv_heads :].transpose(1, 2).contiguous()
            mixed, shares = attend_blocks(qk, value, mask, shape)
            middle = flat + mixed @ narrow_o.T

            unit2, scale2 = _unit_rms(middle, shape.eps, shape.dtype)
            gate, up = (unit2 @ narrow_in.T).chunk(2, -1)
            silu = F.silu(gate)
            product = silu * up
            out = middle + product @ narrow_down.T
        ctx.shape = shape
        # The shares too, so that activation checkpointing can drop them: a tensor kept on ctx would stay.
        ctx.save_for_backward(
            gain1, w_qkv, narrow_qkv, narrow_o, gain2, w_in, narrow_in, narrow_down,
            turn, unit1, scale1, qk, scale_qk, value, mixed, unit2, scale2, gate, up, silu, product, *shares,
        )  # fmt: skip
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (
            gain1, w_qkv, narrow_qkv, narrow_o, gain2, w_in, narrow_in, narrow_down,
            turn, unit1, scale1, qk, scale_qk, value, mixed, unit2, scale2, gate, up, silu, product, *shares,
        ) = ctx.saved_tensors  # fmt: skip
        shape: LayerShape = ctx.shape
        wide = grad.reshape(-1, grad.shape[-1])
        # Feed-forward.
        narrow = wide.to(shape.dtype)
        g_down = narrow.T @ product
        g_product = narrow @ narrow_down
        g_in = torch.empty(gate.shape[0], 2 * gate.shape[1], dtype=gate.dtype)
        g_gate, g_up = g_in.chunk(2, -1)
        torch.mul(g_product, silu, out=g_up)
        g_gate.copy_(torch.ops.aten.silu_backward(g_product.mul_(up), gate))
        g_folded = g_in.T @ unit2
        g_w_in, g_gain2 = _unfold(g_folded, w_in, gain2)
        wide = wide + _unit_rms_backward(g_in @ narrow_in, unit2, scale2)
        # Attention.
        narrow = wide.to(shape.dtype)
        g_o = narrow.T @ mixed
        g_qk, g_value = attend_blocks_backward(narrow @ narrow_o, qk, value, shares, shape)
        g_qkv = turned_backward(g_qk, g_value, qk, scale_qk, turn, shape)
        g_folded = g_qkv.T @ unit1
        g_w_qkv, g_gain1 = _unfold(g_folded, w_qkv, gain1)
        wide = wide + _unit_rms_backward(g_qkv @ narrow_qkv, unit1, scale1)

        head, keys = shape.head_dim, shape.kv_heads * shape.head_dim
        g_q, g_k, g_v = g_w_qkv.split((shape.groups * shape.kv_heads * head, keys, keys))
        g_gate_w, g_up_w = g_w_in.chunk(2)
        return (
            wide.view(grad.shape), None, None, None, g_gain1, g_q, g_k, g_v, g_o.to(gain1.dtype),
            g_gain2, g_gate_w, g_up_w, g_down.to(gain1.dtype),
        )  # fmt: skip


def _unit_rms(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x over its root mean square, in `dtype`; and one over that, [N, 1], in the precision of x."""
    scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
    return (x * scale).to(dtype), scale


def _unit_rms_backward(grad: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """d / dx of x scale(x): scale (grad - unit mean(grad unit)), in the precision of `scale`."""
    wide = grad.to(scale.dtype)
    along = (wide * unit).mean(-1, keepdim=True)
    return wide.addcmul_(unit, along, value=-1.0).mul_(scale)


def _unfold(g_folded: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `weight` [O, I] and `gain` [I] from that of their product weight * gain."""
    wide = g_folded.to(weight.dtype)
    g_gain = (wide * weight).sum(0)
    return wide * gain, g_gain


def _pairs(x: Tensor, shape: LayerShape, dtype: torch.dtype) -> Tensor:
    """[..., head_dim] as complex numbers [..., head_dim / 2], one for each pair that is turned."""
    if not shape.interleaved:
        x = x.unflatten(-1, (2, -1)).transpose(-1, -2)
        return torch.view_as_complex(x.to(dtype).contiguous())
    x = x.to(dtype).contiguous()
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def turned_pairs(x: Tensor, turn: Tensor, shape: LayerShape) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, T, heads, hd] rotated, normed and, the queries, over sqrt(hd): [B, heads, T, hd].

    Their dimensions come out as neighbouring pairs, whatever the style: a product of queries with keys does
    not depend on their common order. Also returns what the rotated numbers were multiplied with [B, T, heads, 1].
    """
    wide = turn.real.dtype
    turned = torch.view_as_real(_pairs(x, shape, wide) * turn).flatten(-2)
    scale = torch.ones(x.shape[2], 1, dtype=wide)
    scale[: -shape.kv_heads] = shape.head_dim**-0.5
    if shape.normed:
        norm = torch.linalg.vector_norm(turned, dim=-1, keepdim=True)
        scale = scale * (norm.square_() / shape.head_dim + shape.eps).rsqrt_()
    out = torch.empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=shape.dtype)
    out.copy_(turned.mul_(scale).transpose(1, 2))
    return out, scale


def turned_backward(
    g_qk: Tensor, g_value: Tensor, qk: Tensor, scale: Tensor, turn: Tensor, shape: LayerShape
) -> Tensor:
    """Gradient [B T, (heads + 2 kv) hd] of the joint projection from those of `turned_pairs` and the values."""
    wide = g_qk.to(scale.dtype)
    if shape.normed:
        # y = c unit with c = hd**-0.5 for queries: unit (unit . g c) / hd = y (y . g) / (c c hd)
        along = (wide * qk).sum(-1, keepdim=True)
        along[:, -shape.kv_heads :] /= shape.head_dim
        wide = torch.addcmul(wide, qk, along, value=-1.0)
    wide = wide.transpose(1, 2) * scale
    turned = torch.view_as_real(torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * turn.conj())
    rows, heads, tokens, head_dim = qk.shape
    out = torch.empty(rows, tokens, heads + shape.kv_heads, head_dim, dtype=shape.dtype)
    if not shape.interleaved:
        turned = turned.transpose(-1, -2)
    out[:, :, :heads].unflatten(-1, turned.shape[-2:]).copy_(turned)
    out[:, :, heads:] = g_value.transpose(1, 2)
    return out.view(rows * tokens, -1)


def attend_blocks(qk: Tensor, value: Tensor, mask: Tensor, shape: LayerShape) -> tuple[Tensor, list[Tensor]]:
    """Attention's output [B T, heads hd], and of each block of queries the shares [B kv, groups t, keys]."""
    rows, _, tokens, head_dim = qk.shape
    query, key = _split_heads(qk, shape)
    value = value.flatten(0, 1)
    out = torch.empty(rows, tokens, shape.kv_heads, shape.groups, head_dim, dtype=shape.dtype)
    shares = []
    for first in range(0, tokens, BLOCK):
        last = min(first + BLOCK, tokens)
        scores = query[:, :, first:last].flatten(1, 2) @ key[:, :last].transpose(1, 2)
        scores.view(rows, -1, last - first, last).add_(mask[:, :, first:last, :last])
        share = scores.softmax(-1)
        shares.append(share)
        block = (share @ value[:, :last]).view(rows, shape.kv_heads, shape.groups, last - first, head_dim)
        out[:, first:last] = block.permute(0, 3, 1, 2, 4)
    return out.view(rows * tokens, -1), shares


def attend_blocks_backward(
    grad: Tensor, qk: Tensor, value: Tensor, shares: list[Tensor], shape: LayerShape
) -> tuple[Tensor, Tensor]:
    """Gradients of `attend_blocks` for queries and keys together, and for the values, in their shapes."""
    rows, _, tokens, head_dim = qk.shape
    query, key = _split_heads(qk, shape)
    g_qk, g_value = torch.zeros_like(qk), torch.zeros_like(value)
    g_query = g_qk[:, : -shape.kv_heads].unflatten(1, (shape.kv_heads, shape.groups))
    g_key = g_qk[:, -shape.kv_heads :]
    grad = grad.view(rows, tokens, shape.kv_heads, shape.groups, head_dim).permute(0, 2, 3, 1, 4)
    for share, first in zip(shares, range(0, tokens, BLOCK), strict=True):
        last = min(first + BLOCK, tokens)
        g_out = grad[:, :, :, first:last].reshape(-1, shape.groups * (last - first), head_dim)
        g_share = g_out @ value[:, :, :last].flatten(0, 1).transpose(1, 2)
        g_scores = torch._softmax_backward_data(g_share, share, -1, share.dtype)
        block = query[:, :, first:last].flatten(1, 2)
        g_query[:, :, :, first:last] = (g_scores @ key[:, :last]).view(g_query[:, :, :, first:last].shape)
        g_key[:, :, :last] += (g_scores.transpose(1, 2) @ block).view(rows, -1, last, head_dim)
        g_value[:, :, :last] += (share.transpose(1, 2) @ g_out).view(rows, -1, last, head_dim)
    return g_qk, g_value


def _split_heads(qk: Tensor, shape: LayerShape) -> tuple[Tensor, Tensor]:
    """Queries [B kv, groups, T, hd] and keys [B kv, T, hd] of `qk` [B, heads + kv, T, hd]."""
    query = qk[:, : -shape.kv_heads].reshape(-1, shape.groups, *qk.shape[2:])
    return query, qk[:, -shape.kv_heads :].flatten(0, 1)
