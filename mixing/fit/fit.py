"""One interface over the methods: `fit_mixture(ratios, metrics, method)`, used by `mixwright fit`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from curation.atomic import hash_file
from curation.errors import DataError, RecipeError
from mixing.fit.deletions import propose_leave_one_out
from mixing.fit.fixed import temperature_weights, uniform_weights, unimax_weights
from mixing.fit.gaussian_process import EPSILON
from mixing.fit.search import Simplex
from mixing.fit.surrogate import Proposal, objective_weights, propose_log_linear, propose_process
from mixing.fit.tables import ProxyTable, read_proxy_table
from mixing.mixture import Mixture, make_mixture
from mixing.projection import share_bounds

WITHOUT_RUNS = ("uniform", "proportional", "temperature", "unimax")
FROM_RUNS = ("best-of-n", "leave-one-out", "log-linear", "gaussian-process", "posterior")
METHODS = (*WITHOUT_RUNS, *FROM_RUNS)
UNIMAX_EPOCHS = 4.0


def fit_mixture(
    ratios: Path | str | None = None,
    metrics: Path | str | None = None,
    method: str = "gaussian-process",
    *,
    sources: Sequence[str] | None = None,
    objective: Mapping[str, float] | None = None,
    available_tokens: Mapping[str, float] | None = None,
    budget_tokens: int | None = None,
    max_epochs: float | None = None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
    seed: int = 0,
    temperature: float = 0.5,
    prior_strength: float = 0.0,
    epsilon: float = EPSILON,
    shrink: float = 0.5,
) -> Mixture:
    """Find a mixture.

    ratios, metrics : tables of proxy runs (`mixing.fit.tables`); methods that need no runs do without
    method          : one of METHODS
    objective       : weights of the metrics, lower is better; all equal if not given
    available_tokens, budget_tokens, max_epochs, minimum, maximum, fixed : limits, as in `mixing.projection`
    temperature     : exponent on size of "temperature"
    prior_strength  : "log-linear": weight of KL to uniform in the objective (Olmix suggests .05 to .1)
    epsilon         : "gaussian-process": smallest share that matters
    shrink          : "leave-one-out": share of uniform in the result

    The order of rows and of columns does not change the result. Raises RecipeError and DataError in
    sentences.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        raise RecipeError(
            f"There is no method {method!r}",
            where="method",
            remedy=f"Did you mean {near[0]!r}?" if near else f"Methods: {', '.join(METHODS)}",
        )
    table = _read(ratios, metrics, method, sources, objective)
    names = _source_names(table, sources, available_tokens)
    inputs = {Path(p).name: hash_file(p) for p in (ratios, metrics) if table is not None and p is not None}
    if method in WITHOUT_RUNS:
        weights = _without_runs(method, names, available_tokens, budget_tokens, max_epochs, temperature)
        proposal = Proposal(np.array([weights[name] for name in names]), None, ())
    else:
        assert table is not None
        bounds = share_bounds(
            names,
            available_tokens=available_tokens,
            budget_tokens=budget_tokens or 1,
            max_epochs=max_epochs if budget_tokens is not None else None,
            minimum=minimum,
            maximum=maximum,
            fixed=fixed,
        )
        low, high = (np.array([b[name] for name in names]) for b in (bounds.low, bounds.high))
        simplex = Simplex(names, low, high)
        weigh = objective_weights(table.metrics, objective)
        proposal = _from_runs(method, table, weigh, simplex, seed, prior_strength, epsilon, shrink)
        proposal = Proposal(
            proposal.weights, proposal.intervals, (*proposal.notes, *_warnings(table, method))
        )
    return make_mixture(
        dict(zip(names, proposal.weights.tolist(), strict=True)),
        method=method,
        available_tokens=available_tokens,
        budget_tokens=budget_tokens,
        max_epochs=max_epochs if method != "unimax" or max_epochs is not None else UNIMAX_EPOCHS,
        minimum=minimum,
        maximum=maximum,
        fixed=fixed,
        intervals=None
        if proposal.intervals is None
        else {n: (float(i[0]), float(i[1])) for n, i in zip(names, proposal.intervals, strict=True)},
        seed=seed,
        inputs=inputs,
        notes=proposal.notes,
    )


def _from_runs(
    method: str,
    table: ProxyTable,
    objective: np.ndarray,
    simplex: Simplex,
    seed: int,
    prior_strength: float,
    epsilon: float,
    shrink: float,
) -> Proposal:
    losses = table.losses[:, objective != 0]
    if np.all(np.ptp(losses, axis=0) == 0):
        note = (
            "The metrics are the same in all runs: nothing tells mixtures apart, so the weights are uniform"
        )
        m = len(table.sources)
        return Proposal(np.full(m, 1 / m), None, (note,))
    if method == "best-of-n":
        return _best_of_n(table, objective)
    if method == "leave-one-out":
        return propose_leave_one_out(table, objective, seed=seed, shrink=shrink)
    if method == "log-linear":
        if table.losses.min() <= 0:
            raise DataError(
                "A log-linear law needs losses above zero",
                where="metrics",
                remedy="Give losses such as bits per byte, or use gaussian-process",
            )
        return propose_log_linear(table, objective, simplex, seed=seed, prior_strength=prior_strength)
    if method == "posterior":
        # It stands on this package's tables and search, so it is imported when it is wanted.
        from mixing.posterior.method import propose_posterior

        return propose_posterior(table, objective, simplex, seed)
    return propose_process(table, objective, simplex, seed=seed, epsilon=epsilon)


def _best_of_n(table: ProxyTable, objective: np.ndarray) -> Proposal:
    """The mixture with the least observed objective; seeds of one mixture are averaged first."""
    weights, losses, rows = table.by_mixture()
    scores = losses @ objective
    best = int(np.argmin(scores))
    runs = ", ".join(table.run_ids[row] for row in rows[best])
    note = (
        f"Best of {len(rows)} trained mixtures ({runs}); being the least of {len(rows)} noisy "
        "numbers, its loss "
        f"{scores[best]:.4f} is on average too good to be true"
    )
    return Proposal(weights[best], None, (note,))


def _without_runs(
    method: str,
    names: tuple[str, ...],
    available_tokens: Mapping[str, float] | None,
    budget_tokens: int | None,
    max_epochs: float | None,
    temperature: float,
) -> dict[str, float]:
    if method == "uniform":
        return uniform_weights(names)
    if available_tokens is None:
        raise RecipeError(
            f"The method {method!r} needs to know how many tokens each source has",
            where="available_tokens",
            remedy="Give them, or use uniform",
        )
    sizes = {name: float(available_tokens[name]) for name in names}
    if method == "unimax":
        if budget_tokens is None:
            raise RecipeError(
                "UniMax needs a budget in tokens", where="budget_tokens", remedy="Give the training tokens"
            )
        return unimax_weights(sizes, budget_tokens, max_epochs if max_epochs is not None else UNIMAX_EPOCHS)
    return temperature_weights(sizes, 1.0 if method == "proportional" else temperature)


def _read(
    ratios: Path | str | None,
    metrics: Path | str | None,
    method: str,
    sources: Sequence[str] | None,
    objective: Mapping[str, float] | None,
) -> ProxyTable | None:
    if method in WITHOUT_RUNS and (ratios is None or metrics is None):
        return None
    if ratios is None or metrics is None:
        raise RecipeError(
            f"The method {method!r} learns from proxy runs",
            where="ratios, metrics",
            remedy="Give both tables",
        )
    table = read_proxy_table(ratios, metrics, sources=sources)
    if objective is not None:
        for name, weight in objective.items():
            if name not in table.metrics:
                near = difflib.get_close_matches(name, table.metrics, n=1)
                raise RecipeError(
                    f"The objective names metric {name!r}, which is not in the table",
                    where=str(metrics),
                    remedy=f"Did you mean {near[0]!r}?" if near else f"Metrics: {', '.join(table.metrics)}",
                )
            if not np.isfinite(weight) or weight < 0:
                raise RecipeError(
                    f"The objective gives {name!r} the weight {weight}",
                    where="objective",
                    remedy="Weights are not negative: lower metrics are better",
                )
        if sum(objective.values()) <= 0:
            raise RecipeError("The objective gives no metric a weight", where="objective")
    return table


def _source_names(
    table: ProxyTable | None, sources: Sequence[str] | None, available_tokens: Mapping[str, float] | None
) -> tuple[str, ...]:
    if table is not None:
        names = table.sources
    elif sources is not None or available_tokens is not None:
        names = tuple(sorted(sources if sources is not None else available_tokens or ()))
    else:
        names = ()
    if not names:
        raise RecipeError(
            "Nobody said which sources there are",
            where="sources",
            remedy="Give tables of runs, or tokens by source",
        )
    for name in names:
        if available_tokens is not None and name not in available_tokens:
            near = difflib.get_close_matches(name, sorted(available_tokens), n=1)
            raise RecipeError(
                f"Nobody said how many tokens source {name!r} has",
                where="available_tokens",
                remedy=f"Did you mean {near[0]!r}?" if near else "Add it",
            )
    return names


def _warnings(table: ProxyTable, method: str) -> tuple[str, ...]:
    """What the runs cannot tell, in sentences."""
    notes = []
    n, m = table.weights.shape
    rank = int(np.linalg.matrix_rank(table.weights - table.weights.mean(axis=0), tol=1e-8))
    if method in ("log-linear", "gaussian-process", "posterior") and rank < m - 1:
        fixed = [s for j, s in enumerate(table.sources) if np.ptp(table.weights[:, j]) < 1e-9]
        still = f"; these never vary: {', '.join(fixed)}" if fixed else ""
        notes.append(
            f"{n} runs span {rank} of the {m - 1} directions in which {m} sources can be "
            f"mixed{still}: along the others "
            "the weights rest on the method's prior alone"
        )
    constant = [name for k, name in enumerate(table.metrics) if np.ptp(table.losses[:, k]) == 0]
    if constant:
        notes.append(f"The same in all runs, so without influence: {', '.join(constant)}")
    return tuple(notes)
