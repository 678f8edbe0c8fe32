"""What a fit is asked for: the methods' names, the sources, the objective, and what the runs cannot tell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from curation.errors import DataError, RecipeError
from mixing.fit.tables import ProxyTable, read_proxy_table

WITHOUT_RUNS = ("uniform", "proportional", "temperature", "unimax")
FROM_RUNS = ("best-of-n", "leave-one-out", "log-linear", "gaussian-process", "posterior", "regmix")
FROM_FILES = ("influence", "mixmin", "doremi")
METHODS = (*WITHOUT_RUNS, *FROM_RUNS, *FROM_FILES)

Runs = ProxyTable | Path | str | tuple[Path | str, Path | str]


def check_method(method: str) -> None:
    """Raise RecipeError for a name that is not a method's."""
    if method not in METHODS:
        raise RecipeError(
            f"There is no method {method!r}", where="method", remedy=_did_you_mean(method, METHODS)
        )


def runs_table(runs: Runs, sources: Sequence[str] | None = None) -> tuple[ProxyTable, tuple[Path, ...]]:
    """The table of `runs` and the files that it was read from.

    runs : a table; a folder with ratios.csv and metrics.csv; the paths of the two; or one CSV that holds both,
           for which `sources` names the columns that are shares
    """
    if isinstance(runs, ProxyTable):
        return runs, ()
    if isinstance(runs, tuple):
        files = tuple(Path(path) for path in runs)
    elif Path(runs).is_dir():
        files = (Path(runs) / "ratios.csv", Path(runs) / "metrics.csv")
    else:
        files = (Path(runs),)
    return read_proxy_table(*files, sources=sources), files


def needs_runs(method: str) -> RecipeError:
    """The method cannot do without proxy runs."""
    return RecipeError(
        f"The method {method!r} learns from proxy runs", where="ratios, metrics", remedy="Give both tables"
    )


def objective_weights(
    metrics: tuple[str, ...], objective: Mapping[str, float] | None, where: str = "objective"
) -> np.ndarray:
    """Weights [k] of the metrics in the objective; equal ones unless given. They sum to 1."""
    if objective is None:
        return np.full(len(metrics), 1 / len(metrics))
    for name, weight in objective.items():
        if name not in metrics:
            raise RecipeError(
                f"The objective names metric {name!r}, which is not in the table",
                where=where,
                remedy=_did_you_mean(name, metrics),
            )
        if not np.isfinite(weight) or weight < 0:
            raise RecipeError(
                f"The objective gives {name!r} the weight {weight}",
                where="objective",
                remedy="Weights are not negative: lower metrics are better",
            )
    raw = np.array([float(objective.get(name, 0.0)) for name in metrics])
    if raw.sum() <= 0:
        raise RecipeError(
            "The objective gives no metric a weight", where="objective", remedy="Give at least one"
        )
    return raw / raw.sum()


def check_sources(
    names: Sequence[str],
    available_tokens: Mapping[str, float] | None,
    fixed: Mapping[str, float] | None,
    maximum: Mapping[str, float] | None,
) -> None:
    """Raise RecipeError when nobody said which sources there are, or how many tokens one of them has."""
    if not names:
        raise RecipeError(
            "Nobody said which sources there are",
            where="sources",
            remedy="Give tables of runs, or tokens by source",
        )
    if available_tokens is None:
        return
    for name in names:
        if name not in available_tokens:
            near = difflib.get_close_matches(name, sorted(available_tokens), n=1)
            raise RecipeError(
                f"Nobody said how many tokens source {name!r} has",
                where="available_tokens",
                remedy=f"Did you mean {near[0]!r}?" if near else "Add it",
            )
        tokens = float(available_tokens[name])
        unused = (fixed or {}).get(name, (maximum or {}).get(name, 1.0)) == 0
        if not np.isfinite(tokens) or tokens < 0 or (tokens == 0 and not unused):
            raise RecipeError(
                f"Source {name!r} has {tokens:g} tokens",
                where="available_tokens",
                remedy="Give it text, or fix its share at 0",
            )


def check_budget(budget_tokens: int | None, batch_tokens: int | None) -> None:
    """Raise RecipeError for a budget that is not even one update."""
    if batch_tokens is not None and batch_tokens < 1:
        raise RecipeError(
            f"A batch of {batch_tokens:,} tokens is not possible",
            where="batch_tokens",
            remedy="Give 1 or more",
        )
    if budget_tokens is not None and batch_tokens is not None and budget_tokens < batch_tokens:
        raise RecipeError(
            f"The budget of {budget_tokens:,} tokens is smaller than one batch of {batch_tokens:,}",
            where="budget_tokens",
            remedy="Raise the budget, or lower the batch",
        )


def by_source(shares: Mapping[str, float], names: Sequence[str], what: str, where: str) -> np.ndarray:
    """A mixture as an array [m] in the order of `names`; RecipeError for sources that are not among them."""
    for name, share in shares.items():
        if name not in names:
            raise RecipeError(
                f"The {what} names source {name!r}, which is not there",
                where=where,
                remedy=_did_you_mean(name, names),
            )
        if not np.isfinite(share) or share < 0:
            raise RecipeError(
                f"The {what} gives source {name!r} the share {share}", where=where, remedy="Give 0 or more"
            )
    raw = np.array([float(shares.get(name, 0.0)) for name in names])
    if raw.sum() <= 0:
        raise RecipeError(f"The {what} gives no source a share", where=where, remedy="Give at least one")
    return raw / raw.sum()


def check_losses(table: ProxyTable, method: str) -> None:
    """Raise DataError for losses that the method cannot take."""
    if method == "log-linear" and table.losses.min() <= 0:
        raise DataError(
            "A log-linear law needs losses above zero",
            where="metrics",
            remedy="Give losses such as bits per byte, or use gaussian-process",
        )


def run_warnings(table: ProxyTable, method: str) -> tuple[str, ...]:
    """What the runs cannot tell, in sentences."""
    notes = []
    n, m = table.weights.shape
    centred = table.weights - table.weights.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=True)
    rank = int(np.sum(sizes > 1e-8))
    if method in ("log-linear", "gaussian-process", "posterior", "regmix") and rank < m - 1:
        # Directions that no run explores; that in which all shares grow together is not a mixture's.
        unseen = directions[rank:] - directions[rank:].mean(axis=1, keepdims=True)
        blurred = [s for j, s in enumerate(table.sources) if np.abs(unseen[:, j]).max() > 1e-6]
        fixed = [s for j, s in enumerate(table.sources) if np.ptp(table.weights[:, j]) < 1e-9]
        still = f"; these never vary: {', '.join(fixed)}" if fixed else ""
        which = "any of the sources" if len(blurred) == m else ", ".join(blurred)
        notes.append(
            f"{n} runs span {rank} of the {m - 1} directions in which {m} sources can be mixed{still}: "
            f"the effects of {which} cannot be told apart, and along the other directions the weights rest "
            "on the method's prior alone"
        )
    constant = [name for k, name in enumerate(table.metrics) if np.ptp(table.losses[:, k]) == 0]
    if constant:
        notes.append(f"The same in all runs, so without influence: {', '.join(constant)}")
    return tuple(notes)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}"
