"""The ghost dot product: sum over layers of <output gradient, what the layer's output does along the
direction>.

For a layer y = f(x; w) the gradient of a loss L with respect to w, multiplied with v, is <dL/dy, (df/dw)
v>. A forward hook keeps x, a gradient hook receives dL/dy, and no gradient of a weight is ever made. For a
matrix (df/dw) v = x V', so one direction costs a forward pass, half a backward pass (no weight gradients)
and one product with V: 3 F exact, 2 F and a little with V of low rank. Norms and any other layer that owns
its parameters go through a forward-mode derivative of that layer alone, so they need not be known by kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mixing.influence.adapters import CHUNK_LOGITS, DecoderAdapter, LossAdapter
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import UnknownLayerError, Vectors, weigh


@dataclass(frozen=True)
class Matrix:
    """A direction V [O, I] of a weight, whole or as left [O, r] @ right [r, I]."""

    whole: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def pair(self, gradient: Tensor, x: Tensor) -> Tensor:
        """<gradient, V x> along the last axis: [..., O] and [..., I] to [...]."""
        if self.left is None or self.right is None:
            return (F.linear(x, self.whole) * gradient).sum(-1, dtype=torch.float64)
        return (F.linear(x, self.right) * (gradient @ self.left)).sum(-1, dtype=torch.float64)

    def apply(self, x: Tensor) -> Tensor:
        """V x along the last axis: [..., I] to [..., O]."""
        if self.left is None or self.right is None:
            return F.linear(x, self.whole)
        return F.linear(F.linear(x, self.right), self.left)


def low_rank(matrix: Tensor, energy: float) -> Matrix:
    """The smallest rank that keeps the share `energy` of the squared norm; whole if that saves nothing."""
    rows, columns = matrix.shape
    tall = rows >= columns
    wide = matrix.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    kept = values.clamp(min=0).flip(0).cumsum(0)
    rank = int((kept < energy * kept[-1]).sum()) + 1
    if rank * (rows + columns) > 0.5 * rows * columns:
        return Matrix(matrix)
    basis = vectors[:, -rank:]
    left, right = (wide @ basis, basis.T) if tall else (basis, basis.T @ wide)
    return Matrix(matrix, left.to(matrix.dtype).contiguous(), right.to(matrix.dtype).contiguous())


class Ghost:
    """Hooks on every layer that owns a parameter of a direction. Rows must not share a batch row.

    energy : None keeps the directions whole (exact); a share such as 0.999 replaces each matrix by the
             lowest rank that keeps that share of its squared norm
    Raises UnknownLayerError for parameters that no layer owns by itself, and for layers whose output is not
    one tensor with the batch as first axis.
    """

    def __init__(
        self, adapter: LossAdapter, directions: Sequence[Vectors], energy: float | None = None
    ) -> None:
        self.adapter, self.energy, self.count = adapter, energy, len(directions)
        self.name = "ghost" if energy is None else "ghost_low_rank"
        own = adapter.named()
        names = {id(p): n for n, p in own.items()}
        self.names = {n for vectors in directions for n in vectors}
        self._vectors = [
            {n: v.to(device=own[n].device, dtype=own[n].dtype) for n, v in vectors.items()}
            for vectors in directions
        ]
        self._matrices: list[dict[str, Matrix]] = [
            {n: self._matrix(v) for n, v in vectors.items() if v.dim() == 2} for vectors in self._vectors
        ]
        self._layers: list[tuple[nn.Module, dict[str, str]]] = []
        for layer in adapter.model.modules():
            owned = {local: names[id(p)] for local, p in layer.named_parameters(recurse=False)}
            owned = {local: name for local, name in owned.items() if name in self.names}
            if not owned:
                continue
            if next(layer.children(), None) is not None:
                raise UnknownLayerError(
                    f"{type(layer).__name__} owns {', '.join(owned.values())} and has layers"
                )
            self._layers.append((layer, owned))

    def _matrix(self, vector: Tensor) -> Matrix:
        return Matrix(vector) if self.energy is None else low_rank(vector, self.energy)

    @property
    def forwards(self) -> float:
        """Forward, half a backward, and the products with the directions by their share of the work."""
        whole = sum(m.whole.numel() for ms in self._matrices for m in ms.values())
        if whole == 0:
            return 2.0 + self.count
        used = sum(
            m.whole.numel() if m.left is None or m.right is None else m.left.numel() + m.right.numel()
            for ms in self._matrices
            for m in ms.values()
        )
        return 2.0 + self.count * used / whole

    def rows(self, batch: RowBatch) -> Tensor:
        run = _Run(self, batch)
        handles = [
            layer.register_forward_hook(run.hook(owned), with_kwargs=True) for layer, owned in self._layers
        ]
        try:
            with torch.enable_grad():
                if isinstance(self.adapter, DecoderAdapter):
                    hidden = self.adapter.hidden(batch)
                    hidden.backward(run.head(self.adapter, hidden.detach()))
                else:
                    weigh(self.adapter(batch), batch).sum().backward()
        finally:
            for handle in handles:
                handle.remove()
        missing = self.names - run.seen
        if missing:
            raise UnknownLayerError(f"no layer of its own used {', '.join(sorted(missing))}")
        return run.values


class _Run:
    """One batch: what the hooks have gathered so far, float64 [B, k]."""

    def __init__(self, ghost: Ghost, batch: RowBatch) -> None:
        self.ghost, self.batch = ghost, batch
        self.values = torch.zeros(
            len(batch.documents), ghost.count, dtype=torch.float64, device=batch.input_ids.device
        )
        self.seen: set[str] = set()
        self.inside = False

    def hook(self, owned: dict[str, str]) -> Any:
        """A forward hook that asks the layer's output for its gradient."""

        def forward_hook(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if self.inside:  # the layer is being differentiated by itself
                return
            if not isinstance(output, Tensor) or output.shape[0] != len(self.batch.documents):
                raise UnknownLayerError(
                    f"the output of {type(layer).__name__} is not one row for each sequence"
                )
            self.seen.update(owned.values())
            if not output.requires_grad:  # weights ask for no gradient, so the graph starts here
                output.requires_grad_(True)
            args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
            kwargs = {n: a.detach() if isinstance(a, Tensor) else a for n, a in kwargs.items()}
            output.register_hook(lambda gradient: self._add(layer, owned, args, kwargs, gradient))

        return forward_hook

    def _add(
        self, layer: nn.Module, owned: dict[str, str], args: tuple, kwargs: dict, gradient: Tensor
    ) -> None:
        with torch.no_grad():
            for k in range(self.ghost.count):
                product = self._product(layer, owned, args, kwargs, gradient.detach(), k)
                self.values[:, k] += product.flatten(1).sum(-1, dtype=torch.float64)

    def _product(
        self, layer: nn.Module, owned: dict[str, str], args: tuple, kwargs: dict, gradient: Tensor, k: int
    ) -> Tensor:
        vectors, matrices = self.ghost._vectors[k], self.ghost._matrices[k]
        known = {local: name for local, name in owned.items() if name in vectors}
        if not known:  # another of the directions moves this layer
            return gradient.new_zeros(len(gradient), 1)
        if type(layer) is nn.Linear and args:
            total = gradient.new_zeros(gradient.shape[:-1], dtype=torch.float64)
            if "weight" in known:
                total = matrices[known["weight"]].pair(gradient, args[0])
            if "bias" in known:
                total = total + gradient.double() @ vectors[known["bias"]].double()
            return total
        if type(layer) is nn.Embedding and args and "weight" in known:
            return (F.embedding(args[0], vectors[known["weight"]]) * gradient).sum(-1, dtype=torch.float64)
        return self._own_derivative(layer, known, vectors, args, kwargs) * gradient

    def _own_derivative(
        self, layer: nn.Module, known: dict[str, str], vectors: Vectors, args: tuple, kwargs: dict
    ) -> Tensor:
        """(df/dw) v of a layer of any kind."""
        own = dict(layer.named_parameters(recurse=False))
        at = {local: own[local].detach() for local in known}
        tangents = {local: vectors[name] for local, name in known.items()}
        self.inside = True
        try:
            return jvp(lambda w: functional_call(layer, w, args, kwargs), (at,), (tangents,))[1]
        finally:
            self.inside = False

    @torch.no_grad()
    def head(self, adapter: DecoderAdapter, hidden: Tensor) -> Tensor:
        """Gradient of the loss with respect to the hidden states [B, T, D]; adds the output weight's own
        part.

        With p the softmax and y the label of a token, dL/dz = p - onehot(y); <dL/dz, V h> for its chunk of
        tokens.
        """
        name, weight = adapter.model.output_weight_name, adapter.model.output_weight
        self.seen.add(name)
        gradient = torch.zeros_like(hidden)
        where = (self.batch.labels >= 0).nonzero()
        step = max(1, CHUNK_LOGITS // weight.shape[0])
        for rows, columns in (part.unbind(-1) for part in where.split(step)):
            h, y = hidden[rows, columns], self.batch.labels[rows, columns]
            logits = F.linear(h, weight)
            slope = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
            slope[torch.arange(len(y), device=y.device), y] -= 1.0
            slope = (slope * self.batch.weights[rows, None].to(slope.dtype)).to(weight.dtype)
            gradient[rows, columns] = slope @ weight
            for k in range(self.ghost.count):
                if name in self.ghost._matrices[k]:
                    self.values[:, k].index_add_(0, rows, self.ghost._matrices[k][name].pair(slope, h))
        return gradient
