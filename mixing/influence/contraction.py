"""<g, V x> for many tokens and several directions V of one matrix at a time, whole or of low rank.

With k directions V_1 ... V_k of a matrix [O, I], inputs x and output gradients g of N tokens, the whole products
cost k N O I. Written as V_j ~ left core_j right with left [O, s], core_j [s, r] and right [r, I] shared by the
directions (a Tucker decomposition), all k of them cost N (r I + s O + k r s): the directions of several probes
at one checkpoint have much in common, so that r and s grow slowly with k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Contraction:
    """k directions of a matrix. Either `whole` [k, O, I], or `right` [r, I], `left` [O, s], `core` [k, s, r].

    `core` None stands for one direction whose core is the identity.
    """

    whole: Tensor | None = None
    right: Tensor | None = None
    left: Tensor | None = None
    core: Tensor | None = None

    @property
    def products(self) -> int:
        """Multiplications for each token."""
        if self.whole is not None:
            return self.whole.numel()
        assert self.right is not None and self.left is not None
        return self.right.numel() + self.left.numel() + (0 if self.core is None else self.core.numel())

    def inward(self, x: Tensor) -> Tensor:
        """What is kept of the inputs [..., I] for `pair`: [..., r]; the inputs themselves when whole."""
        return x if self.right is None else F.linear(x, self.right)

    def pair(self, kept: Tensor, gradient: Tensor) -> Tensor:
        """<gradient, V_j x> of each token, [..., k], from what `inward` kept of x and [..., O] gradients."""
        wide = torch.promote_types(kept.dtype, torch.float32)
        if self.whole is not None:
            parts = [(F.linear(kept, v) * gradient).sum(-1, dtype=wide) for v in self.whole]
            return torch.stack(parts, -1)
        assert self.left is not None
        return self.join(kept, gradient @ self.left)

    def join(self, inner: Tensor, outer: Tensor) -> Tensor:
        """`pair` of what is left of both sides: [..., r] and [..., s] to [..., k]."""
        wide = torch.promote_types(inner.dtype, torch.float32)
        if self.core is None:
            return (inner * outer).sum(-1, dtype=wide)[..., None]
        turned = torch.einsum("...s,ksr->...kr", outer.to(wide), self.core)
        return (turned @ inner.to(wide)[..., None])[..., 0]

    def apply(self, x: Tensor) -> Tensor:
        """V_j x of every direction: [..., I] to [..., k, O]."""
        if self.whole is not None:
            return torch.einsum("koi,...i->...ko", self.whole, x)
        assert self.right is not None and self.left is not None
        inner = F.linear(x, self.right)
        turned = (
            inner[..., None, :] if self.core is None else torch.einsum("...r,ksr->...ks", inner, self.core)
        )
        return turned @ self.left.T

    def turned(self, order: Tensor | None, scale: Tensor | None) -> Contraction:
        """For outputs that come in another order [O] of rows, and times `scale` [O]."""

        def rows(part: Tensor | None, dim: int) -> Tensor | None:
            if part is None:
                return None
            part = part if order is None else part.index_select(dim, order)
            return part if scale is None else part * scale.view(-1, 1)

        return Contraction(rows(self.whole, 1), self.right, rows(self.left, 0), self.core)

    def cast(self, dtype: torch.dtype, gain: Tensor | None = None) -> Contraction:
        """For products in `dtype`; `gain` [I] multiplies the inputs, which then come without it."""

        def narrow(part: Tensor | None, gained: bool = False) -> Tensor | None:
            if part is None:
                return None
            return (part * gain if gained and gain is not None else part).to(dtype).contiguous()

        core = self.core if self.core is None else self.core.to(torch.promote_types(dtype, torch.float32))
        return Contraction(narrow(self.whole, True), narrow(self.right, True), narrow(self.left), core)
