"""What a posterior over losses may rest on: trained runs, leave-one-out effects, influence.

Every piece of evidence is a linear functional of the loss of each capability as a function of the mixture:

value      : the loss of a run with weights w, up to an offset that its study has (a leave-one-out study that
             gives only differences has an unknown offset for each seed, which makes the rows exact paired
             differences: value(without j) - value(base), the noise of the base run shared by all of them)
derivative : the change of the loss when a little of the mixture w is replaced by source j,
             grad L(w) . (e_j - w). Influence observes it with an unknown scale, an unknown offset (what any
             training gives), a bias for each source and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.errors import DataError
from mixing.fit.tables import ProxyTable

if TYPE_CHECKING:  # it imports torch, and this does without
    from mixing.leave_one_out.study import LeaveOneOut

MAIN = 0
"""Offset id of the table's runs: absolute losses."""


@dataclass(frozen=True)
class Influence:
    """Benefits of the sources at one mixture: positive lowers the loss, any unit, any common offset.

    sources, capabilities : names of the rows and columns; a source may be left out
    weights               : the mixture at which the influence was measured, by source
    benefit               : float64 [sources, capabilities], mean benefit of a token of the source
    """

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    weights: Mapping[str, float]
    benefit: np.ndarray


@dataclass(frozen=True)
class Effects:
    """Leave-one-out differences: losses without a source minus those with all, by seed.

    base    : the full mixture, by source; the others took the removed one's place in proportion
    removed : names of the removed sources; capabilities: names of the last axis
    delta   : float64 [seeds, removed, capabilities], positive when removing hurts
    """

    base: Mapping[str, float]
    removed: tuple[str, ...]
    capabilities: tuple[str, ...]
    delta: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """All evidence as functionals; rows of all arrays belong together, n functionals of m sources.

    sources [m], capabilities [c]
    points [n, m]      : mixtures
    directions [n, m]  : tangent directions of derivatives; zeros for values
    observed [c, n]    : values in the unit of the losses, derivatives in units of influence; NaN: not seen
    derivative [n]     : which rows are derivatives
    offset [n]         : rows of one number share an unknown constant; MAIN is that of absolute losses
    seed [n]           : rows of one number share the noise of a seed; -1: its own
    toward [n]         : for derivatives the source's index within its influence record (for its bias), else -1
    """

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    points: np.ndarray
    directions: np.ndarray
    observed: np.ndarray
    derivative: np.ndarray
    offset: np.ndarray
    seed: np.ndarray
    toward: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """Which rows are absolute losses of runs, [n] booleans."""
        return ~self.derivative & (self.offset == MAIN)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of evidence there are, in words."""
        deletions = bool((~self.derivative & (self.offset != MAIN)).any())
        found = {"runs": True, "leave-one-out": deletions, "influence": bool(self.derivative.any())}
        return tuple(kind for kind, there in found.items() if there)


def effects_of(study: LeaveOneOut) -> Effects:
    """The differences of a leave-one-out study of ours."""
    if study.plan.reading != "replaced":
        raise DataError(
            "This leave-one-out study did not replace the removed tokens, so its runs are shorter and say "
            "nothing about mixtures at one budget",
            where="leave_one_out",
            remedy="Give a study with the reading 'replaced'",
        )
    seeds = [str(seed) for seed in study.plan.seeds]
    sources, capabilities = study.plan.sources, study.capabilities
    delta = np.zeros((len(seeds), len(sources), len(capabilities)))
    for effect in study.effects:
        at = sources.index(effect.source), capabilities.index(effect.capability)
        delta[:, at[0], at[1]] = [effect.per_seed[seed] for seed in seeds]
    return Effects(study.plan.base, sources, capabilities, delta)


def influence_of(rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> Influence:
    """Influence from the rows `source, capability, benefit` of `mixing.influence`'s benefit table."""
    sources = tuple(sorted({str(row["source"]) for row in rows}))
    capabilities = tuple(sorted({str(row["capability"]) for row in rows}))
    benefit = np.full((len(sources), len(capabilities)), np.nan)
    for row in rows:
        benefit[sources.index(row["source"]), capabilities.index(row["capability"])] = float(row["benefit"])
    return Influence(sources, capabilities, weights, benefit)


def gather(
    table: ProxyTable,
    loo: Effects | None = None,
    influence: Sequence[Influence] = (),
) -> Evidence:
    """Put all evidence on the table's sources and metrics.

    Seeds of the table count as shared noise only when some seed trained several mixtures and there are
    several seeds (otherwise nothing tells it from a constant or from the run's own noise). Raises DataError
    on names that the table has not.
    """
    parts = [_runs(table)]
    if loo is not None:
        parts.append(_differences(table, loo, first=int(parts[0]["seed"].max()) + 1))
    for place, record in enumerate(influence):
        parts.append(_derivatives(table, record, offset=-1 - place))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "observed"}
    observed = np.concatenate([part["observed"] for part in parts], axis=1)
    return Evidence(table.sources, table.metrics, observed=observed, **joined)


def _runs(table: ProxyTable) -> dict[str, np.ndarray]:
    n, m = table.weights.shape
    seed = np.full(n, -1)
    if table.seeds is not None and 1 < len(set(table.seeds)) < n:
        numbers = {value: place for place, value in enumerate(sorted(set(table.seeds)))}
        seed = np.array([numbers[value] for value in table.seeds])
    return _part(table.weights, np.zeros((n, m)), table.losses.T, offset=np.full(n, MAIN), seed=seed)


def _differences(table: ProxyTable, loo: Effects, first: int) -> dict[str, np.ndarray]:
    base = _aligned(table, loo.base, "leave_one_out")
    points = [base]
    for name in loo.removed:
        rest = base.copy()
        rest[_index(table.sources, name, "leave_one_out")] = 0.0
        if rest.sum() <= 0:
            raise DataError(f"Without {name!r} the base mixture is empty", where="leave_one_out")
        points.append(rest / rest.sum())
    seeds, size = len(loo.delta), len(points)
    observed = np.full((len(table.metrics), seeds, size), np.nan)
    for place, name in enumerate(loo.capabilities):
        at = _index(table.metrics, name, "leave_one_out")
        observed[at, :, 0] = 0.0
        observed[at, :, 1:] = loo.delta[:, :, place]
    number = np.repeat(np.arange(seeds), size)
    flat = np.tile(np.array(points), (seeds, 1))
    return _part(
        flat,
        np.zeros_like(flat),
        observed.reshape(len(table.metrics), -1),
        offset=1 + number,
        seed=np.full(len(flat), -1),  # its noise is in the offset of its seed
    )


def _derivatives(table: ProxyTable, record: Influence, offset: int) -> dict[str, np.ndarray]:
    weights = _aligned(table, record.weights, "influence")
    index = [_index(table.sources, name, "influence") for name in record.sources]
    if len(set(index)) != len(index) or record.benefit.shape != (len(index), len(record.capabilities)):
        raise DataError(
            "The influence has not one row a source and one column a capability", where="influence"
        )
    observed = np.full((len(table.metrics), len(index)), np.nan)
    for place, name in enumerate(record.capabilities):
        # A benefit lowers the loss; centred and in units of its own spread, since its unit is arbitrary.
        column = -record.benefit[:, place]
        seen = np.isfinite(column)
        if seen.sum() < 2 or np.ptp(column[seen]) == 0:
            continue
        observed[_index(table.metrics, name, "influence")] = (column - column[seen].mean()) / column[
            seen
        ].std()
    directions = np.eye(len(weights))[index] - weights
    part = _part(
        np.tile(weights, (len(index), 1)),
        directions,
        observed,
        offset=np.full(len(index), offset),
        seed=np.full(len(index), -1),
    )
    part["derivative"][:] = True
    part["toward"] = np.array(index)
    return part


def _part(
    points: np.ndarray, directions: np.ndarray, observed: np.ndarray, *, offset: np.ndarray, seed: np.ndarray
) -> dict[str, np.ndarray]:
    n = len(points)
    return {
        "points": points, "directions": directions, "observed": observed, "offset": offset, "seed": seed,
        "derivative": np.zeros(n, dtype=bool), "toward": np.full(n, -1),
    }  # fmt: skip


def _aligned(table: ProxyTable, weights: Mapping[str, float], where: str) -> np.ndarray:
    for name in weights:
        _index(table.sources, name, where)
    values = np.array([float(weights.get(name, 0.0)) for name in table.sources])
    if not np.all(np.isfinite(values)) or values.min() < 0 or values.sum() <= 0:
        raise DataError("The mixture has weights that are negative, not numbers or all zero", where=where)
    return values / values.sum()


def _index(names: Sequence[str], name: str, where: str) -> int:
    if name not in names:
        raise DataError(
            f"The evidence names {name!r}, which the table of runs has not",
            where=where,
            remedy=f"Known: {', '.join(names)}",
        )
    return list(names).index(name)
