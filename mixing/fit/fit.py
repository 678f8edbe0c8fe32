"""One interface over the methods: `fit_mixture(ratios, metrics, method)`, used by `mixwright fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.atomic import hash_file
from curation.errors import DataError, RecipeError
from mixing.fit.checks import (
    FROM_RUNS,
    METHODS,
    WITHOUT_RUNS,
    Runs,
    check_budget,
    check_losses,
    check_method,
    check_sources,
    needs_runs,
    objective_weights,
    run_warnings,
    runs_table,
)
from mixing.fit.doremi_result import propose_doremi, read_doremi
from mixing.fit.gaussian_process import EPSILON
from mixing.fit.influence_table import InfluenceTable, read_influence
from mixing.fit.judging import judge, rivals_of
from mixing.fit.limits import allowed_mixtures
from mixing.fit.loss_posterior import LossPosterior, ProcessPosterior
from mixing.fit.methods import (
    UNIMAX_EPOCHS,
    MethodOptions,
    propose_from_influence,
    propose_from_runs,
    propose_mixmin,
    propose_without_runs,
    read_candidates,
)
from mixing.fit.probe_likelihoods import ProbeLikelihoods, read_probe_likelihoods
from mixing.fit.tables import ProxyTable
from mixing.mixture import Mixture, make_mixture

if TYPE_CHECKING:
    from mixing.posterior.from_files import Benefits, Deletions

__all__ = ["METHODS", "fit", "fit_mixture"]

LearnsFrom = ProxyTable | InfluenceTable | ProbeLikelihoods | dict[str, float] | None


def fit_mixture(
    ratios: Path | str | None = None,
    metrics: Path | str | None = None,
    method: str = "gaussian-process",
    *,
    runs: Runs | None = None,
    sources: Sequence[str] | None = None,
    objective: Mapping[str, float] | None = None,
    available_tokens: Mapping[str, float] | None = None,
    budget_tokens: int | None = None,
    batch_tokens: int | None = None,
    max_epochs: float | None = None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
    seed: int = 0,
    temperature: float = 0.5,
    prior_strength: float = 0.0,
    epsilon: float = EPSILON,
    shrink: float = 0.5,
    regmix_candidates: int = 100_000,
    influence: Benefits | Sequence[Benefits] | None = None,
    leave_one_out: Deletions | None = None,
    reference: str | None = None,
    current: Mapping[str, float] | None = None,
    step: float | None = None,
    likelihoods: Path | str | ProbeLikelihoods | None = None,
    doremi: Path | str | None = None,
    candidates: Mapping[str, Mapping[str, float] | Path | str] | None = None,
    posterior: LossPosterior | None = None,
) -> Mixture:
    """Find a mixture, and what is known about it (`Mixture.evidence`).

    ratios, metrics : tables of proxy runs (`mixing.fit.tables`), or `runs`: a table, a folder of both, or one
                      file that holds both, with `sources`. Methods that do not learn from runs are weighed by
                      them where they are given.
    method          : one of METHODS
    objective       : weights of the metrics (or of the capabilities of an influence or probe table), lower is
                      better; all equal if not given
    available_tokens, budget_tokens, max_epochs, minimum, maximum, fixed : limits, as in `mixing.projection`
    batch_tokens    : of one update; a smaller budget is refused
    temperature     : exponent on size of "temperature"
    prior_strength  : "log-linear": weight of KL to uniform in the objective (Olmix suggests .05 to .1)
    epsilon         : of the Gaussian processes: smallest share that matters
    shrink          : "leave-one-out": share of uniform in the result
    regmix_candidates : "regmix": mixtures whose loss is predicted
    influence, reference, current, step : "influence": table of scores (`mixing.fit.influence_table`), the
                      reference model that counts, and for a bounded move the mixture to leave and how far.
                      "posterior" takes one table or several as evidence; `current` is then the mixture at which
                      they were measured, uniform if not given
    leave_one_out   : "posterior": `leave_one_out.json`, or `mixing.posterior.Effects`, as evidence
    likelihoods     : "mixmin": probe texts under one model per source (`mixing.fit.probe_likelihoods`)
    doremi          : "doremi": the result of a DoReMi run, {"weights": {...}} (`mixing.doremi`)
    candidates      : other mixtures, by name, which "best" in the evidence compares with
    posterior       : in place of Gaussian processes, what weighs the mixture; the method "posterior" fits its own
                      and both finds and weighs the mixture by it, or by the one given (`posterior_from`)

    The order of rows and of columns does not change the result. Raises RecipeError and DataError in
    sentences.
    """
    check_method(method)
    check_budget(budget_tokens, batch_tokens)
    table, files = _runs(ratios, metrics, runs, sources)
    if table is None and method in FROM_RUNS:
        raise needs_runs(method)
    learned, given = _learned(method, table, influence, leave_one_out, reference, likelihoods, doremi)
    names = _names(learned, table, sources, available_tokens)
    check_sources(names, available_tokens, fixed, maximum)
    if table is not None and table.sources != names:
        raise DataError(
            f"The proxy runs are of {', '.join(table.sources)}, the table of {method} of {', '.join(names)}",
            where=", ".join(str(path) for path in (*files, *given)),
            remedy="Give tables of the same sources",
        )
    simplex = allowed_mixtures(
        names,
        available_tokens=available_tokens,
        budget_tokens=budget_tokens,
        max_epochs=max_epochs,
        minimum=minimum,
        maximum=maximum,
        fixed=fixed,
    )
    weigh_by = None if table is None else objective_weights(table.metrics, _known(objective, learned, table))
    if table is not None and weigh_by is not None and posterior is None and _varies(table, weigh_by):
        if method == "posterior":
            from mixing.posterior.from_files import posterior_from  # it builds on this package

            check_losses(table, method)
            posterior = posterior_from(
                table,
                leave_one_out=leave_one_out,
                influence=influence,
                measured_at=current,
                reference=reference,
                seed=seed,
            )
        else:
            posterior = ProcessPosterior.fit(table, epsilon=epsilon)
    sizes = None
    if available_tokens is not None:
        tokens = np.array([float(available_tokens[name]) for name in names])
        sizes = tokens / tokens.sum()
    options = MethodOptions(temperature, prior_strength, shrink, regmix_candidates, current, step)
    if method in WITHOUT_RUNS:
        proposal = propose_without_runs(method, names, available_tokens, budget_tokens, max_epochs, options)
    elif isinstance(learned, InfluenceTable):
        proposal = propose_from_influence(
            learned, names, objective_weights(learned.capabilities, objective), options, seed=seed
        )
    elif isinstance(learned, ProbeLikelihoods):
        proposal = propose_mixmin(
            learned, objective_weights(learned.capabilities, objective), simplex, seed=seed
        )
    elif method == "doremi":
        assert doremi is not None
        proposal = propose_doremi(read_doremi(doremi), names)
    else:
        assert table is not None and weigh_by is not None
        check_losses(table, method)
        constant = None if not _varies(table, weigh_by) else posterior
        proposal = propose_from_runs(
            method, table, constant, weigh_by, simplex, sizes, options, epsilon=epsilon, seed=seed
        )
    notes = (*proposal.notes, *(run_warnings(table, method) if table is not None else ()))
    mixture = make_mixture(
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
        inputs={path.name: hash_file(path) for path in (*files, *given) if path.is_file()},
        notes=notes,
    )
    rivals = rivals_of(table, weigh_by, sizes, simplex) | read_candidates(candidates, names)
    return replace(mixture, evidence=judge(mixture, table, weigh_by, posterior, rivals, seed))


def fit(runs: Runs, method: str = "gaussian-process", **options: object) -> Mixture:
    """`fit_mixture` for anybody's proxy runs: `mixing.fit("runs/", method="regmix", max_epochs=4, ...)`.

    runs : a folder with ratios.csv and metrics.csv, the two paths as a tuple, one CSV with `sources=[...]`, or
           a `ProxyTable`. All options are those of `fit_mixture`.
    """
    return fit_mixture(runs=runs, method=method, **options)  # type: ignore[arg-type]


def _runs(
    ratios: Path | str | None, metrics: Path | str | None, runs: Runs | None, sources: Sequence[str] | None
) -> tuple[ProxyTable | None, tuple[Path, ...]]:
    if runs is not None:
        return runs_table(runs, sources)
    if ratios is None and metrics is None:
        return None, ()
    if ratios is None or (metrics is None and not sources):
        raise RecipeError(
            "Proxy runs are two tables, and one is missing",
            where="ratios, metrics",
            remedy="Give both tables, or one that holds both together with the names of the sources",
        )
    return runs_table((ratios, metrics) if metrics is not None else ratios, sources)


def _learned(
    method: str,
    table: ProxyTable | None,
    influence: Benefits | Sequence[Benefits] | None,
    leave_one_out: Deletions | None,
    reference: str | None,
    likelihoods: Path | str | ProbeLikelihoods | None,
    doremi: Path | str | None,
) -> tuple[LearnsFrom, tuple[Path, ...]]:
    """What the method learns from, and the files that it was read from."""
    several = isinstance(influence, Sequence) and not isinstance(influence, str)
    evidence = [leave_one_out, *(influence if several else [influence])]  # type: ignore[misc]
    if method == "posterior":
        return table, tuple(Path(part) for part in evidence if isinstance(part, Path | str))
    if leave_one_out is not None or several:
        raise RecipeError(
            f"The method {method!r} does not take leave-one-out results or several tables of influence as evidence",
            where="leave_one_out, influence",
            remedy="Use the method 'posterior', which learns from all of them at once",
        )
    needed = {"influence": influence, "mixmin": likelihoods, "doremi": doremi}
    if method not in needed:
        return table, ()
    given = needed[method]
    if given is None:
        option = {"influence": "influence", "mixmin": "likelihoods", "doremi": "doremi"}[method]
        raise RecipeError(
            f"The method {method!r} learns from a table that nobody gave",
            where=option,
            remedy="See docs/mixing.md for what it holds and what makes it",
        )
    if isinstance(given, InfluenceTable | ProbeLikelihoods):
        return given, ()
    if not isinstance(given, Path | str):
        raise RecipeError(
            "The method 'influence' needs the scores of documents, not means by source",
            where="influence",
            remedy="Give a table with `document, source, tokens, benefit`, or use the method 'posterior'",
        )
    path = Path(given)
    if method == "influence":
        return read_influence(path, reference), (path,)
    if method == "mixmin":
        return read_probe_likelihoods(path), (path,)
    return read_doremi(path).weights, (path,)


def _names(
    learned: LearnsFrom,
    table: ProxyTable | None,
    sources: Sequence[str] | None,
    available_tokens: Mapping[str, float] | None,
) -> tuple[str, ...]:
    if isinstance(learned, dict):
        return tuple(sorted(learned))
    if learned is not None:
        return learned.sources
    if table is not None:
        return table.sources
    return tuple(sorted(sources if sources is not None else available_tokens or ()))


def _known(
    objective: Mapping[str, float] | None, learned: LearnsFrom, table: ProxyTable
) -> Mapping[str, float] | None:
    """The objective for the runs' metrics; capabilities of another table may be called otherwise."""
    if learned is table or objective is None or set(objective) <= set(table.metrics):
        return objective
    return None


def _varies(table: ProxyTable, objective: np.ndarray) -> bool:
    return bool(np.any(np.ptp(table.losses[:, objective != 0], axis=0) > 0))
