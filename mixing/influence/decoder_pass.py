"""Ghost products of our decoder in one hand-written pass: forward, half a backward, no autograd, no hooks.

For each matrix y = W x of the model, <dL/dy, V x> is one token's part in the derivative of the losses along V
(mixing.influence.contraction). The pass goes through the decoder as training.fused_layer does (attention in
blocks, its matrices made ready once: mixing.influence.decoder_weights), keeps what the way back needs, and on that
way makes no gradient of any weight. What the gains of the norms add falls out of the norm's own backward: with
y = g u, u of unit root mean square, the part of g along v is <dL/du, u v / g>.

Values come out per token, so documents may share a row. Nothing is weighted before the end: a document's
weight multiplies the sum over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mixing.influence.adapters import DecoderAdapter
from mixing.influence.contraction import Contraction
from mixing.influence.decoder_weights import (
    GROUPS,
    HEAD,
    NORMS,
    Weights,
    group_directions,
    head_weights,
    layer_weights,
    part_of,
)
from mixing.influence.documents import IGNORED, RowBatch
from mixing.influence.scorers import UnknownLayerError, Vectors
from training.chunked_logits import BLOCK_LOGITS_CPU, chunk_tokens
from training.fused_layer import (
    FUSED_TOKENS,
    LayerShape,
    attend_blocks,
    attend_blocks_backward,
    shared_by_layers,
    turned_backward,
    turned_pairs,
)
from training.model import FUSED_MODULES, Decoder, document_mask, rotation

# Tokens worked on at a time: what is kept for the way back should stay in the caches (2,048 is 3 % slower).
PASS_TOKENS = 1024
SMALLEST_GAIN = 1e-4  # a gain below this (relative to the largest) cannot be divided by

# Called with (group's name, inputs [N, I], output gradients [N, O]) to learn what the pass sees.
See = Callable[[str, Tensor, Tensor], None]


@dataclass
class Kept:
    """What one layer's way back needs."""

    unit1: Tensor
    scale1: Tensor
    qk: Tensor
    scale_qk: Tensor | None
    value: Tensor
    shares: list[Tensor]
    mixed: Tensor
    unit2: Tensor
    scale2: Tensor
    gate: Tensor
    up: Tensor
    silu: Tensor
    product: Tensor
    inner: dict[str, Tensor] = field(default_factory=dict)


def fits(model: Decoder) -> str:
    """Why the pass cannot run `model`, or an empty string."""
    for module in model.layers.modules():
        if type(module) not in FUSED_MODULES or "forward" in vars(module):
            return f"a {type(module).__name__} that is not the decoder's own"
    if model.config.qk_norm == "rms_before_rope":
        return "norms of queries and keys with gains"
    if model.embed_tokens.weight.device.type != "cpu":
        return "a device other than the CPU"
    for name, parameter in model.named_parameters():
        if "norm" in name and bool((parameter.abs() < SMALLEST_GAIN * parameter.abs().max()).any()):
            return f"a gain of {name} that is near zero"
    return ""


class DecoderPass:
    """The pass for k directions: `rows(batch)` gives float64 [documents of the batch, k].

    contractions : for each group of `group_directions`, how <g, V x> is made; None: whole, which is exact
    dtype        : of the matrix products; the residual stream, softmax and sums are float32 or more
    see          : is shown every group's inputs and output gradients
    """

    packs = True

    def __init__(
        self,
        adapter: DecoderAdapter,
        vectors: Sequence[Vectors],
        contractions: Mapping[str, Contraction] | None,
        dtype: torch.dtype,
        see: See | None = None,
    ) -> None:
        model = self.model = adapter.model
        if reason := fits(model):
            raise UnknownLayerError(reason)
        self.adapter, self.count, self.dtype, self.see = adapter, len(vectors), dtype, see
        self.name = "ghost" if contractions is None else "ghost_low_rank"
        if contractions is None:
            whole = group_directions(model, vectors)
            contractions = {n: Contraction(whole=v) for n, v in whole.items()}
        self.wide = torch.promote_types(model.embed_tokens.weight.dtype, torch.float32)
        config = model.config
        self.shape = LayerShape(
            kv_heads=config.kv_heads,
            groups=config.heads // config.kv_heads,
            head_dim=config.head_dim,
            interleaved=True,  # the rows of queries and keys are ordered so
            normed=config.qk_norm == "l2_after_rope",
            eps=config.norm_eps,
            dtype=dtype,
        )
        self.contractions, self.vectors = dict(contractions), vectors
        own = {n: p.detach().to(self.wide) for n, p in model.named_parameters()}
        self.layers = [
            {
                group: layer_weights(
                    model, own, index, group, vectors, self.contractions.get(f"layers.{index}.{group}"), dtype
                )
                for group in GROUPS
            }
            for index in range(config.layers)
        ]
        self.head = head_weights(model, own, vectors, self.contractions.get(HEAD), dtype)
        self.embedding = own["embed_tokens.weight"]
        self.embedded = self._stacked("embed_tokens.weight")
        self.chosen = self._stacked(model.output_weight_name)

    def _stacked(self, name: str) -> Tensor | None:
        """Directions [k, ...] of one parameter in the precision of the sums; None if none moves it."""
        if not any(name in v for v in self.vectors):
            return None
        like = dict(self.model.named_parameters())[name]
        return torch.stack([part_of(v, name, like) for v in self.vectors]).to(self.wide)

    @property
    def products(self) -> tuple[int, int]:
        """Multiplications of a token by the directions, and by the model's own matrices."""
        weights = [w for layer in self.layers for w in layer.values()] + [self.head]
        used = sum(w.contraction.products for w in weights if w.contraction is not None)
        return used, sum(w.matrix.numel() for w in weights)

    @property
    def forwards(self) -> float:
        """Forward, half a backward, and the products with the directions by their share of the work."""
        used, own = self.products
        return 2.0 + used / own

    @torch.no_grad()
    def rows(self, batch: RowBatch) -> Tensor:
        """Weighted derivatives of the pieces of `batch`, float64 [S, k]."""
        rows, tokens = batch.input_ids.shape
        if tokens > FUSED_TOKENS:
            raise UnknownLayerError(f"rows of more than {FUSED_TOKENS} tokens")
        if batch.segments is None and rows > 1 and rows * tokens > PASS_TOKENS:
            step = max(PASS_TOKENS // tokens, 1)
            parts = [self.rows(batch.part(at, at + step)) for at in range(0, rows, step)]
            return torch.cat(parts)
        ids = batch.input_ids.flatten()
        total = torch.zeros(len(ids), self.count, dtype=self.wide)
        cos, sin = rotation(batch.positions, self.model.frequencies, self.wide)
        mask = None if batch.segments is None else document_mask(batch.segments)
        shared = shared_by_layers(cos, sin, mask, tokens, self.shape)
        x = self.embedding[ids]
        kept = []
        for weights in self.layers:
            x, one = self._forward(x, weights, shared, batch)
            kept.append(one)
        gradient = self._losses(x, batch, total)
        for index in reversed(range(len(kept))):
            gradient = self._backward(gradient, kept.pop(), index, shared, total)
        if self.embedded is not None:
            for k, vector in enumerate(self.embedded):
                total[:, k] += (gradient * vector[ids]).sum(-1)
        return batch.by_document(total.view(*batch.input_ids.shape, self.count))

    def _forward(
        self, flat: Tensor, layer: Mapping[str, Weights], shared: tuple, batch: RowBatch
    ) -> tuple[Tensor, Kept]:
        turn, mask, shape = shared
        rows, tokens = batch.input_ids.shape
        inner: dict[str, Tensor] = {}

        def times(group: str, x: Tensor) -> Tensor:
            made, inner[group] = layer[group].forth(x)
            return made

        unit1, scale1 = self._unit(flat)
        qkv = times("qkv", unit1).unflatten(0, (rows, tokens)).unflatten(-1, (-1, shape.head_dim))
        qk, scale_qk = self._turned(qkv[:, :, : -shape.kv_heads], turn)
        value = qkv[:, :, -shape.kv_heads :].transpose(1, 2).contiguous()
        mixed, shares = attend_blocks(qk, value, mask, shape)
        middle = flat + times("out", mixed)
        unit2, scale2 = self._unit(middle)
        gate, up = times("in", unit2).chunk(2, -1)
        silu = F.silu(gate)
        product = silu * up
        out = middle + times("down", product)
        kept = Kept(
            unit1, scale1, qk, scale_qk, value, shares, mixed, unit2, scale2, gate, up, silu, product, inner
        )
        return out, kept

    def _turned(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor | None]:
        """Queries and keys [B, T, heads, hd] rotated: [B, heads, T, hd], and the factors of their norms if any."""
        if self.shape.normed:
            return turned_pairs(x, turn, self.shape)
        pairs = torch.view_as_complex(x.to(self.wide).unflatten(-1, (-1, 2)))
        out = x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3])
        onto = out.transpose(1, 2)
        if self.dtype == self.wide:
            torch.mul(pairs, turn, out=torch.view_as_complex(onto.unflatten(-1, (-1, 2))))
        else:
            onto.copy_(torch.view_as_real(pairs.mul_(turn)).flatten(-2))
        return out, None

    def _turned_backward(
        self, g_qk: Tensor, g_value: Tensor, qk: Tensor, scale: Tensor | None, turn: Tensor
    ) -> Tensor:
        """Gradient [B T, (heads + 2 kv) hd] of the joint projection."""
        if scale is not None:
            return turned_backward(g_qk, g_value, qk, scale, turn, self.shape)
        rows, heads, tokens, size = g_qk.shape
        out = g_qk.new_empty(rows, tokens, heads + self.shape.kv_heads, size)
        onto, back = out[:, :, :heads], turn.conj().resolve_conj()
        pairs = torch.view_as_complex(g_qk.to(self.wide).unflatten(-1, (-1, 2))).transpose(1, 2)
        if self.dtype == self.wide:
            torch.mul(pairs, back, out=torch.view_as_complex(onto.unflatten(-1, (-1, 2))))
        else:
            onto.copy_(torch.view_as_real(pairs.mul_(back)).flatten(-2))
        out[:, :, heads:] = g_value.transpose(1, 2)
        return out.view(rows * tokens, -1)

    def _unit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x over its root mean square, and one over that, [N, 1]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (norm.square_() / x.shape[-1] + self.shape.eps).rsqrt_()
        return (x * scale).to(self.dtype), scale

    def _unit_backward(
        self, grad: Tensor, unit: Tensor, scale: Tensor, weights: Weights, total: Tensor, onto: Tensor | None
    ) -> Tensor:
        """Adds the gain's part to `total`; the gradient before the norm, added to `onto` if given."""
        wide = grad.to(scale.dtype)
        sums = F.linear(wide * unit, weights.gains)
        total += sums[:, :-1]
        # scale (grad - unit mean(grad unit))
        wide = torch.addcmul(wide, unit, sums[:, -1:], value=-1.0)
        return wide.mul_(scale) if onto is None else torch.addcmul(onto, wide, scale)

    def _backward(self, wide: Tensor, kept: Kept, index: int, shared: tuple, total: Tensor) -> Tensor:
        turn, _, shape = shared
        layer = self.layers[index]

        def back(group: str, x: Tensor, gradient: Tensor) -> Tensor:
            weights = layer[group]
            if self.see is not None:
                gain = None if group not in NORMS else self._gain(index, group)
                name = f"layers.{index}.{group}"
                self.see(name, x if gain is None else x * gain, weights.own_order(gradient))
            before, outer, _ = weights.back(gradient)
            if weights.contraction is not None:
                total.add_(weights.pair(kept.inner.pop(group), outer))
            if len(weights.slopes):
                total.add_(F.linear(gradient, weights.slopes))
            return before

        g_product = back("down", kept.product, wide.to(shape.dtype))
        g_in = torch.empty(kept.gate.shape[0], 2 * kept.gate.shape[1], dtype=kept.gate.dtype)
        g_gate, g_up = g_in.chunk(2, -1)
        torch.mul(g_product, kept.silu, out=g_up)
        torch.ops.aten.silu_backward.grad_input(g_product.mul_(kept.up), kept.gate, grad_input=g_gate)
        g_unit = back("in", kept.unit2, g_in)
        wide = self._unit_backward(g_unit, kept.unit2, kept.scale2, layer["in"], total, wide)
        g_mixed = back("out", kept.mixed, wide.to(shape.dtype))
        g_qk, g_value = attend_blocks_backward(g_mixed.contiguous(), kept.qk, kept.value, kept.shares, shape)
        g_qkv = self._turned_backward(g_qk, g_value, kept.qk, kept.scale_qk, turn)
        g_unit = back("qkv", kept.unit1, g_qkv)
        return self._unit_backward(g_unit, kept.unit1, kept.scale1, layer["qkv"], total, wide)

    def _gain(self, index: int, group: str) -> Tensor:
        layer = self.model.layers[index]
        return getattr(layer, NORMS[group]).weight.to(self.dtype)

    def _losses(self, x: Tensor, batch: RowBatch, total: Tensor) -> Tensor:
        """Gradient of the summed losses before the final norm; adds what the output weight and that norm do.

        With p the softmax and y the label of a token, dL/dz = p - onehot(y) = q - onehot(y) sum(q), q being p without
        the label's entry. That is how it is made, since the sum comes with the product; in bfloat16 it agrees with
        float32 as p - onehot(y) did, no better. The part of the label's own row is exact whatever the rank.
        """
        labels = batch.labels.flatten()
        where = (labels != IGNORED).nonzero()[:, 0]
        unit, scale = self._unit(x)
        gradient = torch.zeros_like(x)
        weights = self.head
        size = chunk_tokens(None, weights.matrix, self.dtype)
        block = max(BLOCK_LOGITS_CPU // len(weights.matrix), 1)
        buffer = torch.empty(min(size, len(where)), len(weights.matrix), dtype=self.dtype)
        gain = self.model.norm.weight.to(self.dtype)
        for part in where.split(size):
            u, y = unit[part], labels[part]
            chances = torch.mm(u, weights.matrix.T, out=buffer[: len(part)])
            for at in range(0, len(part), block):
                piece = chances[at : at + block]
                torch.softmax(piece, -1, out=piece)  # float32 inside, whatever the precision
            if self.see is not None:
                self.see(HEAD, u * gain, chances)
            chances[torch.arange(len(part)), y] = 0.0
            before, outer, others = weights.back(chances)
            assert others is not None
            others = others.to(self.wide)
            gradient[part] = torch.addcmul(before.to(self.wide), weights.matrix[y], others, value=-1.0)
            if weights.contraction is not None:
                total[part] += self._output_part(u, u * gain, y, outer, others)
        return self._unit_backward(gradient, unit, scale, weights, total, None)

    def _output_part(
        self, unit: Tensor, hidden: Tensor, labels: Tensor, outer: Tensor, others: Tensor
    ) -> Tensor:
        """<q - onehot(y) sum(q), V h> of each token, [n, k]."""
        assert self.chosen is not None and self.head.contraction is not None
        found = self.head.pair(self.head.contraction.inward(unit), outer)
        own = torch.stack([(vector[labels] * hidden).sum(-1) for vector in self.chosen], -1)
        return found.addcmul_(own, others, value=-1.0)
