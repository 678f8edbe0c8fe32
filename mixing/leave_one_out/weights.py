"""From the effects of leaving sources out to weights, a mixture, and `leave_one_out.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curation.atomic import hash_value, read_json, write_json
from curation.errors import DataError
from mixing.deltas import Scale, weights_from_deltas
from mixing.leave_one_out.study import LEVEL, Effect, LeaveOneOut
from mixing.mixture import Mixture, make_mixture
from probes.intervals import percentile_interval


def loo_weights(
    effects: Iterable[Effect | Mapping[str, Any]], *, shrink: float = 0.5, scale: Scale = "none"
) -> dict[str, float]:
    """Weights: w_j proportional to max(mean over capabilities of delta_j, 0), shrunk to uniform.

    shrink : share of the uniform mixture in the result; .5 by default, since a first-order effect says where
             to go and not how far (in our pilot the half-shrunk mixture beat uniform; the paper gives no
             rule)
    scale  : "capability" divides a capability's deltas by their root mean square over the sources, so that a
             capability whose loss moves a lot does not decide alone
    Where no source helps, the weights are uniform.
    Example: mean deltas .3, .1, -.1 give (.75, .25, 0), and half shrunk (.542, .292, .167).
    """
    rows = [asdict(e) if isinstance(e, Effect) else dict(e) for e in effects]
    if not rows:
        raise DataError("There are no leave-one-out effects", remedy="Run leave-one-out first")
    sources = sorted({row["source"] for row in rows})
    capabilities = sorted({row["capability"] for row in rows})
    table = np.full((len(sources), len(capabilities)), np.nan)
    for row in rows:
        table[sources.index(row["source"]), capabilities.index(row["capability"])] = row["delta"]
    if np.isnan(table).any():
        j, c = np.argwhere(np.isnan(table))[0]
        raise DataError(f"There is no effect of source {sources[j]!r} on {capabilities[c]!r}")
    weights = weights_from_deltas(table[None], shrink=shrink, scale=scale)[0]
    return dict(zip(sources, weights.tolist(), strict=True))


def loo_weight_intervals(
    result: LeaveOneOut, *, shrink: float = 0.5, scale: Scale = "none", level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Interval of every weight: the rule of `loo_weights` applied to each joint draw of the deltas."""
    weights = weights_from_deltas(result.draws, shrink=shrink, scale=scale)
    return {s: percentile_interval(weights[:, j], level) for j, s in enumerate(result.plan.sources)}


def loo_mixture(result: LeaveOneOut, *, shrink: float = 0.5, scale: Scale = "none", **limits: Any) -> Mixture:
    """The leave-one-out mixture with intervals; `limits` (tokens, budget, caps, ...) as in `make_mixture`."""
    weights = loo_weights(result.effects, shrink=shrink, scale=scale)
    intervals = loo_weight_intervals(result, shrink=shrink, scale=scale)
    for absent in sorted(set(result.plan.base) - set(weights)):
        weights[absent], intervals[absent] = 0.0, (0.0, 0.0)
    hurtful = [
        s
        for s in result.plan.sources
        if np.mean([effect.delta for effect in result.effects if effect.source == s]) <= 0
    ]
    notes = result.notes
    if hurtful:
        notes = (*notes, f"Removing these sources did not raise the mean loss: {', '.join(hurtful)}")
    if len(hurtful) == len(result.plan.sources):
        notes = (*notes, "No source helped on average, so the weights are uniform")
    return make_mixture(
        weights,
        method="leave-one-out",
        intervals=intervals,
        inputs={"leave_one_out.json": hash_value(leave_one_out_json(result)["effects"])},
        notes=notes,
        **limits,
    )


def leave_one_out_json(result: LeaveOneOut, tokens_per_run: int | None = None) -> dict[str, Any]:
    """The content of `leave_one_out.json`."""
    weights, intervals = loo_weights(result.effects), loo_weight_intervals(result)
    return {
        "schema": 1,
        "unit": "bits per byte",
        "sign": "positive: removing the source hurts, so it helps",
        "reading": result.plan.reading,
        "tokens_per_run": tokens_per_run,
        "seeds": list(result.plan.seeds),
        "level": LEVEL,
        "interval": "seeds and documents" if len(result.plan.seeds) > 1 else "documents only",
        "base_weights": result.plan.base,
        "baseline": result.baseline,
        "effects": [asdict(effect) for effect in result.effects],
        "trajectories": [
            {**asdict(t), "steps": list(t.steps), "delta": list(t.delta)} for t in result.trajectories
        ],
        "weights": [
            {"source": s, "weight": weights[s], "low": intervals[s][0], "high": intervals[s][1]}
            for s in result.plan.sources
        ],
        "notes": list(result.notes),
    }


def write_leave_one_out(path: Path | str, result: LeaveOneOut, tokens_per_run: int | None = None) -> None:
    """Write `leave_one_out.json`."""
    write_json(path, leave_one_out_json(result, tokens_per_run))


def read_effects(path: Path | str) -> list[Effect]:
    """The effects of a `leave_one_out.json`."""
    try:
        return [Effect(**row) for row in read_json(path)["effects"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"This is not a leave-one-out file: {type(error).__name__} {error}",
            where=str(path),
            remedy="Run leave-one-out again",
        ) from error
