"""Ghost products of our decoder in one hand-written pass: forward, half a backward, no autograd, no hooks.

For each matrix y = W x of the model, <dL/dy, V x> is one token's part in the derivative of the losses along V
(mixing.influence.contraction). The pass goes through the decoder (mixing.influence.decoder_forward), keeps what the
way back needs, and on that way makes no gradient of any weight. What the gains of the norms add falls out of the
norm's own backward: with y = g u, u of unit root mean square, the part of g along v is <dL/du, u v / g>.

Values come out per token, so documents may share a row. Nothing is weighted before the end: a document's
weight multiplies the sum over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixing.influence.adapters import DecoderAdapter
from mixing.influence.contraction import Contraction
from mixing.influence.decoder_attention import Rows, attend_backward
from mixing.influence.decoder_forward import DecoderForward, Kept, rows_at_a_time, unknown
from mixing.influence.decoder_weights import HEAD, NORMS, Weights, group_directions, part_of
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import UnknownLayerError, Vectors
from training.fused_layer import FUSED_TOKENS
from training.model import Decoder

SMALLEST_GAIN = 1e-4  # a gain below this (relative to the largest) cannot be divided by

# Called with (group's name, inputs [N, I], output gradients [N, O]) to learn what the pass sees.
See = Callable[[str, Tensor, Tensor], None]


def fits(model: Decoder) -> str:
    """Why the pass cannot run `model`, or an empty string."""
    if reason := unknown(model):
        return reason
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
        self.contractions, self.vectors = dict(contractions), vectors
        own = {n: p.detach().to(self.wide) for n, p in model.named_parameters()}
        self.walk = DecoderForward(model, own, dtype, vectors, self.contractions)
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
        weights = [w for layer in self.walk.layers for w in layer.values()] + [self.walk.head]
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
        if batch.input_ids.shape[1] > FUSED_TOKENS:
            raise UnknownLayerError(f"rows of more than {FUSED_TOKENS} tokens")
        rows, step = len(batch.input_ids), rows_at_a_time(batch, self.dtype)
        if rows > step:
            return torch.cat([self.rows(batch.part(at, at + step)) for at in range(0, rows, step)])
        ids = batch.input_ids.flatten()
        total = torch.zeros(len(ids), self.count, dtype=self.wide)
        shared = self.walk.shared(batch)
        x = self.walk.embedding[ids]
        kept = []
        for weights in self.walk.layers:
            x, one = self.walk.layer(x, weights, shared, see=self.see is not None)
            kept.append(one)
        gradient = self._losses(x, batch, total)
        for index in reversed(range(len(kept))):
            gradient = self._backward(gradient, kept.pop(), index, shared, total)
        if self.embedded is not None:
            for k, vector in enumerate(self.embedded):
                total[:, k] += (gradient * vector[ids]).sum(-1)
        return batch.by_document(total.view(*batch.input_ids.shape, self.count))

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

    def _backward(self, wide: Tensor, kept: Kept, index: int, shared: Rows, total: Tensor) -> Tensor:
        layer = self.walk.layers[index]

        def back(group: str, gradient: Tensor) -> Tensor:
            weights = layer[group]
            if self.see is not None:
                x = kept.inputs[group]
                gain = None if group not in NORMS else self._gain(index, group)
                name = f"layers.{index}.{group}"
                self.see(name, x if gain is None else x * gain, weights.own_order(gradient))
            before, outer, _ = weights.back(gradient)
            if weights.contraction is not None:
                total.add_(weights.pair(kept.inner.pop(group), outer))
            if len(weights.slopes):
                total.add_(F.linear(gradient, weights.slopes))
            return before

        g_product = back("down", wide.to(self.dtype))
        g_in = torch.empty(kept.gate.shape[0], 2 * kept.gate.shape[1], dtype=kept.gate.dtype)
        g_gate, g_up = g_in.chunk(2, -1)
        torch.mul(g_product, kept.silu, out=g_up)
        torch.ops.aten.silu_backward.grad_input(g_product.mul_(kept.up), kept.gate, grad_input=g_gate)
        g_unit = back("in", g_in)
        wide = self._unit_backward(g_unit, kept.unit2, kept.scale2, layer["in"], total, wide)
        g_mixed = back("out", wide.to(self.dtype))
        g_qkv = attend_backward(g_mixed, kept.attention, shared, self.walk.shape)
        g_unit = back("qkv", g_qkv)
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
        labels, weights = batch.labels.flatten(), self.walk.head
        unit, scale = self.walk.unit(x)
        gradient, buffer = torch.zeros_like(x), None
        gain = self.model.norm.weight.to(self.dtype)
        for part in self.walk.chunks(labels):
            u, y = unit[part], labels[part]
            chances, blocks = self.walk.logits(u, buffer)
            buffer = chances if buffer is None else buffer
            for block in blocks:
                torch.softmax(block, -1, out=block)  # float32 inside, whatever the precision
            if self.see is not None:
                self.see(HEAD, u * gain, chances)
            chances[torch.arange(len(y)), y] = 0.0
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
        assert self.chosen is not None and self.walk.head.contraction is not None
        found = self.walk.head.pair(self.walk.head.contraction.inward(unit), outer)
        own = torch.stack([(vector[labels] * hidden).sum(-1) for vector in self.chosen], -1)
        return found.addcmul_(own, others, value=-1.0)
