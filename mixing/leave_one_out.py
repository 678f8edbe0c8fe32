"""Leave-one-out: what each capability loses when a source is taken away (MobileLLM-R1, 5.1 and Figure 6).

    delta[c, j] = L_c(trained without j) - L_c(trained with all)

in bits per byte on the same probe documents. Positive: removing the source hurts, so the source helps.
Two readings, and the result states which:

replaced : the total number of tokens stays; the others take the place of source j in proportion (as in the
           paper). A source can look harmful only because it displaces a better one.
missing  : the tokens of source j are not replaced, so the run is shorter and reads just what the full run
           reads of the others. It measures the value of having those tokens at all.

All runs of a seed share the initial weights and every source's order of documents, so differences are paired.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curation.atomic import hash_value, read_json, write_json
from curation.errors import DataError, RecipeError
from mixing.deltas import Scale, weights_from_deltas
from mixing.mixture import Mixture, make_mixture, normalised
from mixing.paired import student_draws
from mixing.runs import ProxyRun, evaluation_steps, read_evaluation
from probes.intervals import align, percentile_interval, ratio_draws

Reading = Literal["replaced", "missing"]
LEVEL = 0.9


@dataclass(frozen=True)
class LeaveOneOutPlan:
    """The runs of a leave-one-out study: for each seed one with all sources, and one without each.

    runs : {(removed source or None, seed): run}
    """

    sources: tuple[str, ...]
    base: dict[str, float]
    seeds: tuple[int, ...]
    reading: Reading
    runs: dict[tuple[str | None, int], ProxyRun]

    def all_runs(self) -> list[ProxyRun]:
        """The runs in a fixed order, the full ones first."""
        keys = sorted(self.runs, key=lambda key: (key[0] is not None, key[0] or "", key[1]))
        return [self.runs[key] for key in keys]


@dataclass(frozen=True)
class Effect:
    """What removing a source does to a capability: `delta` in bits per byte, positive = the source helps."""

    source: str
    capability: str
    delta: float
    low: float
    high: float
    per_seed: dict[str, float]


@dataclass(frozen=True)
class Trajectory:
    """Delta during training, mean over seeds; `steps` are those of the full run."""

    source: str
    capability: str
    steps: tuple[int, ...]
    delta: tuple[float, ...]


@dataclass(frozen=True)
class LeaveOneOut:
    """The result. `draws` [resamples, sources, capabilities]: bootstrap draws of all deltas together."""

    plan: LeaveOneOutPlan
    capabilities: tuple[str, ...]
    baseline: dict[str, float]
    effects: tuple[Effect, ...]
    trajectories: tuple[Trajectory, ...]
    draws: np.ndarray
    notes: tuple[str, ...]


def plan_leave_one_out(
    sources: Iterable[str],
    base: Mapping[str, float] | None,
    seeds: Sequence[int],
    *,
    reading: Reading = "replaced",
) -> LeaveOneOutPlan:
    """Plan the runs; base None is the uniform mixture. Sources of base weight 0 cannot be removed.

    Raises RecipeError with fewer than two sources of positive weight, no seeds, or a base of other sources.
    """
    names = tuple(sorted(sources))
    weights = normalised(base) if base is not None else {name: 1 / len(names) for name in names}
    if set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))
        raise RecipeError(f"The base mixture and the sources differ in {odd[0]!r}", where="leave_one_out")
    present = [name for name in names if weights[name] > 0]
    if len(present) < 2 or not seeds:
        raise RecipeError(
            "Leaving one out needs at least two sources with weight, and one seed",
            where="leave_one_out",
            remedy="Add sources or seeds",
        )
    if reading not in ("replaced", "missing"):
        raise RecipeError(
            f"There is no reading {reading!r}", where="leave_one_out", remedy="replaced or missing"
        )
    runs: dict[tuple[str | None, int], ProxyRun] = {}
    for seed in dict.fromkeys(seeds):
        runs[None, seed] = ProxyRun(f"loo-all-seed{seed}", dict(weights), seed)
        for name in present:
            rest = normalised({n: 0.0 if n == name else w for n, w in weights.items()})
            share = 1.0 if reading == "replaced" else 1 - weights[name]
            label = "without" if reading == "replaced" else "missing"
            runs[name, seed] = ProxyRun(
                f"loo-{label}-{safe_name(name)}-seed{seed}", rest, seed, budget_share=share
            )
    return LeaveOneOutPlan(tuple(present), dict(weights), tuple(dict.fromkeys(seeds)), reading, runs)


def analyse_leave_one_out(
    plan: LeaveOneOutPlan, folder: Path, *, resamples: int = 1000, level: float = LEVEL, seed: int = 0
) -> LeaveOneOut:
    """Deltas, their intervals and trajectories from finished runs in `folder` (as `run_proxies` leaves it).

    Intervals combine two errors: of the seeds (Student's t over the paired differences of the seeds) and of
    the choice of probe documents (bootstrap over documents, the same ones for all runs). With one seed only
    the second is known, and the notes say so.
    """
    last = {key: evaluation_steps(folder, run.run_id)[-1] for key, run in plan.runs.items()}
    capabilities = tuple(sorted(_probes(folder, plan, last)))
    points, draws, baseline = _deltas(plan, folder, last, capabilities, seed, resamples)
    effects = []
    for j, source in enumerate(plan.sources):
        for c, capability in enumerate(capabilities):
            low, high = percentile_interval(draws[:, j, c], level)
            effects.append(
                Effect(
                    source,
                    capability,
                    float(points[:, j, c].mean()),
                    low,
                    high,
                    {str(s): float(points[i, j, c]) for i, s in enumerate(plan.seeds)},
                )
            )
    notes = [
        "Tokens of the removed source are replaced by those of the others"
        if plan.reading == "replaced"
        else "Tokens of the removed source are not replaced: runs without it are shorter"
    ]
    if len(plan.seeds) == 1:
        notes.append(
            "One seed: intervals cover the choice of probe documents only, not the chance of training"
        )
    trajectories = _trajectories(plan, folder, capabilities)
    return LeaveOneOut(plan, capabilities, baseline, tuple(effects), trajectories, draws, tuple(notes))


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


def safe_name(name: str) -> str:
    """A source's name as part of a file name; unequal names stay unequal."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")
    return slug if slug == name else f"{slug}.{hash_value(name)[:6]}"


def _probes(folder: Path, plan: LeaveOneOutPlan, last: Mapping[tuple[str | None, int], int]) -> set[str]:
    key = (None, plan.seeds[0])
    return set(read_evaluation(folder, plan.runs[key].run_id, last[key]))


def _deltas(
    plan: LeaveOneOutPlan,
    folder: Path,
    last: Mapping[tuple[str | None, int], int],
    capabilities: tuple[str, ...],
    seed: int,
    resamples: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Deltas [seeds, sources, capabilities], joint draws [resamples, sources, capabilities], baseline."""
    tables = {key: read_evaluation(folder, run.run_id, last[key]) for key, run in plan.runs.items()}
    points = np.zeros((len(plan.seeds), len(plan.sources), len(capabilities)))
    document_draws = np.zeros((resamples, len(plan.sources), len(capabilities)))
    baseline = {}
    for c, capability in enumerate(capabilities):
        keys = [(None, s) for s in plan.seeds] + [(j, s) for j in plan.sources for s in plan.seeds]
        nats, size, _ = align([tables[key][capability] for key in keys])
        bits = nats / math.log(2)
        full = bits[: len(plan.seeds)]
        without = bits[len(plan.seeds) :].reshape(len(plan.sources), len(plan.seeds), -1)
        difference = without - full[None]
        points[:, :, c] = difference.sum(axis=2).T / size.sum()
        # One resampling of documents for all sources; another for each capability, whose documents differ.
        document_draws[:, :, c] = ratio_draws(
            difference.mean(axis=1), size, seed=seed * 1009 + c, resamples=resamples
        )
        baseline[capability] = float(full.mean(axis=0).sum() / size.sum())
    return points, document_draws + student_draws(points, seed=seed, resamples=resamples), baseline


def _trajectories(
    plan: LeaveOneOutPlan, folder: Path, capabilities: tuple[str, ...]
) -> tuple[Trajectory, ...]:
    """Runs are compared at the same share of their training: the k-th evaluation with the k-th."""
    steps = {key: evaluation_steps(folder, run.run_id) for key, run in plan.runs.items()}
    counts = {len(found) for found in steps.values()}
    if len(counts) != 1:
        raise DataError(
            "The leave-one-out runs were not evaluated equally often",
            where=str(folder),
            remedy="Evaluate all of them at the same shares of their training",
        )
    shown = steps[None, plan.seeds[0]]
    deltas = np.zeros((len(shown), len(plan.sources), len(capabilities)))
    for at in range(len(shown)):
        last = {key: found[at] for key, found in steps.items()}
        deltas[at] = _deltas(plan, folder, last, capabilities, seed=0, resamples=1)[0].mean(axis=0)
    return tuple(
        Trajectory(source, capability, tuple(shown), tuple(deltas[:, j, c].tolist()))
        for j, source in enumerate(plan.sources)
        for c, capability in enumerate(capabilities)
    )
