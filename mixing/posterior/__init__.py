"""One posterior over every capability's loss from runs, leave-one-out and influence, and what follows from it.

>>> from mixing.posterior import fit_posterior  # doctest: +SKIP
>>> posterior = fit_posterior(table, influence=benefits)  # doctest: +SKIP

`recommend` gives a mixture with intervals and a verdict, `propose` the next proxy runs, `pareto_front` the trade
between capabilities, `influence_scales` what influence was worth. Needs numpy and scipy only.
"""

from mixing.posterior.adaptive import first_mixtures, propose
from mixing.posterior.decision import DecisionProblem, decision_problem
from mixing.posterior.evidence import Effects, Influence, effects_of, influence_of
from mixing.posterior.fit import fit_posterior
from mixing.posterior.from_files import posterior_from, read_deletions
from mixing.posterior.pareto import ParetoFront, pareto_front
from mixing.posterior.posterior import LossPosterior
from mixing.posterior.recommend import Recommendation, recommend
from mixing.posterior.scale import InfluenceScale, influence_scales

__all__ = [
    "DecisionProblem",
    "Effects",
    "Influence",
    "InfluenceScale",
    "LossPosterior",
    "ParetoFront",
    "Recommendation",
    "decision_problem",
    "effects_of",
    "first_mixtures",
    "fit_posterior",
    "influence_of",
    "influence_scales",
    "pareto_front",
    "posterior_from",
    "propose",
    "read_deletions",
    "recommend",
]
