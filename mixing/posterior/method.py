"""The posterior as one of the methods of `mixing.fit`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixing.fit.loss_posterior import LossPosterior as AnyPosterior
from mixing.fit.proposal import Proposal
from mixing.fit.search import Simplex
from mixing.fit.tables import ProxyTable
from mixing.posterior.fit import fit_posterior
from mixing.posterior.posterior import LossPosterior
from mixing.posterior.recommend import Recommendation, recommend
from mixing.posterior.scale import InfluenceScale, influence_scales


def propose_posterior(
    table: ProxyTable, posterior: AnyPosterior, objective: np.ndarray, simplex: Simplex, seed: int = 0
) -> Proposal:
    """The mixture that this posterior recommends; one that was not made by `fit_posterior` is not asked."""
    whole = posterior if isinstance(posterior, LossPosterior) else fit_posterior(table, seed=seed)
    found = recommend(whole, objective, simplex, seed=seed)
    return Proposal(found.weights, found.intervals, notes(found, influence_scales(whole)))


def notes(found: Recommendation, scales: Sequence[InfluenceScale] = ()) -> tuple[str, ...]:
    """What belongs beside the weights and is not in `Mixture.evidence`, in sentences."""
    mean, most = found.regret
    lines = [
        f"The best mixture there is would gain another {mean:.4f} of the objective on average, {most:.4f} at most "
        "(95 %); intervals are of its weights",
        f"A link between mixtures and losses as strong as the runs' would come up by chance with probability "
        f"{found.no_effect:.3f}",
    ]
    return (*lines, *(scale.sentence() for scale in scales))
