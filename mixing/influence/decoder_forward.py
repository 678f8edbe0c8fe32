"""Our decoder forward with its matrices made ready once, and the loss of each token: what a difference of losses needs.

The same numbers as `training.model.Decoder` with `training.losses`, up to rounding, in fewer passes over memory: no
graph, matrices folded and joined (mixing.influence.decoder_weights), attention in blocks
(mixing.influence.decoder_attention), logits turned into log-probabilities in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mixing.influence.contraction import Contraction
from mixing.influence.decoder_attention import KeptAttention, Rows, attend, shared_rows
from mixing.influence.decoder_weights import GROUPS, HEAD, Weights, head_weights, layer_weights
from mixing.influence.documents import IGNORED, RowBatch
from mixing.influence.scorers import Vectors
from training.chunked_logits import BLOCK_LOGITS_CPU, chunk_tokens
from training.fused_layer import LayerShape
from training.model import FUSED_MODULES, Decoder

# Tokens worked on at a time, for numbers of one byte: what is kept for the way back should stay in the caches, and the
# calls should be few. On a Zen 4, 4 layers of width 128 and 256: in bfloat16 2,048 take .95 and .97 of the time of
# 1,024, in float32 1.00 and 1.04.
PASS_BYTES = 4096


def rows_at_a_time(batch: RowBatch, dtype: torch.dtype) -> int:
    """How many rows of `batch` a pass with products in `dtype` takes at a time; all, if they are packed."""
    rows, tokens = batch.input_ids.shape
    return rows if batch.segments is not None else max(PASS_BYTES // dtype.itemsize // tokens, 1)


def unknown(model: Decoder) -> str:
    """Why the passes of this package cannot run `model`, or an empty string."""
    for module in model.layers.modules():
        if type(module) not in FUSED_MODULES or "forward" in vars(module):
            return f"a {type(module).__name__} that is not the decoder's own"
    if model.config.qk_norm == "rms_before_rope":
        return "norms of queries and keys with gains"
    if model.embed_tokens.weight.device.type != "cpu":
        return "a device other than the CPU"
    return ""


@dataclass
class Kept:
    """What one layer's way back needs; `inner` is kept of the inputs of each group of matrices."""

    unit1: Tensor
    scale1: Tensor
    attention: KeptAttention
    unit2: Tensor
    scale2: Tensor
    gate: Tensor
    up: Tensor
    silu: Tensor
    inner: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)


class DecoderForward:
    """The decoder with the parameters `own`, ready to run.

    own          : parameters by name, in the precision of the residual stream and of sums
    vectors      : k directions, for passes that go back; their `contractions` by group, see DecoderPass
    dtype        : of the matrix products
    """

    def __init__(
        self,
        model: Decoder,
        own: Mapping[str, Tensor],
        dtype: torch.dtype,
        vectors: Sequence[Vectors] = (),
        contractions: Mapping[str, Contraction] | None = None,
    ) -> None:
        config, contractions = model.config, contractions or {}
        self.model, self.dtype = model, dtype
        self.embedding = own["embed_tokens.weight"]
        self.wide = self.embedding.dtype
        self.shape = LayerShape(
            kv_heads=config.kv_heads,
            groups=config.heads // config.kv_heads,
            head_dim=config.head_dim,
            interleaved=True,  # the rows of queries and keys are ordered so
            normed=config.qk_norm == "l2_after_rope",
            eps=config.norm_eps,
            dtype=dtype,
        )
        self.layers = [
            {
                group: layer_weights(
                    model, own, index, group, vectors, contractions.get(f"layers.{index}.{group}"), dtype
                )
                for group in GROUPS
            }
            for index in range(config.layers)
        ]
        self.head = head_weights(model, own, vectors, contractions.get(HEAD), dtype)

    def shared(self, batch: RowBatch) -> Rows:
        """What the layers share."""
        return shared_rows(batch.positions, batch.segments, self.model.frequencies, self.wide, self.shape)

    def layer(
        self,
        flat: Tensor,
        weights: Mapping[str, Weights],
        shared: Rows,
        *,
        shares: bool = True,
        see: bool = False,
    ) -> tuple[Tensor, Kept]:
        """One layer over the residual stream [N, D].

        shares : keep those of attention, for the way back;  see : keep the inputs of the matrices
        """
        inner: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}

        def times(group: str, x: Tensor) -> Tensor:
            made, inner[group] = weights[group].forth(x)
            if see:
                inputs[group] = x
            return made

        unit1, scale1 = self.unit(flat)
        mixed, attention = attend(times("qkv", unit1), shared, self.shape, shares)
        middle = times("out", mixed) + flat
        unit2, scale2 = self.unit(middle)
        gate, up = times("in", unit2).chunk(2, -1)
        silu = F.silu(gate)
        middle += times("down", silu * up)
        return middle, Kept(unit1, scale1, attention, unit2, scale2, gate, up, silu, inner, inputs)

    def unit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x over its root mean square, and one over that, [N, 1]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (norm.square_() / x.shape[-1] + self.shape.eps).rsqrt_()
        return (x * scale).to(self.dtype), scale

    def chunks(self, labels: Tensor) -> list[slice] | list[Tensor]:
        """The labelled ones of all tokens, a chunk at a time: slices where all are labelled, which copy nothing."""
        size = chunk_tokens(None, self.head.matrix, self.dtype)
        where = (labels != IGNORED).nonzero()[:, 0]
        if len(where) == len(labels):
            return [slice(at, min(at + size, len(labels))) for at in range(0, len(labels), size)]
        return list(where.split(size))

    def logits(self, unit: Tensor, onto: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Logits [n, V] of a chunk, in memory that the next chunk may use again, and its blocks of tokens."""
        if onto is None:
            onto = unit.new_empty(len(unit), len(self.head.matrix))
        made = torch.mm(unit, self.head.matrix.T, out=onto[: len(unit)])
        return made, list(made.split(max(BLOCK_LOGITS_CPU // len(self.head.matrix), 1)))


class DecoderLosses:
    """Nats of every target [B, T], 0 on padding, of a decoder with the parameters `own`; rows of any length."""

    def __init__(self, model: Decoder, own: Mapping[str, Tensor]) -> None:
        wide = torch.promote_types(model.embed_tokens.weight.dtype, torch.float32)
        self.forward = DecoderForward(model, {n: p.to(wide) for n, p in own.items()}, wide)

    @torch.no_grad()
    def __call__(self, batch: RowBatch) -> Tensor:
        rows, step = len(batch.input_ids), rows_at_a_time(batch, self.forward.dtype)
        if rows > step:
            return torch.cat([self(batch.part(at, at + step)) for at in range(0, rows, step)])
        walk, shared = self.forward, self.forward.shared(batch)
        x = walk.embedding[batch.input_ids.flatten()]
        for weights in walk.layers:
            x, _ = walk.layer(x, weights, shared, shares=False)
        unit, _ = walk.unit(x)
        labels, buffer = batch.labels.flatten(), None
        losses = x.new_zeros(len(x))
        for part in walk.chunks(labels):
            logits, blocks = walk.logits(unit[part], buffer)
            buffer = logits if buffer is None else buffer
            for block in blocks:
                torch.log_softmax(block, -1, out=block)
            losses[part] = logits.gather(1, labels[part, None])[:, 0].neg_()
        return losses.view(batch.labels.shape)
