"""The posterior from runs and from files of other evidence: `leave_one_out.json`, tables of influence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from curation.atomic import read_json
from curation.errors import DataError
from mixing.fit.columns import read_columns
from mixing.fit.influence_table import InfluenceTable, read_influence
from mixing.fit.tables import ProxyTable
from mixing.posterior.evidence import Effects, Influence, influence_of
from mixing.posterior.fit import fit_posterior
from mixing.posterior.posterior import LossPosterior

Deletions = Path | str | Effects
Benefits = Path | str | InfluenceTable | Influence


def posterior_from(
    table: ProxyTable,
    *,
    leave_one_out: Deletions | None = None,
    influence: Benefits | Sequence[Benefits] | None = None,
    measured_at: Mapping[str, float] | None = None,
    reference: str | None = None,
    seed: int = 0,
) -> LossPosterior:
    """`fit_posterior` for evidence in files or in memory, any of both kinds or none.

    leave_one_out : `leave_one_out.json` of a study of ours, or `Effects`. Its runs must not be rows of the table
                    too, which would count them twice: DataError.
    influence     : tables of scores (`mixing.fit.read_influence`) or of means by source (`source, capability,
                    benefit`), or `Influence`; one or several. Capabilities are the table's metrics; a table
                    without capabilities is of the only metric.
    measured_at   : the mixture at which the tables of influence were measured, by source; uniform if not given
    reference     : the reference model that counts, where a table of scores has several
    """
    effects = None
    if leave_one_out is not None:
        effects = leave_one_out if isinstance(leave_one_out, Effects) else read_deletions(leave_one_out)
        _not_twice(table, effects)
    several = isinstance(influence, Sequence) and not isinstance(influence, str)
    parts: Sequence[Benefits] = influence if several else () if influence is None else (influence,)  # type: ignore[assignment]
    at = measured_at if measured_at is not None else dict.fromkeys(table.sources, 1 / len(table.sources))
    records = [
        part if isinstance(part, Influence) else _benefits(part, table, at, reference) for part in parts
    ]
    return fit_posterior(table, effects, records, seed=seed)


def read_deletions(path: Path | str) -> Effects:
    """The paired differences of a `leave_one_out.json`; raises DataError for anything else.

    Studies that did not replace the removed tokens are refused: their runs are shorter.
    """
    try:
        value = read_json(path)
        reading, seeds = value["reading"], [str(seed) for seed in value["seeds"]]
        base = {str(name): float(weight) for name, weight in value["base_weights"].items()}
        rows = value["effects"]
        removed = tuple(sorted({str(row["source"]) for row in rows}))
        capabilities = tuple(sorted({str(row["capability"]) for row in rows}))
        delta = np.full((len(seeds), len(removed), len(capabilities)), np.nan)
        for row in rows:
            at = removed.index(row["source"]), capabilities.index(row["capability"])
            delta[:, at[0], at[1]] = [float(row["per_seed"][seed]) for seed in seeds]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"This is not a leave-one-out file: {type(error).__name__} {error}",
            where=str(path),
            remedy="Give the leave_one_out.json of a study",
        ) from error
    if reading != "replaced":
        raise DataError(
            "This leave-one-out study did not replace the removed tokens, so its runs are shorter and say "
            "nothing about mixtures at one budget",
            where=str(path),
            remedy="Give a study with the reading 'replaced'",
        )
    if not delta.size or not np.isfinite(delta).all():
        raise DataError(
            "Not every source of the study has a finite difference for each capability and seed",
            where=str(path),
            remedy="Run leave-one-out again",
        )
    return Effects(base, removed, capabilities, delta)


def _benefits(
    given: Path | str | InfluenceTable, table: ProxyTable, at: Mapping[str, float], reference: str | None
) -> Influence:
    if not isinstance(given, InfluenceTable):
        frame = read_columns(given, ("source", "benefit"))
        if "document" not in frame.columns:
            return _means(frame.to_dicts(), table, at, str(given))
        given = read_influence(given, reference)
    benefit = np.column_stack([given.densities(one) for one in np.eye(len(given.capabilities))])
    return Influence(given.sources, _metrics(given.capabilities, table), at, benefit)


def _means(rows: list[dict], table: ProxyTable, at: Mapping[str, float], where: str) -> Influence:
    names = _metrics(tuple(sorted({str(row.get("capability", "all")) for row in rows})), table)
    filled = [
        {**row, "source": str(row["source"]), "capability": str(row.get("capability", names[0]))}
        for row in rows
    ]
    for row in filled:
        if row["capability"] == "all":
            row["capability"] = names[0]
    if len({(row["source"], row["capability"]) for row in filled}) != len(filled):
        raise DataError(
            "A source has two benefits for one capability",
            where=where,
            remedy="Keep one row for each, or add a column `document` if these are scores of documents",
        )
    try:
        found = influence_of(filled, at)
    except (TypeError, ValueError) as error:
        raise DataError(f"A benefit is not a number: {error}", where=where, remedy="Mend it") from error
    return found


def _metrics(capabilities: tuple[str, ...], table: ProxyTable) -> tuple[str, ...]:
    """A table that names no capability is of the only metric."""
    if capabilities != ("all",) or "all" in table.metrics:
        return capabilities
    if len(table.metrics) > 1:
        raise DataError(
            f"The influence does not say which of the metrics {', '.join(table.metrics)} it is about",
            where="influence",
            remedy="Add a column `capability`",
        )
    return table.metrics


def _not_twice(table: ProxyTable, effects: Effects) -> None:
    """Raise DataError when the study's runs are rows of the table: its base and every deletion are there."""
    base = np.array([effects.base.get(name, 0.0) for name in table.sources])
    if base.sum() <= 0:
        return  # `gather` says what is wrong with it
    points = [base / base.sum()]
    for name in effects.removed:
        if name not in table.sources:
            return
        rest = base * (np.array(table.sources) != name)
        points.append(rest / max(rest.sum(), 1e-300))
    if all((np.abs(table.weights - point).max(axis=1) < 1e-6).any() for point in points):
        raise DataError(
            "The runs of the leave-one-out study are in the table of runs too, and would count twice",
            where="leave_one_out",
            remedy="Leave the study out: the posterior learns from its runs as from any others",
        )
