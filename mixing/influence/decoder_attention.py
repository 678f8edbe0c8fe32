"""Attention of our decoder for the passes that score: forward in blocks of queries, and half a backward.

training.fused_layer does the same for training. Here nothing but the gradient of the projections' outputs is wanted,
and tensors are laid out so that blocks are views: the queries that share a key head stand side by side at each
position, [B, kv, T, groups, hd], so that block by block they are the rows of one product.

Every query of a block reads all keys before the block, so only the square on the diagonal is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.attention import document_mask, rotation
from training.fused_layer import BLOCK, LayerShape


@dataclass(frozen=True)
class Rows:
    """What the layers share: rows and tokens of the batch, rotation and additive masks.

    turn  : complex [1 or B, T, 1, hd / 2]
    masks : for each block of queries [(first, last)] what is added to its scores of the keys `begin ... last - 1`:
            [1 or B, 1, (last - first) groups, last - begin]
    """

    rows: int
    tokens: int
    turn: Tensor
    blocks: tuple[tuple[int, int], ...]
    begins: tuple[int, ...]
    masks: tuple[Tensor, ...]


@dataclass
class KeptAttention:
    """What the way back needs: queries [B kv, T groups, hd], keys and values [B kv, T, hd], shares of each block.

    scales : one over the root mean squares of queries and keys (times 1 / sqrt(hd) for queries), if they are normed
    """

    query: Tensor
    key: Tensor
    value: Tensor
    shares: list[Tensor]
    scales: tuple[Tensor, Tensor] | None


def shared_rows(
    positions: Tensor, segments: Tensor | None, frequencies: Tensor, wide: torch.dtype, shape: LayerShape
) -> Rows:
    """`positions` and `segments` [B, T] as in a RowBatch; without segments all rows count from their start."""
    rows, tokens = positions.shape
    cos, sin = rotation(positions if segments is not None else positions[:1], frequencies, wide)
    turn = torch.complex(cos, sin).transpose(1, 2)
    blocks = tuple((first, min(first + BLOCK, tokens)) for first in range(0, tokens, BLOCK))
    if segments is None:
        before = torch.ones(min(BLOCK, tokens), min(BLOCK, tokens), dtype=torch.bool).tril()
        whole = _added(before[None, None], shape)
        masks = tuple(whole[:, :, : (b - a) * shape.groups, : b - a] for a, b in blocks)
        return Rows(rows, tokens, turn, blocks, tuple(a for a, _ in blocks), masks)
    seen = document_mask(segments)
    masks = tuple(_added(seen[:, :, a:b, :b], shape) for a, b in blocks)
    return Rows(rows, tokens, turn, blocks, (0,) * len(blocks), masks)


def _added(seen: Tensor, shape: LayerShape) -> Tensor:
    """Bool [B, 1, t, s], true = may read, as numbers to be added [B, 1, t groups, s]."""
    added = torch.zeros(seen.shape, dtype=shape.dtype).masked_fill_(~seen, float("-inf"))
    return added.repeat_interleave(shape.groups, 2)


def attend(qkv: Tensor, shared: Rows, shape: LayerShape, keep: bool) -> tuple[Tensor, KeptAttention]:
    """Attention's output [B T, heads hd] of the joint projection [B T, (heads + 2 kv) hd].

    The first heads are queries, ordered by the key head that they share, then come keys and values; pairs of the
    rotation are neighbours. `keep` False keeps no shares, and there is no way back.
    """
    kv, groups, size = shape.kv_heads, shape.groups, shape.head_dim
    heads = qkv.unflatten(0, (shared.rows, shared.tokens)).unflatten(-1, (-1, size))
    query, q_scale = _turned(heads[:, :, : kv * groups].unflatten(2, (kv, groups)), shared.turn, shape)
    key, k_scale = _turned(heads[:, :, kv * groups : -kv, None], shared.turn, shape)
    scales = None
    if q_scale is not None and k_scale is not None:
        scales = q_scale.mul_(size**-0.5), k_scale
        query.mul_(size**-0.5)
    query, key = query.flatten(2, 3).flatten(0, 1), key.flatten(2, 3).flatten(0, 1)
    value = heads[:, :, -kv:].transpose(1, 2).contiguous().flatten(0, 1)
    out = qkv.new_empty(shared.rows, shared.tokens, kv, groups, size)
    kept = KeptAttention(query, key, value, [], scales)
    for (first, last), begin, mask in zip(shared.blocks, shared.begins, shared.masks, strict=True):
        scores = query[:, first * groups : last * groups] @ key[:, :last].transpose(1, 2)
        scores.unflatten(0, (-1, kv))[..., begin:].add_(mask)
        share = torch.softmax(scores, -1, out=scores)
        if keep:
            kept.shares.append(share)
        block = (share @ value[:, :last]).view(shared.rows, kv, last - first, groups, size)
        out[:, first:last] = block.transpose(1, 2)
    return out.view(-1, kv * groups * size), kept


def attend_backward(grad: Tensor, kept: KeptAttention, shared: Rows, shape: LayerShape) -> Tensor:
    """Gradient [B T, (heads + 2 kv) hd] of `attend`'s argument from that of its output."""
    kv, groups, size = shape.kv_heads, shape.groups, shape.head_dim
    rows, tokens = shared.rows, shared.tokens
    out = grad.new_empty(rows, tokens, kv * groups + 2 * kv, size)
    onto = out[:, :, : kv * groups].unflatten(2, (kv, groups))
    back = shared.turn.conj().resolve_conj()
    grad = grad.unflatten(0, (rows, tokens)).unflatten(-1, (kv, groups, size)).transpose(1, 2)
    grad = grad.reshape(rows * kv, tokens * groups, size)
    scales = (None, None) if kept.scales is None else kept.scales
    g_key = g_value = None
    # The last block reads all keys, so that its part is where the others are added.
    for share, (first, last) in zip(reversed(kept.shares), reversed(shared.blocks), strict=True):
        here = slice(first * groups, last * groups)
        g_out = grad[:, here]
        g_share = g_out @ kept.value[:, :last].transpose(1, 2)
        g_scores = torch._softmax_backward_data(g_share, share, -1, share.dtype)
        of_keys, of_values = g_scores.transpose(1, 2) @ kept.query[:, here], share.transpose(1, 2) @ g_out
        if g_key is None or g_value is None:
            g_key, g_value = of_keys, of_values
        else:
            g_key[:, :last] += of_keys
            g_value[:, :last] += of_values
        g_query = (g_scores @ kept.key[:, :last]).view(rows, kv, last - first, groups, size)
        y = kept.query[:, here].view(g_query.shape)
        scale = None if scales[0] is None else scales[0][:, :, first:last]
        _turned_back(g_query, y, scale, 1.0, back[:, first:last], onto[:, first:last], shape)
    assert g_key is not None and g_value is not None
    keys = (rows, kv, tokens, 1, size)
    g_key, y, onto = g_key.view(keys), kept.key.view(keys), out[:, :, kv * groups : -kv, None]
    _turned_back(g_key, y, scales[1], size**-1.0, back, onto, shape)
    out[:, :, -kv:] = g_value.view(rows, kv, tokens, size).transpose(1, 2)
    return out.view(rows * tokens, -1)


def _turned(x: Tensor, turn: Tensor, shape: LayerShape) -> tuple[Tensor, Tensor | None]:
    """x [B, T, kv, n, hd] rotated: [B, kv, T, n, hd]; normed, if they are, and what it was multiplied with."""
    wide = turn.real.dtype
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)))
    out = x.new_empty(x.shape[0], x.shape[2], x.shape[1], *x.shape[3:])
    onto, turn = out.transpose(1, 2), turn[:, :, None]
    if shape.normed:
        turned = torch.view_as_real(pairs * turn).flatten(-2)
        norm = torch.linalg.vector_norm(turned, dim=-1, keepdim=True)
        scale = (norm.square_() / shape.head_dim + shape.eps).rsqrt_()
        onto.copy_(turned.mul_(scale))
        return out, scale.transpose(1, 2)
    if shape.dtype == wide:
        torch.mul(pairs, turn, out=torch.view_as_complex(onto.unflatten(-1, (-1, 2))))
    else:
        onto.copy_(torch.view_as_real(pairs.mul_(turn)).flatten(-2))
    return out, None


def _turned_back(
    grad: Tensor,
    y: Tensor,
    scale: Tensor | None,
    share: float,
    back: Tensor,
    onto: Tensor,
    shape: LayerShape,
) -> None:
    """Writes onto [B, T, kv, n, hd] the gradient before `_turned` from that [B, kv, T, n, hd] of y, what it gave.

    share : with y = c unit, 1 / (c c hd) of the part of the gradient along y that the norm takes away
    """
    wide = back.real.dtype
    grad = grad.to(wide)
    if scale is not None:
        along = (grad * y).sum(-1, keepdim=True).mul_(share)
        grad = torch.addcmul(grad, y, along, value=-1.0).mul_(scale)
    pairs, back = torch.view_as_complex(grad.unflatten(-1, (-1, 2))).transpose(1, 2), back[:, :, None]
    if shape.dtype == wide:
        torch.mul(pairs, back, out=torch.view_as_complex(onto.unflatten(-1, (-1, 2))))
    else:
        onto.copy_(torch.view_as_real(pairs * back).flatten(-2))
