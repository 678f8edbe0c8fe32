"""Positive = the source helps; paired over documents and seeds; no claims from nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curation.errors import DataError, RecipeError
from mixing.leave_one_out import (
    Effect,
    analyse_leave_one_out,
    leave_one_out_json,
    loo_mixture,
    loo_weights,
    plan_leave_one_out,
    read_effects,
    write_leave_one_out,
)
from mixing.runs import run_proxies
from tests.mixing.worlds import make_settings, write_finished

BITS = 100 * math.log(2)  # nats of one document of 100 bytes at one bit per byte


def _world(folder, *, seeds, effects, seed_noise=0.0, document_noise=0.0, reading="replaced", rng=None):
    """Made-up runs: removing source j raises the probe by effects[j] bits per byte (at the last of two
    steps)."""
    rng = rng or np.random.default_rng(0)
    plan = plan_leave_one_out(effects, None, seeds, reading=reading)
    hard = {f"d{i}": rng.gamma(9, BITS / 9) for i in range(40)}
    for (source, seed), run in plan.runs.items():
        shared = 0.3 * np.random.default_rng(seed).normal()  # common to all runs of a seed
        shift = (effects[source] if source else 0.0) + rng.normal(0, seed_noise)
        evaluations = {
            step: {
                "code": {
                    d: n + BITS * (1 + shared + part * shift) + rng.normal(0, document_noise) * BITS
                    for d, n in hard.items()
                }
            }
            for step, part in ((5, 0.5), (10, 1.0))
        }
        write_finished(folder, run, evaluations)
    return plan


def test_positive_means_that_the_source_helps(tmp_path) -> None:
    plan = _world(tmp_path, seeds=[0, 1, 2], effects={"good": 0.2, "noise": -0.1, "neutral": 0.0})
    result = analyse_leave_one_out(plan, tmp_path)
    delta = {e.source: e.delta for e in result.effects}
    assert delta == pytest.approx({"good": 0.2, "noise": -0.1, "neutral": 0.0}, abs=1e-9)
    assert {e.source: set(e.per_seed) for e in result.effects}["good"] == {"0", "1", "2"}
    trajectory = {t.source: t for t in result.trajectories}["good"]
    assert trajectory.steps == (5, 10) and trajectory.delta == pytest.approx((0.1, 0.2))
    weights = loo_weights(result.effects)
    assert weights["good"] > 1 / 3 > weights["neutral"] == weights["noise"] == pytest.approx(1 / 6)
    assert "Removing these sources did not raise the mean loss" in loo_mixture(result).notes[-1]


def test_pairing_removes_what_the_seeds_share_and_intervals_hold_the_truth(tmp_path) -> None:
    inside = []
    rng = np.random.default_rng(7)
    for trial in range(20):
        truth = {"a": 0.05, "b": 0.0}
        folder = tmp_path / str(trial)
        plan = _world(folder, seeds=[0, 1, 2], effects=truth, seed_noise=0.03, document_noise=0.1, rng=rng)
        result = analyse_leave_one_out(plan, folder, resamples=300, seed=trial)
        for effect in result.effects:
            inside.append(effect.low <= truth[effect.source] <= effect.high)
            # The seeds differ by .3 bits; paired differences by about .04.
            assert effect.high - effect.low < 0.5
    assert 0.8 <= np.mean(inside) <= 0.99


def test_one_seed_says_what_its_interval_covers(tmp_path) -> None:
    plan = _world(tmp_path, seeds=[4], effects={"a": 0.1, "b": 0.0}, document_noise=0.05)
    result = analyse_leave_one_out(plan, tmp_path)
    value = leave_one_out_json(result, 1000)
    assert value["interval"] == "documents only" and any("One seed" in note for note in value["notes"])
    assert value["unit"] == "bits per byte" and value["tokens_per_run"] == 1000 and value["seeds"] == [4]
    write_leave_one_out(tmp_path / "loo.json", result)
    assert tuple(read_effects(tmp_path / "loo.json")) == result.effects


def test_weights_by_hand() -> None:
    effects = [Effect(s, "c", d, d, d, {}) for s, d in (("a", 0.3), ("b", 0.1), ("c", -0.1))]
    assert loo_weights(effects, shrink=0) == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.0})
    assert loo_weights(effects) == pytest.approx({"a": 0.75 / 2 + 1 / 6, "b": 0.25 / 2 + 1 / 6, "c": 1 / 6})
    harmful = [Effect(s, "c", -1.0, -1.0, -1.0, {}) for s in "ab"]
    assert loo_weights(harmful, shrink=0) == {"a": 0.5, "b": 0.5}
    # Capabilities of different size: scaled, each counts the same.
    two = effects[:2] + [Effect(s, "k", d, d, d, {}) for s, d in (("a", 0.001), ("b", 0.003))]
    assert loo_weights(two, shrink=0, scale="capability") == pytest.approx({"a": 0.5, "b": 0.5})
    with pytest.raises(DataError, match="no effect of source 'b'"):
        loo_weights([*effects, Effect("a", "k", 0, 0, 0, {})])


def test_weights_carry_intervals_and_limits(tmp_path) -> None:
    effects = {"good": 0.2, "noise": -0.1}
    plan = _world(tmp_path, seeds=[0, 1, 2], effects=effects, seed_noise=0.02)
    limits = {"available_tokens": {"good": 60, "noise": 100}, "budget_tokens": 100, "max_epochs": 1}
    mixture = loo_mixture(analyse_leave_one_out(plan, tmp_path), **limits)
    assert mixture.weights["good"] == pytest.approx(0.6) and mixture.intervals is not None
    assert mixture.method == "leave-one-out" and mixture.caps == {"good": 0.6, "noise": 1.0}


def test_both_readings_are_planned() -> None:
    plan = plan_leave_one_out(["a", "b", "c"], {"a": 2, "b": 1, "c": 1}, [0, 1])
    assert len(plan.all_runs()) == 8 and plan.all_runs()[0].weights == {"a": 0.5, "b": 0.25, "c": 0.25}
    replaced = plan.runs["a", 1]
    assert replaced.weights == {"a": 0.0, "b": 0.5, "c": 0.5} and replaced.budget_share == 1
    missing = plan_leave_one_out(["a", "b", "c"], {"a": 2, "b": 1, "c": 1}, [0], reading="missing").runs[
        "a", 0
    ]
    assert missing.weights == replaced.weights and missing.budget_share == 0.5
    assert missing.run_id != plan.runs["a", 0].run_id
    names = [run.run_id for run in plan_leave_one_out(["x/y", "x_y", "é"], None, [0]).all_runs()]
    assert len(set(names)) == 4
    with pytest.raises(RecipeError, match="at least two sources"):
        plan_leave_one_out(["a"], None, [0])
    with pytest.raises(RecipeError, match="differ in 'b'"):
        plan_leave_one_out(["a", "b"], {"a": 0.5, "z": 0.5}, [0])


def test_end_to_end_removing_the_only_source_of_a_capability_hurts_it(tmp_path) -> None:
    settings = make_settings(tmp_path, steps=24, evaluate=(12, 24))
    plan = plan_leave_one_out(["code", "wiki", "noise"], None, [0])
    run_proxies(plan.all_runs(), settings, tmp_path / "runs", workers=0)
    result = analyse_leave_one_out(plan, tmp_path / "runs", resamples=100)
    delta = {(e.source, e.capability): e.delta for e in result.effects}
    assert delta["code", "code"] > 0.02 and delta["wiki", "knowledge"] > 0.02
    assert delta["noise", "code"] < delta["code", "code"] and delta["noise", "knowledge"] < 0
    weights = loo_weights(result.effects)
    assert weights["noise"] < 1 / 3
