"""From leave-one-out deltas to weights: one rule for measured tables, bootstrap draws and anybody's runs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from curation.errors import RecipeError

Scale = Literal["none", "capability"]


def weights_from_deltas(deltas: np.ndarray, *, shrink: float, scale: Scale) -> np.ndarray:
    """`loo_weights` for tables of deltas [..., sources, capabilities] -> weights [..., sources]."""
    if not 0 <= shrink <= 1:
        raise RecipeError(f"A shrinkage of {shrink} is not possible", where="shrink", remedy="Choose 0 to 1")
    if scale == "capability":
        size = np.sqrt(np.square(deltas).mean(axis=-2, keepdims=True))
        deltas = deltas / np.where(size > 0, size, 1.0)
    positive = np.maximum(deltas.mean(axis=-1), 0.0)
    total = positive.sum(axis=-1, keepdims=True)
    uniform = np.full_like(positive, 1 / positive.shape[-1])
    wanted = np.where(total > 0, positive / np.where(total > 0, total, 1.0), uniform)
    return shrink * uniform + (1 - shrink) * wanted
