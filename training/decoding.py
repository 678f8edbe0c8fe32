"""Decoding on a CPU: one token per row, on weights laid out for few rows and a prompt cache that replicas share.

A step of a small batch reads every weight for a handful of rows, so what it costs is memory traffic and calls:

* the weights are reordered once for oneDNN, queries, keys and values as one product, gate and up as another,
  with the gains of the norms folded in, in the precision of the products (a copy of the weights while it lasts);
* the keys and values of a prompt are kept once and read by all its replicas in one product; what a row has
  written itself is the same length in all rows, so it needs no mask and is written by a plain slice;
* a finished row's place is taken by the last row, so that a drop copies one row and not all others.

It makes the numbers of `training.model.Decoder` up to rounding. Where something else is asked for (another
device, a kernel by name, hooks, a module or a method put in the place of ours) `packed_weights` gives None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.attention import rotation
from training.model import FUSED_MODULES, Decoder

# Rows for which oneDNN lays the weights out. 1 makes it 1.2 to 2 times slower for 4 rows and more; 16, 64 and
# no hint are level from 1 to 64 rows. Against F.linear: float32 1.4 to 2.5 times as fast, bfloat16 1.2 to 2.5.
ROWS_HINT = 16
DROP_SHARE = 64  # rows are dropped when one in so many has finished
FIRST_ROOM = 64  # tokens that a row's own cache holds at first; it doubles when it is full


class PackedLinear:
    """x [n, in] -> x weight^T + bias [n, out], the weight [out, in] laid out for few rows where oneDNN can."""

    def __init__(self, weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.packed = _packs(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return made
        return F.linear(x, self.weight, self.bias)


def _packs(dtype: torch.dtype) -> bool:
    """Whether this build and processor have oneDNN's products in that precision."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class PackedLayer:
    """The products of one layer, and the gains of its query and key norms [head_dim], if it has them."""

    def __init__(self, layer: Any, dtype: torch.dtype, order: Tensor | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        gain = layer.input_layernorm.weight
        parts = [(p.weight * gain, p.bias) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        if order is not None:  # neighbouring pairs, as the rotation wants them; see `PackedWeights`
            for at in (0, 1):
                weight, bias = parts[at]
                parts[at] = (_reordered(weight, order), None if bias is None else _reordered(bias, order))
        bias = None if parts[0][1] is None else torch.cat([bias for _, bias in parts])
        self.qkv = PackedLinear(torch.cat([weight for weight, _ in parts]), dtype, bias)
        self.out = PackedLinear(attention.o_proj.weight, dtype)
        gain = layer.post_attention_layernorm.weight
        self.gate_up = PackedLinear(
            torch.cat((mlp.gate_proj.weight * gain, mlp.up_proj.weight * gain)), dtype
        )
        self.down = PackedLinear(mlp.down_proj.weight, dtype)
        self.gains: Tensor | None = None
        if attention.config.qk_norm == "rms_before_rope":
            heads, keys = attention.config.heads, attention.config.kv_heads
            gains = [attention.q_norm.weight] * heads + [attention.k_norm.weight] * keys
            self.gains = torch.stack(gains if order is None else [gain[order] for gain in gains])


def _reordered(weight: Tensor, order: Tensor) -> Tensor:
    """The outputs of each head in another order."""
    return weight.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)


class PackedWeights:
    """A decoder's weights as decoding reads them; made anew whenever they have changed.

    Rotations are products of complex numbers, whose parts must be neighbours. A model that pairs i with
    i + head_dim / 2 gets the rows of its query and key projections reordered: attention does not notice.
    """

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        half = model.config.head_dim // 2
        self.model, self.config, self.dtype = model, model.config, dtype
        self.order = None
        if model.config.rope_style != "interleaved":
            self.order = torch.arange(2 * half).view(2, half).T.flatten()
        self.layers = [PackedLayer(layer, dtype, self.order) for layer in model.layers]
        self.head = None if "logits" in vars(model) else PackedLinear(model.output_weight, dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """As Decoder.logits."""
        return self.model.logits(hidden) if self.head is None else self.head(hidden.to(self.dtype))


@torch.inference_mode()
def packed_weights(model: Any) -> PackedWeights | None:
    """The weights for `PackedRows`; None where the model, its device or its settings want the plain way."""
    if type(model) is not Decoder or model.output_weight.device.type != "cpu" or model.attention != "auto":
        return None
    if "forward" in vars(model) or model.around_layer is not None or model.output_weight.dtype.itemsize < 4:
        return None
    for module in model.layers.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        if type(module) not in FUSED_MODULES:
            return None
    on = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if on else model.output_weight.dtype
    with torch.autocast("cpu", enabled=False):
        return PackedWeights(model, dtype)


class PackedRows:
    """`replicas` rows of each prompt while they are decoded, one token at a time. Use under inference_mode.

    keys, values : of the prompts, [layers, P, kv, L, hd], padded on the right; prompt p has `lengths[p]` tokens
    own          : keys and values that rows have written, [2, layers, rows, kv, room, hd]; `written` of them
    """

    drop_share = DROP_SHARE

    def __init__(
        self, weights: PackedWeights, keys: Tensor, values: Tensor, lengths: Tensor, replicas: int, room: int
    ) -> None:
        self.weights, self.room, self.written = weights, room, 0
        if weights.order is not None:
            keys = keys[..., weights.order]
        # A bfloat16 product of so few rows takes a CPU twice the time of a float32 one, and casts besides.
        self.dtype = torch.promote_types(weights.dtype, torch.float32)
        self.keys, self.values = (part.to(self.dtype).contiguous() for part in (keys, values))
        self.lengths = lengths.tolist()
        slots = torch.arange(keys.shape[3])
        self.padding = (
            (slots >= lengths[:, None])[:, None, None] if bool((lengths < len(slots)).any()) else None
        )
        self.prompts = [prompt for prompt in range(len(self.lengths)) for _ in range(replicas)]
        model = weights.model
        width = torch.promote_types(weights.model.output_weight.dtype, torch.float32)
        cos, sin = rotation(torch.arange(len(slots) + room)[None], model.frequencies, width)
        self.turns = torch.complex(cos, sin)[0, 0]
        self.own = self._new_room(min(FIRST_ROOM, room))
        self._group()

    def read(self, tokens: Tensor) -> Tensor:
        """Logits [n, V] after one more token [n] in every row."""
        weights, model = self.weights, self.weights.model
        if self.written == self.own.shape[4]:
            grown = self._new_room(min(2 * self.written, self.room))
            grown[:, :, :, :, : self.written] = self.own[:, :, : len(self.prompts)]
            self.own = grown
        with torch.autocast("cpu", enabled=False):
            x = model.embed_tokens(tokens)
            turn = self.turns[self.positions + self.written][:, None]
            for index, layer in enumerate(weights.layers):
                x = self._attended(x, index, layer, turn)
                gate, up = layer.gate_up(self._unit(x)).chunk(2, -1)
                x = x + layer.down(F.silu(gate).mul_(up))
            self.written += 1
            hidden = model.norm(x)
        return weights.logits(hidden)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep only `rows`; returns them in the order in which they stand from now on."""
        order = list(range(len(self.prompts)))
        kept, count = set(rows), len(rows)
        gaps = [row for row in range(count) if row not in kept]
        movers = [row for row in range(count, len(order)) if row in kept]
        if gaps:
            part = self.own[:, :, :, :, : self.written]
            part[:, :, torch.tensor(gaps)] = part[:, :, torch.tensor(movers)]
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        order = order[:count]
        self.prompts = [self.prompts[row] for row in order]
        self._group()
        return order

    def _attended(self, x: Tensor, index: int, layer: PackedLayer, turn: Tensor) -> Tensor:
        config, rows, t = self.weights.config, len(x), self.written
        heads, kv, size = config.heads, config.kv_heads, config.head_dim
        qkv = layer.qkv(self._unit(x)).view(rows, heads + 2 * kv, size)
        qk = qkv[:, : heads + kv].to(x.dtype)
        if layer.gains is not None:
            qk = _unit_rms(qk, config.norm_eps) * layer.gains
        qk = torch.view_as_real(torch.view_as_complex(qk.contiguous().unflatten(-1, (-1, 2))) * turn).flatten(
            -2
        )
        if config.qk_norm == "l2_after_rope":
            qk = _unit_rms(qk, config.norm_eps)
        keys, values = self.own[:, index, :rows]
        keys[:, :, t] = qk[:, heads:]
        values[:, :, t] = qkv[:, heads + kv :]
        query = qk[:, :heads].to(self.dtype).reshape(rows * kv, heads // kv, size)
        own = _scores(query, keys[:, :, : t + 1].flatten(0, 1), size)
        shared = self._to_rows(
            _scores(self._to_prompts(query), self._prompt(self.keys, index), size, self.padding)
        )
        shares = torch.cat((shared, own), -1)
        shares = shares.softmax(-1)
        split = shared.shape[-1]
        mixed = self._to_rows(
            torch.bmm(self._to_prompts(shares[..., :split]), self._prompt(self.values, index))
        )
        mixed = torch.baddbmm(mixed, shares[..., split:], values[:, :, : t + 1].flatten(0, 1))
        return x + layer.out(mixed.view(rows, heads * size).to(self.weights.dtype))

    def _unit(self, x: Tensor) -> Tensor:
        return _unit_rms(x, self.weights.config.norm_eps).to(self.weights.dtype)

    def _prompt(self, part: Tensor, index: int) -> Tensor:
        return part[index].flatten(0, 1)

    def _to_prompts(self, x: Tensor) -> Tensor:
        """[n kv, groups, *] of rows -> [P kv, most groups, *]: the rows of a prompt side by side."""
        if self.apart:
            return x
        return x.reshape(len(x), -1)[self.gather].view(
            self.keys.shape[1] * self.keys.shape[2], -1, x.shape[-1]
        )

    def _to_rows(self, x: Tensor) -> Tensor:
        """The way back from `_to_prompts`."""
        if self.apart:
            return x
        groups = self.weights.config.heads // self.weights.config.kv_heads
        return x.reshape(-1, groups * x.shape[-1])[self.back].view(-1, groups, x.shape[-1])

    def _group(self) -> None:
        """Where rows stand beside the others of their prompt; prompts that no row reads any more are let go."""
        alive = sorted(set(self.prompts))
        if len(alive) < len(self.lengths):
            at = torch.tensor(alive)
            self.keys, self.values = self.keys[:, at], self.values[:, at]
            self.padding = None if self.padding is None else self.padding[at]
            self.lengths = [self.lengths[prompt] for prompt in alive]
            renamed = {prompt: number for number, prompt in enumerate(alive)}
            self.prompts = [renamed[prompt] for prompt in self.prompts]
        self.positions = torch.tensor([self.lengths[prompt] for prompt in self.prompts])
        members: list[list[int]] = [[] for _ in alive]
        for row, prompt in enumerate(self.prompts):
            members[prompt].append(row)
        kv, most = self.weights.config.kv_heads, max(map(len, members))
        self.apart = most == 1 and self.prompts == list(range(len(alive)))
        # A prompt with fewer rows than another repeats its first one; nobody reads what comes of it.
        padded = torch.tensor([rows + rows[:1] * (most - len(rows)) for rows in members])
        heads = torch.arange(kv)
        self.gather = (padded[:, None] * kv + heads[:, None]).flatten()
        slots = [members[prompt].index(row) for row, prompt in enumerate(self.prompts)]
        first = torch.tensor(self.prompts)[:, None] * kv + heads
        self.back = (first * most + torch.tensor(slots)[:, None]).flatten()

    def _new_room(self, room: int) -> Tensor:
        config, rows = self.weights.config, len(self.prompts)
        shape = (2, config.layers, rows, config.kv_heads, room, config.head_dim)
        return torch.empty(shape, dtype=self.dtype)


def _scores(query: Tensor, keys: Tensor, size: int, padding: Tensor | None = None) -> Tensor:
    """query keys^T / sqrt(hd), [B, groups, hd] x [B, S, hd]; -inf where `padding` [P, 1, 1, S], B = P kv."""
    empty = query.new_empty(1, 1, 1)
    scores = torch.baddbmm(empty, query, keys.transpose(1, 2), beta=0, alpha=size**-0.5)
    if padding is not None:
        scores.view(len(padding), -1, *scores.shape[1:]).masked_fill_(padding, float("-inf"))
    return scores


def _unit_rms(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
