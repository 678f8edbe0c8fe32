"""Our decoder's matrices as its pass for scores multiplies with them: folded, joined, with the directions beside.

Four things are done once for a checkpoint and not in every batch, none of which changes a value:

* matrices that read one input are one (queries, keys and values; gate and up), the gain of the norm before them
  is folded in, and the scale of attention into the rows of the queries;
* rows of queries and keys are put in the order in which the rotation's pairs are neighbours;
* the bases of directions of low rank stand beside the matrix, so that one product gives W x and what is kept of x,
  and another W' g and what is kept of g. Alone they are thin products, which a processor is slow at: for rank 8 at
  width 256 they took 6 % of a pass, beside the matrices a sixth of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixing.influence.contraction import Contraction
from mixing.influence.scorers import Vectors
from training.model import Decoder, ModelConfig

# Group of matrices that read one input -> the parameters whose rows it stacks.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "in": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
NORMS = {"qkv": "input_layernorm", "in": "post_attention_layernorm"}
HEAD = "head"
# Columns beside a matrix come in whole vectors of the processor: 16 more cost a product 3 %, 17 more 30 %.
VECTOR = 16


class Weights:
    """One group of matrices y = W x, [O, I], and the directions V_j of it.

    order, scale : the rows of y are rows `order` of W's own, times `scale`; None = as they are
    slopes       : [k, O], directions of the bias;  gains : [k + 1, I], directions of the norm's gain over the gain,
                   last row 1 / I
    counted      : `back` also gives the sum over the rows of its argument (the head's probabilities)
    """

    def __init__(
        self,
        matrix: Tensor,
        bias: Tensor | None,
        contraction: Contraction | None,
        gain: Tensor | None,
        slopes: Tensor,
        gains: Tensor,
        dtype: torch.dtype,
        *,
        order: Tensor | None = None,
        scale: Tensor | None = None,
        counted: bool = False,
    ) -> None:
        self.order, self.scale, self.gains = order, scale, gains
        self.outputs, self.inputs = matrix.shape
        folded = matrix if gain is None else matrix * gain
        bias, slopes = (None if bias is None else self._turned(bias)), self._turned(slopes.T).T
        self.slopes = slopes.to(dtype).contiguous()
        self.contraction = None
        right = left = 0
        if contraction is not None:
            self.contraction = contraction.turned(order, scale).cast(dtype, gain)
            if self.contraction.right is not None and self.contraction.left is not None:
                right, left = len(self.contraction.right), self.contraction.left.shape[1]
        self.bases, self.counted = (0 if counted else right, left), counted
        # One block of memory: [[W, left, ones], [right, 0]]; the products read its upper and its left part.
        rows = self.outputs + _vectors(self.bases[0])
        block = torch.zeros(rows, self.inputs + _vectors(left + counted), dtype=dtype)
        block[: self.outputs, : self.inputs] = self._turned(folded)
        if self.contraction is not None and left:
            assert self.contraction.right is not None and self.contraction.left is not None
            block[: self.outputs, self.inputs : self.inputs + left] = self.contraction.left
            if self.bases[0]:
                block[self.outputs : self.outputs + right, : self.inputs] = self.contraction.right
        if counted:
            block[: self.outputs, self.inputs + left] = 1.0
        self.forward_matrix, self.backward_matrix = block[:, : self.inputs], block[: self.outputs]
        self.matrix = block[: self.outputs, : self.inputs]
        self.bias = None
        if bias is not None:
            self.bias = F.pad(bias, (0, rows - self.outputs)).to(dtype)

    def _turned(self, rows: Tensor) -> Tensor:
        rows = rows if self.order is None else rows[self.order]
        return rows if self.scale is None else rows * self.scale.view(-1, *[1] * (rows.dim() - 1))

    def forth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """W x [N, O], and what is kept of x for `pair`."""
        made = F.linear(x, self.forward_matrix, self.bias)
        end = self.outputs + self.bases[0]
        return made[:, : self.outputs], made[:, self.outputs : end] if self.bases[0] else x

    def back(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """W' g [N, I], what is kept of g for `pair`, and, if counted, the sums of g [N, 1]."""
        made = gradient @ self.backward_matrix
        end = self.inputs + self.bases[1]
        return (
            made[:, : self.inputs],
            made[:, self.inputs : end] if self.bases[1] else gradient,
            made[:, end : end + 1] if self.counted else None,
        )

    def pair(self, inner: Tensor, outer: Tensor) -> Tensor:
        """<g, V_j x> of each token, [N, k], from what `forth` and `back` kept."""
        assert self.contraction is not None
        if self.contraction.whole is not None:
            return self.contraction.pair(inner, outer)
        return self.contraction.join(inner, outer)

    def own_order(self, gradient: Tensor) -> Tensor:
        """The gradient [N, O] of W x as W has its rows."""
        scaled = gradient if self.scale is None else gradient * self.scale
        return scaled if self.order is None else scaled[:, self.order.argsort()]


def _vectors(count: int) -> int:
    return -(-count // VECTOR) * VECTOR


def group_directions(model: Decoder, vectors: Sequence[Vectors]) -> dict[str, Tensor]:
    """Directions [k, O, I] of each group of matrices that any of them moves, zeros where one does not.

    Names are `layers.<n>.<group>`; the output weight is `head`.
    """
    own = dict(model.named_parameters())
    found = {}
    for index in range(model.config.layers):
        for group, parts in GROUPS.items():
            names = [f"layers.{index}.{part}.weight" for part in parts]
            if any(n in v for v in vectors for n in names):
                found[f"layers.{index}.{group}"] = torch.stack(
                    [torch.cat([part_of(v, n, own[n]) for n in names]) for v in vectors]
                )
    name = model.output_weight_name
    if any(name in v for v in vectors):
        found[HEAD] = torch.stack([part_of(v, name, own[name]) for v in vectors])
    return found


def part_of(vectors: Vectors, name: str, like: Tensor) -> Tensor:
    """One parameter's part of a direction in float64, zeros where it is not moved."""
    return (
        vectors[name].to(like.device, torch.float64)
        if name in vectors
        else like.new_zeros(like.shape).double()
    )


def layer_weights(
    model: Decoder,
    own: Mapping[str, Tensor],
    index: int,
    group: str,
    vectors: Sequence[Vectors],
    contraction: Contraction | None,
    dtype: torch.dtype,
) -> Weights:
    """One group of a layer; `own` are the model's parameters in the precision of sums."""
    prefix = f"layers.{index}."
    parts = [prefix + part for part in GROUPS[group]]
    gain_name = prefix + NORMS[group] + ".weight" if group in NORMS else None
    matrix = torch.cat([own[f"{p}.weight"] for p in parts])
    biased = f"{parts[0]}.bias" in own
    slopes = matrix.new_zeros(len(vectors) if biased else 0, len(matrix))
    for k, v in enumerate(vectors if biased else ()):
        slopes[k] = torch.cat([part_of(v, f"{p}.bias", own[f"{p}.bias"]) for p in parts])
    order, scale = rotated_rows(model.config, matrix) if group == "qkv" else (None, None)
    return Weights(
        matrix,
        torch.cat([own[f"{p}.bias"] for p in parts]) if biased else None,
        contraction,
        None if gain_name is None else own[gain_name],
        slopes,
        gain_directions(own, gain_name, vectors),
        dtype,
        order=order,
        scale=scale,
    )


def head_weights(
    model: Decoder,
    own: Mapping[str, Tensor],
    vectors: Sequence[Vectors],
    contraction: Contraction | None,
    dtype: torch.dtype,
) -> Weights:
    """The output weight with the last norm's gain."""
    matrix = own[model.output_weight_name]
    none = matrix.new_zeros(0, len(matrix))
    gains = gain_directions(own, "norm.weight", vectors)
    return Weights(matrix, None, contraction, own["norm.weight"], none, gains, dtype, counted=True)


def gain_directions(own: Mapping[str, Tensor], name: str | None, vectors: Sequence[Vectors]) -> Tensor:
    """[k + 1, I]: each direction of a norm's gain over the gain, and 1 / I."""
    if name is None:
        return torch.zeros(0, 0)
    gain = own[name]
    rows = [(part_of(v, name, gain) / gain.double()).to(gain.dtype) for v in vectors]
    return torch.stack([*rows, torch.full_like(gain, 1.0 / len(gain))])


def rotated_rows(config: ModelConfig, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Order and scale of the rows of queries, keys and values.

    Pairs of the rotation become neighbours; attention's 1 / sqrt(head dimension) is put into the queries, where no
    norm comes between.
    """
    turned, size = config.heads + config.kv_heads, config.head_dim
    rows = (turned + config.kv_heads) * size
    order = None
    if config.rope_style != "interleaved":
        order = torch.arange(rows)
        pairs = order[: turned * size].view(turned, 2, size // 2).transpose(1, 2)
        order = torch.cat([pairs.flatten(), order[turned * size :]])
    scale = None
    if config.qk_norm != "l2_after_rope":
        scale = like.new_ones(rows)
        scale[: config.heads * size] = size**-0.5
    return order, scale
