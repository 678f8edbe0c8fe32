"""The layers of a BERT-like encoder for passes in bfloat16 or int8 on a CPU: documents side by side, without padding.

What makes a pass of transformers' own layers slow in bfloat16 is taken away: rows that are padding, weights that are
laid out anew for every product, one product each for queries, keys and values, and masks. Products are rounded, what
lies between them is not: the sums along the layers (the residual stream) and the norms are float32, which halves the
error of a bfloat16 pass and costs nothing, since torch's float32 norm is the faster one.

Only the module `encoder` of a model is replaced, so that embeddings, pooler and head stay transformers' own, in
float32. Models of other kinds keep their layers (see `precision.to_bfloat16`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ROUNDING = 2
"""Counts the ways in which passes of fewer than 32 bits have been computed: results of an earlier one are set aside."""
PACKABLE = ("bert", "roberta", "xlm-roberta", "camembert")
"""transformers' model types whose layers are these: attention, sum and norm, feed-forward, sum and norm."""
_SCORES_AT_ONCE = 1 << 20
"""Attention scores of documents of one length that are computed together, so that they stay in the cache."""

Product = Callable[[torch.Tensor], torch.Tensor]
"""Rows [t, in], float32 or bfloat16, to rows [t, out] in bfloat16."""


@dataclass(frozen=True)
class Site:
    """One product of a layer: `name` is qkv, out, up or down; weight [out, in] and bias [out] are float32."""

    layer: int
    name: str
    weight: torch.Tensor
    bias: torch.Tensor


class HalfLinear:
    """A product in bfloat16 with the weight in oneDNN's own layout, where torch offers that."""

    def __init__(self, site: Site) -> None:
        self.weight, self.bias = site.weight.to(torch.bfloat16), site.bias.to(torch.bfloat16)
        self.packed = _packed(self.weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.bfloat16)
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return product


def can_pack(body: Any) -> bool:
    """Whether `body`, a transformers model without its head, has the layers that this module computes."""
    config: Any = getattr(body, "config", None)
    return (
        getattr(config, "model_type", None) in PACKABLE
        and str(body.device) == "cpu"
        and not config.is_decoder
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and hasattr(getattr(body, "encoder", None), "layer")
    )


def pack(body: Any, product: Callable[[Site], Product] = HalfLinear) -> PackedEncoder:
    """Replace the layers of `body`, which `can_pack`, in place; `product` makes the products of each site."""
    body.encoder = PackedEncoder(body.encoder, body.config.num_attention_heads, product)
    body.set_attn_implementation("sdpa")  # whose mask is boolean
    packed: PackedEncoder = body.encoder
    return packed


class PackedEncoder(nn.Module):
    """In place of transformers' `encoder`: padded states [batch, tokens, size] in and out, packed rows between."""

    def __init__(self, encoder: Any, heads: int, product: Callable[[Site], Product]) -> None:
        super().__init__()
        # A plain list: `.to` and `state_dict` must not reach into the products.
        self._layers = [_Layer(layer, index, heads, product) for index, layer in enumerate(encoder.layer)]

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, **others: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        batch, tokens, size = hidden_states.shape
        rows = hidden_states.reshape(-1, size).float()
        lengths, kept = [tokens] * batch, None
        if attention_mask is not None:  # [batch, 1, tokens, tokens], the same for each asking token
            seen = attention_mask[:, 0, 0]
            seen = seen if seen.dtype == torch.bool else seen == 0
            lengths, kept = seen.sum(1).tolist(), seen.reshape(-1).nonzero()[:, 0]
            rows = rows[kept]
        spans = list(equal_spans(lengths, self._layers[0].heads))
        for layer in self._layers:
            rows = layer(rows, spans)
        if kept is not None:
            padded = rows.new_zeros(batch * tokens, size)
            padded[kept] = rows
            rows = padded
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=rows.view(batch, tokens, size))


class _Layer:
    def __init__(self, layer: Any, index: int, heads: int, product: Callable[[Site], Product]) -> None:
        asked = layer.attention.self
        self.heads = heads
        scale = (asked.query.out_features // heads) ** -0.5
        parts = [(asked.query, scale), (asked.key, 1.0), (asked.value, 1.0)]
        weight = torch.cat([part.weight.detach().float() * by for part, by in parts])
        self.qkv = product(Site(index, "qkv", weight, torch.cat([_bias(part) * by for part, by in parts])))
        self.out = product(_site(index, "out", layer.attention.output.dense))
        self.up = product(_site(index, "up", layer.intermediate.dense))
        self.down = product(_site(index, "down", layer.output.dense))
        self.activation = layer.intermediate.intermediate_act_fn
        self.norms = (layer.attention.output.LayerNorm.float(), layer.output.LayerNorm.float())

    def __call__(self, rows: torch.Tensor, spans: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        mixed = attention(self.qkv(rows), spans, self.heads)
        rows = self.norms[0](self.out(mixed).float().add_(rows))
        inner = self.activation(self.up(rows))
        return self.norms[1](self.down(inner).float().add_(rows))


def attention(qkv: torch.Tensor, spans: Sequence[tuple[int, int, int]], heads: int) -> torch.Tensor:
    """Every document's tokens attend to all of that document: [t, 3 x size], queries scaled already, to [t, size].

    Plain products for a few documents at a time: torch's fused kernel takes 1.4 to 1.8 times as long in bfloat16 on
    a CPU (docs/decisions.md).
    """
    size = qkv.shape[1] // 3
    mixed = qkv.new_empty(len(qkv), size)
    for start, count, tokens in spans:
        here = slice(start, start + count * tokens)
        split = qkv[here].view(count, tokens, 3, heads, size // heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.reshape(3, count * heads, tokens, size // heads)
        found = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
        into = mixed[here].view(count, tokens, heads, size // heads)
        into.copy_(found.view(count, heads, tokens, size // heads).transpose(1, 2))
    return mixed


def equal_spans(lengths: Sequence[int], heads: int) -> Iterator[tuple[int, int, int]]:
    """(first row, documents, tokens of each) of neighbours of one length, at most what the cache holds.

    >>> list(equal_spans([2, 2, 5, 0], heads=1))
    [(0, 2, 2), (4, 1, 5)]
    """
    start = index = 0
    while index < len(lengths):
        tokens, count = lengths[index], 1
        most = max(1, _SCORES_AT_ONCE // max(1, heads * tokens * tokens))
        while count < most and index + count < len(lengths) and lengths[index + count] == tokens:
            count += 1
        if tokens:
            yield start, count, tokens
        start, index = start + count * tokens, index + count


def _site(layer: int, name: str, linear: Any) -> Site:
    return Site(layer, name, linear.weight.detach().float(), _bias(linear))


def _bias(linear: Any) -> torch.Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features)
    return linear.bias.detach().float()


def _packed(weight: torch.Tensor) -> Any:
    """The weight in oneDNN's layout; None where torch has no such product (it is not part of its stable interface)."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        probe = weight.new_ones(1, weight.shape[1])
        torch.ops.mkldnn._linear_pointwise(probe, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return packed
