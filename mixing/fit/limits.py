"""The mixtures that the limits allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixing.fit.search import Simplex
from mixing.projection import share_bounds


def allowed_mixtures(
    sources: Sequence[str],
    *,
    available_tokens: Mapping[str, float] | None = None,
    budget_tokens: int | None = None,
    max_epochs: float | None = None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Simplex:
    """Least and greatest share of each source; limits as in `mixing.projection`. Epochs count with a budget only."""
    bounds = share_bounds(
        tuple(sources),
        budget_tokens=1 if budget_tokens is None else budget_tokens,
        available_tokens=available_tokens,
        max_epochs=max_epochs if budget_tokens is not None else None,
        minimum=minimum,
        maximum=maximum,
        fixed=fixed,
    )
    return Simplex(
        tuple(sources), *(np.array([b[name] for name in sources]) for b in (bounds.low, bounds.high))
    )
