"""The posterior as one of the methods of `mixing.fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixing.fit.search import Simplex
from mixing.fit.surrogate import Proposal
from mixing.fit.tables import ProxyTable
from mixing.posterior.evidence import Effects, Influence
from mixing.posterior.fit import fit_posterior
from mixing.posterior.recommend import Recommendation, recommend
from mixing.posterior.scale import InfluenceScale, influence_scales


def propose_posterior(
    table: ProxyTable,
    objective: np.ndarray,
    simplex: Simplex,
    seed: int = 0,
    *,
    loo: Effects | None = None,
    influence: Influence | Sequence[Influence] = (),
    epsilon: float | None = None,
    proportional: Mapping[str, float] | None = None,
) -> Proposal:
    """Fit the posterior to runs (and leave-one-out differences and influence) and recommend a mixture."""
    posterior = fit_posterior(table, loo, influence, epsilon=epsilon, seed=seed)
    found = recommend(posterior, objective, simplex, proportional=proportional, seed=seed)
    return Proposal(found.weights, found.intervals, notes(found, influence_scales(posterior)))


def notes(found: Recommendation, scales: Sequence[InfluenceScale] = ()) -> tuple[str, ...]:
    """What belongs beside the weights, in sentences."""
    mean, low, high = found.objective
    lines = [
        found.verdict,
        f"Predicted objective {mean:.4f} (90 % interval {low:.4f} to {high:.4f}); the best mixture there is would "
        f"gain another {found.regret[0]:.4f} on average, {found.regret[1]:.4f} at most (95 %)",
        "Probability of beating "
        + ", ".join(f"{name} {chance:.2f}" for name, chance in found.beats.items())
        + "; of being the best among "
        + ", ".join(f"{name} {chance:.2f}" for name, chance in found.best_of.items()),
        "Predicted losses: "
        + "; ".join(
            f"{name} {m:.4f} ({lo:.4f} to {hi:.4f})" for name, (m, lo, hi) in found.capabilities.items()
        ),
    ]
    for scale in scales:
        worth = "followed" if scale.worth else "is not known to follow"
        lines.append(
            f"Influence on {scale.capability} {worth} the loss's gradient: scale {scale.scale:.2f} "
            f"(90 % interval {scale.low:.2f} to {scale.high:.2f}; 0 is worthless, with probability "
            f"{scale.worthless:.2f})"
        )
    return tuple(lines)
