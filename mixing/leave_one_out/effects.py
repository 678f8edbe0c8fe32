"""Deltas of a leave-one-out study from its finished runs, with intervals and their course during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from curation.errors import DataError
from mixing.leave_one_out.study import LEVEL, Effect, LeaveOneOut, LeaveOneOutPlan, Trajectory
from mixing.paired import student_draws
from mixing.runs import evaluation_steps, read_evaluation
from probes.intervals import align, percentile_interval, ratio_draws


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
