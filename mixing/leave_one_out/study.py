"""The records of a leave-one-out study, and the plan of its runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from curation.atomic import hash_value
from curation.errors import RecipeError
from mixing.mixture import normalised
from mixing.runs import ProxyRun

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


def safe_name(name: str) -> str:
    """A source's name as part of a file name; unequal names stay unequal."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")
    return slug if slug == name else f"{slug}.{hash_value(name)[:6]}"
