"""The ghost dot product: sum over layers of <output gradient, what the layer's output does along the
direction>.

For a layer y = f(x; w) the gradient of a loss L with respect to w, multiplied with v, is <dL/dy, (df/dw)
v>. A forward hook keeps x, a gradient hook receives dL/dy, and no gradient of a weight is ever made. For a
matrix (df/dw) v = x V', so one direction costs a forward pass, half a backward pass (no weight gradients)
and one product with V: (2 + k) F for k directions, 2 F and a little with low rank
(mixing.influence.low_rank). Norms and any other layer that owns
its parameters go through a forward-mode derivative of that layer alone, so they need not be known by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mixing.influence.adapters import CHUNK_LOGITS, DecoderAdapter, LossAdapter
from mixing.influence.contraction import Contraction
from mixing.influence.documents import RowBatch
from mixing.influence.scorers import UnknownLayerError, Vectors, weigh

# Called with (parameter's name, inputs [N, I], output gradients [N, O]) to learn what the hooks see.
See = Callable[[str, Tensor, Tensor], None]


def matrix_directions(adapter: LossAdapter, vectors: Sequence[Vectors]) -> dict[str, Tensor]:
    """Directions [k, O, I] of the weights of linear layers and of our decoder's output weight, by name."""
    own = adapter.named()
    names = {id(p): n for n, p in own.items()}
    linear = {names[id(m.weight)] for m in adapter.model.modules() if type(m) is nn.Linear}
    if isinstance(adapter, DecoderAdapter):
        linear.add(adapter.model.output_weight_name)
    return {
        name: torch.stack(
            [v[name].to(own[name]) if name in v else torch.zeros_like(own[name]) for v in vectors]
        )
        for name in sorted(linear)
        if any(name in v for v in vectors)
    }


class Ghost:
    """Hooks on every layer that owns a parameter of a direction. Rows must not share a batch row.

    contractions : for each matrix of `matrix_directions`, how <g, V x> is made; None: whole, which is exact
    Raises UnknownLayerError for parameters that no layer owns by itself, and for layers whose output is not
    one tensor with the batch as first axis.
    """

    packs = False

    def __init__(
        self,
        adapter: LossAdapter,
        directions: Sequence[Vectors],
        contractions: Mapping[str, Contraction] | None = None,
        see: See | None = None,
    ) -> None:
        self.adapter, self.count, self.see = adapter, len(directions), see
        self.name = "ghost" if contractions is None else "ghost_low_rank"
        own = adapter.named()
        names = {id(p): n for n, p in own.items()}
        self.names = {n for vectors in directions for n in vectors}
        self._vectors = [
            {n: v.to(device=own[n].device, dtype=own[n].dtype) for n, v in vectors.items()}
            for vectors in directions
        ]
        if contractions is None:
            whole = matrix_directions(adapter, directions)
            contractions = {name: Contraction(whole=v) for name, v in whole.items()}
        self.matrices = {n: c.cast(own[n].dtype) for n, c in contractions.items()}
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

    @property
    def forwards(self) -> float:
        """Forward, half a backward, and the products with the directions by their share of the work."""
        own = self.adapter.named()
        model = sum(own[n].numel() for n in self.matrices)
        return 2.0 + sum(m.products for m in self.matrices.values()) / max(model, 1)

    def rows(self, batch: RowBatch) -> Tensor:
        if batch.segments is not None:
            raise UnknownLayerError("hooks cannot tell documents of one row apart")
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
            self.values += self._products(layer, owned, args, kwargs, gradient.detach())

    def _products(
        self, layer: nn.Module, owned: dict[str, str], args: tuple, kwargs: dict, gradient: Tensor
    ) -> Tensor:
        """What one layer adds, float64 [B, k]."""
        ghost = self.ghost
        wide = torch.promote_types(gradient.dtype, torch.float32)
        if type(layer) is nn.Linear and args:
            found = torch.zeros_like(self.values)
            matrix = ghost.matrices.get(owned.get("weight", ""))
            if "weight" in owned and ghost.see is not None:
                ghost.see(owned["weight"], args[0].flatten(0, -2), gradient.flatten(0, -2))
            if matrix is not None:
                parts = matrix.pair(matrix.inward(args[0]), gradient)
                found += parts.flatten(1, -2).sum(1, dtype=torch.float64)
            if "bias" in owned:
                zero = torch.zeros_like(layer.bias)
                slopes = torch.stack([v.get(owned["bias"], zero) for v in ghost._vectors], -1).to(wide)
                found += gradient.flatten(1, -2).to(wide).sum(1).double() @ slopes.double()
            return found
        columns = [
            self._product(layer, owned, args, kwargs, gradient, vectors)
            .flatten(1)
            .sum(-1, dtype=torch.float64)
            for vectors in ghost._vectors
        ]
        return torch.stack(columns, -1)

    def _product(
        self,
        layer: nn.Module,
        owned: dict[str, str],
        args: tuple,
        kwargs: dict,
        gradient: Tensor,
        vectors: Vectors,
    ) -> Tensor:
        known = {local: name for local, name in owned.items() if name in vectors}
        if not known:  # another of the directions moves this layer
            return gradient.new_zeros(len(gradient), 1)
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if type(layer) is nn.Embedding and args and "weight" in known:
            return (F.embedding(args[0], vectors[known["weight"]]) * wide).sum(-1)
        return self._own_derivative(layer, known, vectors, args, kwargs) * wide

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
        matrix = self.ghost.matrices.get(name)
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
            if self.ghost.see is not None:
                self.ghost.see(name, h, slope)
            if matrix is not None:
                self.values.index_add_(0, rows, matrix.pair(matrix.inward(h), slope).double())
        return gradient
