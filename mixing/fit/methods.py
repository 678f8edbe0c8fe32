"""Each method's proposal from what it learns from; `mixing.fit.fit` puts one interface over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.errors import RecipeError
from mixing.fit.checks import by_source
from mixing.fit.deletions import propose_leave_one_out
from mixing.fit.fixed import temperature_weights, uniform_weights, unimax_weights
from mixing.fit.influence_table import InfluenceTable, propose_influence
from mixing.fit.loss_posterior import LossPosterior, ProcessPosterior
from mixing.fit.mixmin import minimise_mixmin, mixture_loss
from mixing.fit.probe_likelihoods import ProbeLikelihoods
from mixing.fit.proposal import Proposal, weight_intervals
from mixing.fit.regmix import propose_regmix
from mixing.fit.search import Simplex
from mixing.fit.surrogate import propose_log_linear, propose_process
from mixing.fit.tables import ProxyTable

UNIMAX_EPOCHS = 4.0
MIXMIN_RESAMPLES = 100
DRAWS = 1000


@dataclass(frozen=True)
class MethodOptions:
    """Settings that only some methods read; see `fit_mixture`."""

    temperature: float = 0.5
    prior_strength: float = 0.0
    shrink: float = 0.5
    candidates: int = 100_000
    current: Mapping[str, float] | None = None
    step: float | None = None


def propose_without_runs(
    method: str,
    names: tuple[str, ...],
    available_tokens: Mapping[str, float] | None,
    budget_tokens: int | None,
    max_epochs: float | None,
    options: MethodOptions,
) -> Proposal:
    """Uniform, proportional, temperature and UniMax: a rule on the sources' sizes."""
    if method == "uniform":
        weights = uniform_weights(names)
    elif available_tokens is None:
        raise RecipeError(
            f"The method {method!r} needs to know how many tokens each source has",
            where="available_tokens",
            remedy="Give them, or use uniform",
        )
    else:
        sizes = {name: float(available_tokens[name]) for name in names}
        if method == "unimax":
            if budget_tokens is None:
                raise RecipeError(
                    "UniMax needs a budget in tokens",
                    where="budget_tokens",
                    remedy="Give the training tokens",
                )
            epochs = max_epochs if max_epochs is not None else UNIMAX_EPOCHS
            weights = unimax_weights(sizes, budget_tokens, epochs)
        else:
            weights = temperature_weights(sizes, 1.0 if method == "proportional" else options.temperature)
    note = "The weights follow from a rule, so there is no interval"
    return Proposal(np.array([weights[name] for name in names]), None, (note,))


def propose_from_runs(
    method: str,
    table: ProxyTable,
    posterior: LossPosterior | None,
    objective: np.ndarray,
    simplex: Simplex,
    prior: np.ndarray | None,
    options: MethodOptions,
    *,
    epsilon: float,
    seed: int,
) -> Proposal:
    """Best of n, leave-one-out, log-linear laws, Gaussian processes, RegMix; posterior None: constant losses."""
    if posterior is None:
        note = (
            "The metrics are the same in all runs: nothing tells mixtures apart, so the weights are uniform"
        )
        m = len(table.sources)
        return Proposal(np.full(m, 1 / m), None, (note,))
    if method == "best-of-n":
        return _best_of_n(table, posterior, objective, seed)
    if method == "leave-one-out":
        return propose_leave_one_out(table, objective, seed=seed, shrink=options.shrink)
    if method == "log-linear":
        return propose_log_linear(table, objective, simplex, seed=seed, prior_strength=options.prior_strength)
    if method == "regmix":
        return propose_regmix(
            table, objective, simplex, seed=seed, prior=prior, candidates=options.candidates
        )
    if method == "posterior":
        from mixing.posterior.method import propose_posterior  # it builds on this package

        return propose_posterior(table, posterior, objective, simplex, seed)
    processes = posterior if isinstance(posterior, ProcessPosterior) else None
    return propose_process(
        table, processes or ProcessPosterior.fit(table, epsilon=epsilon), objective, simplex, seed=seed
    )


def propose_from_influence(
    table: InfluenceTable, names: tuple[str, ...], objective: np.ndarray, options: MethodOptions, *, seed: int
) -> Proposal:
    """Influence, in the order of `names`, which are the table's sources."""
    current = None
    if options.current is not None:
        current = by_source(options.current, names, "current mixture", "current")
        if options.step is None:
            raise RecipeError(
                "A current mixture needs a step: how far the weights may move from it",
                where="step",
                remedy="Give a step, .7 say (no weight then changes by more than a factor 2), or no mixture",
            )
    return propose_influence(table, objective, seed=seed, current=current, step=options.step)


def propose_mixmin(
    table: ProbeLikelihoods, objective: np.ndarray, simplex: Simplex, *, seed: int
) -> Proposal:
    """MixMin, with intervals by a bootstrap over the probe texts."""
    importance = table.importance(objective)
    found = minimise_mixmin(table.log_probabilities, importance, simplex)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x313]))
    drawn = []
    for _ in range(MIXMIN_RESAMPLES):
        counts = np.zeros(len(importance))
        for c in range(len(table.capabilities)):
            texts = np.flatnonzero(table.capability == c)
            counts[texts] = np.bincount(rng.integers(0, len(texts), size=len(texts)), minlength=len(texts))
        again = minimise_mixmin(
            table.log_probabilities, importance * counts, simplex, gap=1e-4, start=found.weights
        )
        drawn.append(again.weights)
    m = len(simplex.sources)
    uniform = mixture_loss(table.log_probabilities, importance, simplex.project(np.full(m, 1 / m)))
    unit = "a token" if np.any(table.tokens != 1) else "a text"
    notes = (
        f"The mixture of the {m} models has {found.value:.4f} nats {unit}, the uniform one {uniform:.4f}; "
        f"no mixture is better by more than {found.gap:.1g}",
        "Intervals cover the choice of the probe texts, not the chance of training the models",
    )
    return Proposal(found.weights, weight_intervals(np.array(drawn), found.weights), notes)


def _best_of_n(table: ProxyTable, posterior: LossPosterior, objective: np.ndarray, seed: int) -> Proposal:
    """The mixture with the least observed objective; seeds of one mixture are averaged first.

    Intervals: the spread of the runs' mixtures that are best in draws of the posterior.
    """
    weights, losses, rows = table.by_mixture()
    scores = losses @ objective
    best = int(np.argmin(scores))
    runs = ", ".join(table.run_ids[row] for row in rows[best])
    note = (
        f"Best of {len(rows)} trained mixtures ({runs}); being the least of {len(rows)} noisy "
        f"numbers, its loss {scores[best]:.4f} is on average too good to be true"
    )
    drawn = weights[np.argmin(posterior.samples(weights, DRAWS, seed) @ objective, axis=1)]
    return Proposal(weights[best], weight_intervals(drawn, weights[best]), (note,))


def read_candidates(
    candidates: Mapping[str, Mapping[str, float] | Path | str] | None, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Mixtures to be weighed beside the fitted one: weights by source, or files of mixtures."""
    from mixing.mixture import read_mixture

    found = {}
    for name, given in sorted((candidates or {}).items()):
        shares = given if isinstance(given, Mapping) else read_mixture(given).weights
        found[name] = by_source(shares, names, f"candidate {name!r}", "candidates")
    return found
