"""Each document's gradient of one parameter as products of what a layer read and what came back to it.

For y = W x the gradient of document i is sum_t g_t x_t' over its tokens, for an embedding sum_t e(id_t) g_t'. With
such factors its square is sum_ts (g_t . g_s)(x_t . x_s), its product with V is sum_t g_t' V x_t, and a weighted
sum over documents is one product of matrices: no gradient of a document is needed. A parameter that is used twice
(tied weights) has the factors of both uses, and their cross terms count. Norms, biases and layers of other kinds
give their small gradients of each document whole.

Squares and products by factors cost T (I + O) + k I O multiplications for each token and k directions; the gradient
of this one parameter and document, made and dropped again, costs I O and is then read k + 1 times. The second is
taken where it is less, which is for long documents; it never needs more memory than one direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp
from transformers.pytorch_utils import Conv1D

from mixing.influence.adapters import DecoderAdapter, LossAdapter
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import UnknownLayerError, weigh

READING = 16  # multiplications that take as long as one number read from memory
MOST_WHOLE = 1 << 26  # numbers of whole gradients that a batch may hold


@dataclass
class DocumentGradients:
    """The gradients of B documents with respect to one parameter.

    uses  : factors (left [B, T, O] or token ids [B, T], right [B, T, I]); the gradient of a document is the sum over
            uses and tokens of left right'
    whole : [B, ...], added to them
    """

    uses: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    whole: Tensor | None = None

    def measure(
        self, vectors: Sequence[Tensor | None], like: Tensor, by_factors: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Squares [B] and products with each of k vectors [B, k], float64; `by_factors` overrules the choice."""
        if self.whole is not None:
            if self.uses:
                raise UnknownLayerError("a parameter is used by layers of different kinds")
            flat = self.whole.flatten(1).double()
            columns = [
                flat.new_zeros(len(flat)) if v is None else flat @ v.flatten().double() for v in vectors
            ]
            return flat.square().sum(1), torch.stack(columns, -1)
        if by_factors is None:
            by_factors = self._factors_cost_less(len(vectors), like)
        return self._by_factors(vectors) if by_factors else self._one_by_one(vectors, like)

    def _factors_cost_less(self, count: int, like: Tensor) -> bool:
        dense = [left for left, _ in self.uses if left.is_floating_point()]
        if not dense:
            return True
        return factors_cost_less(dense[0].shape[1], count, like)

    def _by_factors(self, vectors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        squares = torch.zeros(len(self.uses[0][1]), dtype=torch.float64, device=self.uses[0][1].device)
        for at, (left, right) in enumerate(self.uses):
            for other, (left2, right2) in enumerate(self.uses[: at + 1]):
                pairs = _overlap(left, left2) * (right @ right2.transpose(1, 2))
                squares += pairs.sum((1, 2), dtype=torch.float64) * (1.0 if other == at else 2.0)
        products = squares.new_zeros(len(squares), len(vectors))
        for left, right in self.uses:
            for k, v in enumerate(vectors):
                if v is None:
                    continue
                v = v.to(right)
                parts = v[left] * right if not left.is_floating_point() else (right @ v.T) * left
                products[:, k] += parts.sum((1, 2), dtype=torch.float64)
        return squares, products

    def _one_by_one(self, vectors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.uses[0][1])
        squares = torch.zeros(count, dtype=torch.float64, device=like.device)
        products = squares.new_zeros(count, len(vectors))
        for at in range(count):
            gradient = self._of(at, like)
            squares[at] = torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
            for k, v in enumerate(vectors):
                if v is not None:
                    products[at, k] = (gradient * v.to(gradient)).sum(dtype=torch.float64)
        return squares, products

    def _of(self, at: int, like: Tensor) -> Tensor:
        """The gradient of one document."""
        total: Tensor | None = None
        for left, right in sorted(self.uses, key=lambda use: not use[0].is_floating_point()):
            if left.is_floating_point():
                total = left[at].T @ right[at] if total is None else total.addmm_(left[at].T, right[at])
            else:
                total = right.new_zeros(like.shape) if total is None else total
                total.index_add_(0, left[at], right[at])
        assert total is not None
        return total

    def subtract(self, into: Sequence[Tensor | None], factors: Tensor) -> None:
        """into[k] -= sum_i factors[i, k] gradient_i."""
        targets = [(t, factors[:, k]) for k, t in enumerate(into) if t is not None]
        if self.whole is not None:
            for target, weight in targets:
                part = weight.to(self.whole) @ self.whole.flatten(1)
                target.sub_(part.view(target.shape).to(target))
            return
        for left, right in self.uses:
            if not left.is_floating_point():
                for target, weight in targets:
                    part = right * weight.to(right)[:, None, None]
                    target.index_add_(0, left.flatten(), part.flatten(0, 1).to(target), alpha=-1)
            elif left.shape[1] * (len(targets) - 1) < READING * len(targets):
                for target, weight in targets:
                    part = (left * weight.to(left)[:, None, None]).flatten(0, 1)
                    target.sub_((part.T @ right.flatten(0, 1)).to(target))
            else:
                for at in range(len(left)):
                    gradient = left[at].T @ right[at]
                    for target, weight in targets:
                        target.sub_(gradient.to(target), alpha=float(weight[at]))


def factors_cost_less(tokens: float, count: int, like: Tensor) -> bool:
    """Whether squares and products with `count` directions cost less by factors, for a document of so many tokens."""
    factors = tokens * tokens * sum(like.shape) + count * tokens * like.numel()
    return factors < tokens * like.numel() + READING * (count + 1) * like.numel()


def _overlap(left: Tensor, other: Tensor) -> Tensor:
    """left_t . other_s of each document, [B, T, S]; token ids stand for unit vectors."""
    if left.is_floating_point() and other.is_floating_point():
        return left @ other.transpose(1, 2)
    if left.is_floating_point():
        return left.gather(2, other[:, None, :].expand(-1, left.shape[1], -1))
    if other.is_floating_point():
        return _overlap(other, left).transpose(1, 2)
    return left[:, :, None] == other[:, None, :]


class LayerGradients:
    """Hooks that gather `DocumentGradients` of the parameters `names` for a batch of one document a row.

    Raises UnknownLayerError for parameters that no layer owns by itself or whose layer gives something else than
    one tensor with the batch as first axis; then there are the gradients themselves (`document_gradients`).
    """

    def __init__(self, adapter: LossAdapter, names: Sequence[str]) -> None:
        self.adapter, self.names = adapter, set(names)
        by_id = {id(p): n for n, p in adapter.named().items()}
        self._layers: list[tuple[nn.Module, dict[str, str]]] = []
        for layer in adapter.model.modules():
            owned = {local: by_id[id(p)] for local, p in layer.named_parameters(recurse=False)}
            owned = {local: name for local, name in owned.items() if name in self.names}
            if owned and next(layer.children(), None) is not None:
                raise UnknownLayerError(f"{type(layer).__name__} owns parameters and has layers")
            if owned:
                self._layers.append((layer, owned))

    def visit(self, batch: RowBatch) -> dict[str, DocumentGradients]:
        """One forward pass and half a backward; gradients are those of each document's weighted loss."""
        found: dict[str, DocumentGradients] = {}
        handles = [
            layer.register_forward_hook(self._hook(found, owned, batch), with_kwargs=True)
            for layer, owned in self._layers
        ]
        try:
            with torch.enable_grad():
                if isinstance(self.adapter, DecoderAdapter):
                    hidden = self.adapter.hidden(batch)
                    hidden.backward(self._head(found, hidden.detach(), batch))
                else:
                    weigh(self.adapter(batch), batch).sum().backward()
        finally:
            for handle in handles:
                handle.remove()
        if missing := self.names - found.keys():
            raise UnknownLayerError(f"no layer of its own used {', '.join(sorted(missing))}")
        return found

    @torch.no_grad()
    def _head(self, found: dict[str, DocumentGradients], hidden: Tensor, batch: RowBatch) -> Tensor:
        """Gradient with respect to the hidden states of our decoder, whose loss is not a layer."""
        model: Any = self.adapter.model
        weight = model.output_weight
        slope = F.linear(hidden, weight)
        slope = slope.to(torch.promote_types(slope.dtype, torch.float32)).softmax(-1)
        slope.scatter_add_(2, batch.labels.clamp(min=0)[..., None], -torch.ones_like(slope[..., :1]))
        slope *= (batch.labels >= 0)[..., None] * batch.weights[:, None, None].to(slope.dtype)
        if model.output_weight_name in self.names:
            found.setdefault(model.output_weight_name, DocumentGradients()).uses.append(
                (slope, hidden.to(slope.dtype))
            )
        return slope.to(weight.dtype) @ weight

    def _hook(self, found: dict[str, DocumentGradients], owned: dict[str, str], batch: RowBatch) -> Any:
        def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if not isinstance(output, Tensor) or output.shape[0] != len(batch.documents):
                raise UnknownLayerError(
                    f"the output of {type(layer).__name__} is not one row for each document"
                )
            if not output.requires_grad:
                output.requires_grad_(True)
            kept = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
            named = {n: a.detach() if isinstance(a, Tensor) else a for n, a in kwargs.items()}
            output.register_hook(lambda g: _gather(found, layer, owned, kept, named, g.detach()))

        return hook


@torch.no_grad()
def _gather(
    found: dict[str, DocumentGradients],
    layer: nn.Module,
    owned: dict[str, str],
    args: tuple,
    kwargs: dict,
    gradient: Tensor,
) -> None:
    """Add what one use of a layer gives its parameters."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    own = {local: found.setdefault(name, DocumentGradients()) for local, name in owned.items()}
    x = args[0] if args and isinstance(args[0], Tensor) else None
    rows = x is not None and x.shape[:2] == gradient.shape[:2] and gradient.dim() == 3
    g = gradient.to(wide)
    if x is not None and rows and type(layer) is nn.Linear:
        if "weight" in own:
            own["weight"].uses.append((g, x.to(wide)))
        if "bias" in own:
            _add_whole(own["bias"], g.sum(1))
    elif x is not None and rows and type(layer) is Conv1D:  # y = x W + b
        if "weight" in own:
            own["weight"].uses.append((x.to(wide), g))
        if "bias" in own:
            _add_whole(own["bias"], g.sum(1))
    elif x is not None and rows and type(layer) is nn.Embedding and not layer.scale_grad_by_freq:
        if layer.padding_idx is not None:  # torch makes no gradient of its row
            g = g * (x != layer.padding_idx)[..., None]
        own["weight"].uses.append((x, g))
    else:
        if sum(dict(layer.named_parameters())[n].numel() for n in owned) * len(gradient) > MOST_WHOLE:
            raise UnknownLayerError(f"{type(layer).__name__} is too large to be differentiated by itself")
        for local, part in _own_gradients(layer, owned, args, kwargs, gradient).items():
            _add_whole(own[local], part.to(wide))


def _add_whole(entry: DocumentGradients, part: Tensor) -> None:
    entry.whole = part if entry.whole is None else entry.whole + part


def _own_gradients(
    layer: nn.Module, owned: dict[str, str], args: tuple, kwargs: dict, gradient: Tensor
) -> dict[str, Tensor]:
    """Gradients [B, ...] of the parameters of a layer of any kind, by one backward of that layer a document."""
    at = {local: p.detach() for local, p in layer.named_parameters(recurse=False) if local in owned}
    apply = type(layer).forward  # without hooks

    def run(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(
            _Bare(layer, apply), {f"layer.{n}": w for n, w in weights.items()}, args, kwargs
        )

    back = vjp(run, at)[1]
    parts = []
    for row in range(len(gradient)):
        only = torch.zeros_like(gradient)
        only[row] = gradient[row]
        parts.append(back(only)[0])
    return {local: torch.stack([p[local] for p in parts]) for local in at}


class _Bare(nn.Module):
    """A layer called past its hooks."""

    def __init__(self, layer: nn.Module, apply: Any) -> None:
        super().__init__()
        self.layer, self.apply_layer = layer, apply

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.apply_layer(self.layer, *args, **kwargs)
