"""From the posterior to a decision: the mixture to use, how sure it is, and against what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import norm

from mixing.fit.search import Simplex, minimise
from mixing.posterior.chance import chance_of_no_effect
from mixing.posterior.paths import minima, project_all, sampled_functions, starting_points
from mixing.posterior.posterior import LossPosterior

DRAWS = 128
SAMPLES = 2000
LEVEL = 0.9
SURE = 0.95
"""Probability of beating uniform from which on a win is claimed."""
NO_EFFECT = 0.025
"""A win is claimed only if the test of no effect has at most this p: so often is it wrong where all are equal."""
POWER = 0.8


@dataclass(frozen=True)
class Recommendation:
    """The mixture of least expected objective, with its evidence. Losses in the unit of the runs.

    weights [m], intervals [m, 2]   : the mixture; central 90 % of the posterior of the *best* mixture's weights,
                                      widened to hold the mixture itself
    objective, capabilities         : predicted (mean, low, high), of the objective and by capability
    gain_over                       : by reference mixture (mean, low, high) of reference - recommended
    beats                           : by reference mixture the posterior probability that the recommended one is
                                      better
    best_of                         : probability of being the best, by named candidate: the recommended
                                      mixture, the references and the best trained run
    regret                          : (mean, high): what the true optimum would gain over it
    no_effect                       : chance of a link between mixtures and losses as strong as this if there
                                      were none (`mixing.posterior.chance`)
    detectable                      : gain over uniform that this evidence would have shown with power .8,
                                      relative to the loss of uniform
    separable, verdict              : whether a win over uniform is claimed, and the sentence to print
    """

    sources: tuple[str, ...]
    weights: np.ndarray
    intervals: np.ndarray
    objective: tuple[float, float, float]
    capabilities: dict[str, tuple[float, float, float]]
    gain_over: dict[str, tuple[float, float, float]]
    beats: dict[str, float]
    best_of: dict[str, float]
    regret: tuple[float, float]
    no_effect: float
    detectable: float
    separable: bool
    verdict: str

    def record(self) -> dict:
        """For JSON: weights and intervals by source."""
        plain = asdict(self)
        plain["weights"] = dict(zip(self.sources, self.weights.tolist(), strict=True))
        plain["intervals"] = dict(zip(self.sources, self.intervals.tolist(), strict=True))
        del plain["sources"]
        return plain


def doubt_of(posterior: LossPosterior, objective: np.ndarray, seed: int = 0) -> str:
    """Why no win may be claimed whatever the posterior says: the runs' link to the mixtures may be chance.

    Empty when it may; see `NO_EFFECT`.
    """
    return _doubt(chance_of_no_effect(posterior, objective, seed=seed))


def _doubt(no_effect: float) -> str:
    if no_effect <= NO_EFFECT:
        return ""
    return f"such a link between mixtures and losses comes up by chance with probability {no_effect:.2f}"


def best_mixture(
    posterior: LossPosterior, objective: np.ndarray, simplex: Simplex, starts: np.ndarray
) -> np.ndarray:
    """The allowed mixture of least posterior mean of the objective [m]."""
    values = posterior.mean(starts) @ objective
    order = np.argsort(values, kind="stable")[:4]
    best = minimise(lambda w: posterior.mean_gradient(w, objective), simplex, list(starts[order]))
    return simplex.project(np.where(best < 1e-9, 0.0, best))  # what a solver leaves of nothing


def recommend(
    posterior: LossPosterior,
    objective: np.ndarray,
    simplex: Simplex,
    *,
    proportional: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Recommendation:
    """Decide. objective [c]: weights of the capabilities, sum 1; proportional: tokens by source, if known.

    References are taken as they are allowed: uniform is the allowed mixture nearest to equal shares.
    """
    m = len(simplex.sources)
    starts = starting_points(posterior, objective, simplex, seed)
    best = best_mixture(posterior, objective, simplex, starts)
    functions = sampled_functions(posterior, objective, draws, seed)
    optima = minima(functions, simplex, np.vstack([best[None], starts]))
    least = functions(optima)[0]
    regrets = np.maximum(functions(np.tile(best, (draws, 1)))[0] - least, 0.0)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(optima, [tail, 1 - tail], axis=0)
    intervals = np.column_stack([np.minimum(low, best), np.maximum(high, best)])

    references = {"uniform": simplex.project(np.full(m, 1 / m))}
    if proportional is not None:
        sizes = np.array([float(proportional[name]) for name in simplex.sources])
        references["proportional"] = simplex.project(sizes)
    observed = posterior.losses @ objective
    trained = simplex.project(np.maximum(posterior.runs[int(np.argmin(observed))], 1e-12))
    candidates = {"recommended": best, **references, "best trained": trained}
    samples = posterior.samples(np.array(list(candidates.values())), SAMPLES, seed)
    scores = samples @ objective

    def summary(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(values.mean()), float(low), float(high)

    names = list(candidates)
    gains = {name: scores[:, names.index(name)] - scores[:, 0] for name in references}
    no_effect = chance_of_no_effect(posterior, objective, seed=seed)
    least_at = np.bincount(np.argmin(scores, axis=1), minlength=len(names)) / len(scores)
    detectable = float((norm.ppf(SURE) + norm.ppf(POWER)) * gains["uniform"].std() / abs(scores[:, 1].mean()))
    beats = {name: float(np.mean(gain > 0)) for name, gain in gains.items()}
    separable = beats["uniform"] >= SURE and no_effect <= NO_EFFECT
    return Recommendation(
        simplex.sources, best, intervals,
        summary(scores[:, 0]),
        {name: summary(samples[:, 0, c]) for c, name in enumerate(posterior.capabilities)},
        {name: summary(gain) for name, gain in gains.items()},
        beats, dict(zip(names, least_at.tolist(), strict=True)),
        (float(regrets.mean()), float(np.quantile(regrets, 1 - tail))),
        no_effect, detectable, separable,
        _verdict(separable, gains["uniform"], float(scores[:, 1].mean()), beats["uniform"], no_effect, detectable),
    )  # fmt: skip


def _verdict(
    separable: bool, gain: np.ndarray, uniform: float, beats: float, no_effect: float, detectable: float
) -> str:
    share = 100 / abs(uniform)
    low, high = np.quantile(gain, [0.05, 0.95])
    if separable:
        return (
            f"Better than uniform by {share * gain.mean():.2g} % of its loss (90 % interval {share * low:.2g} to "
            f"{share * high:.2g} %, probability {beats:.2f})"
        )
    why = f"probability of beating uniform {beats:.2f}" if beats < SURE else _doubt(no_effect)
    return (
        f"Not separable from uniform at this budget ({why}; smallest detectable effect {100 * detectable:.2g} % of "
        "its loss)"
    )


def posterior_optima(
    posterior: LossPosterior, objective: np.ndarray, simplex: Simplex, draws: int, seed: int
) -> np.ndarray:
    """Best mixtures [draws, m] of as many functions drawn from the posterior."""
    starts = starting_points(posterior, objective, simplex, seed)
    found = minima(sampled_functions(posterior, objective, draws, seed), simplex, starts)
    return project_all(found, simplex.low, simplex.high)
