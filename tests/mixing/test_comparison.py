"""Paired differences, exact tests, and verdicts that hold their error rate when nothing differs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from curation.errors import DataError, RecipeError
from mixing.comparison import compare, plan_comparison, run_comparison
from mixing.paired import (
    crossed_bootstrap,
    detectable_factor,
    equivalence_test,
    holm,
    sign_flip_test,
    student_draws,
    t_interval,
    t_test,
)
from mixing.predicted import predicted_against_realised, slope
from tests.mixing.worlds import make_settings


def _scores(rng, *, seeds: int, effects: dict[str, float], noise: float, capabilities=("code", "knowledge")):
    """Seeds share a large part (as paired runs do); each run has its own noise."""
    shared = rng.normal(0, 0.3, seeds)
    return {
        name: {
            s: {c: 2.0 + shared[s] + effect + rng.normal(0, noise) for c in capabilities}
            for s in range(seeds)
        }
        for name, effect in effects.items()
    }


def test_sign_flip_equals_enumeration_by_hand() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 9):
        d = rng.normal(0.3, 1, n)
        patterns = [abs(np.dot(s, d)) for s in itertools.product((1, -1), repeat=n)]
        assert sign_flip_test(d) == pytest.approx(np.mean(np.array(patterns) >= abs(d.sum()) - 1e-12))
    assert sign_flip_test([1.0, 2.0, 3.0]) == 0.25
    assert sign_flip_test([0.0, 0.0]) == 1.0
    many = np.concatenate([np.ones(15), -np.ones(10)])  # above the enumerated size, against the binomial
    assert sign_flip_test(many) == pytest.approx(stats.binomtest(15, 25).pvalue, abs=0.01)


def test_small_statistics_equal_scipy_and_published_tables() -> None:
    d = np.random.default_rng(1).normal(0.5, 1, 7)
    low, high = t_interval(d, 0.9)
    reference = stats.ttest_1samp(d, 0)
    assert t_test(d) == pytest.approx(reference.pvalue)
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval(0.9)))
    assert t_interval([1.0]) is None and t_test([1.0]) is None
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    # Power of the paired t test at the stated effect, by simulation.
    k = detectable_factor(6)
    samples = np.random.default_rng(2).normal(k, 1, (20_000, 6))
    assert np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


def test_student_draws_have_the_spread_of_a_t_interval() -> None:
    d = np.random.default_rng(3).normal(0, 1, (3, 1))
    draws = d.mean() + student_draws(d, seed=0, resamples=40_000)[:, 0]
    assert np.quantile(draws, [0.05, 0.95]) == pytest.approx(t_interval(d[:, 0], 0.9), rel=0.05)


def test_a_null_world_is_not_separable_at_the_stated_rate() -> None:
    rng = np.random.default_rng(4)
    claims, better = 0, 0
    for _ in range(400):
        scores = _scores(rng, seeds=4, effects={"uniform": 0, "a": 0, "b": 0, "c": 0}, noise=0.02)
        rows = [r for r in compare(scores)["differences"] if r["capability"] == "mean"]
        claims += any(row["verdict"] != "not separable" for row in rows)
        better += any(row["verdict"] == "better" for row in rows)
    # Holm over three mixtures holds any false claim to 10 %, so "better" to about 5 % (3 sd of 400 trials
    # added).
    assert claims / 400 <= 0.10 + 0.045
    assert better / 400 <= 0.05 + 0.033
    assert claims > 0


def test_real_differences_are_found_with_their_sign() -> None:
    effects = {"uniform": 0.0, "good": -0.1, "bad": 0.1}
    result = compare(_scores(np.random.default_rng(5), seeds=5, effects=effects, noise=0.01), mixtures={})
    verdicts = {(r["mixture"], r["capability"]): r for r in result["differences"]}
    assert verdicts["good", "mean"]["verdict"] == "better" and verdicts["good", "mean"]["difference"] < 0
    assert verdicts["bad", "code"]["verdict"] == "worse" and verdicts["bad", "code"]["low"] > 0
    row = verdicts["good", "mean"]
    assert row["low"] < -0.1 < row["high"] and row["p_sign_flip"] == 2 / 32
    # The part that seeds share, .3, is gone from the paired differences.
    assert row["smallest_detectable"] < 0.05
    assert "better" in row["text"] and "5 paired seeds" in row["text"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {r["against"] for r in result["differences"]} == {"uniform"}
    assert len(result["runs"]) == 3 * 5 * 2


def test_one_seed_claims_nothing_and_documents_are_no_replicates() -> None:
    scores = {"uniform": {0: {"code": 2.0}}, "a": {0: {"code": 1.0}}}
    row = compare(scores)["differences"][0]
    assert row["verdict"] == "not separable" and row["low"] is None and row["p_t"] is None
    assert "one seed says nothing about chance" in row["text"]


def test_equal_runs_are_not_separable() -> None:
    scores = {n: {s: {"code": 2.0 + s} for s in range(3)} for n in ("uniform", "a")}
    row = compare(scores)["differences"][0]
    assert row["verdict"] == "not separable" and row["p_sign_flip"] == 1.0 and row["smallest_detectable"] == 0


def test_gaps_are_refused() -> None:
    good = {"uniform": {0: {"code": 2.0}, 1: {"code": 2.0}}, "a": {0: {"code": 1.0}}}
    with pytest.raises(DataError, match=r"'a' has the seeds \[0\]"):
        compare(good)
    with pytest.raises(DataError, match="other capabilities"):
        compare({"uniform": {0: {"code": 2.0}}, "a": {0: {"math": 1.0}}})
    with pytest.raises(RecipeError, match="no mixture 'uniform'"):
        compare({"a": {0: {"code": 2.0}}, "b": {0: {"code": 2.0}}})
    with pytest.raises(DataError, match="nan bits per byte"):
        compare({"uniform": {0: {"code": 2.0}}, "a": {0: {"code": float("nan")}}})
    with pytest.raises(RecipeError, match="different sources"):
        plan_comparison({"uniform": {"x": 1.0}, "a": {"y": 1.0}}, [0])


def test_end_to_end_on_trained_models(tmp_path) -> None:
    settings = make_settings(tmp_path, steps=10, evaluate=(10,))
    mixtures = {
        "uniform": dict.fromkeys(("code", "wiki", "noise"), 1 / 3),
        "noisy": {"code": 0.05, "wiki": 0.05, "noise": 0.9},
    }
    result = run_comparison(mixtures, [0, 1], settings, tmp_path / "comparison", workers=0)
    row = next(r for r in result["differences"] if r["capability"] == "mean")
    assert row["mixture"] == "noisy" and min(row["per_seed"]) > 0 and row["p_sign_flip"] == 0.5
    assert json.loads((tmp_path / "comparison" / "comparison.json").read_text()) == result


def test_equivalence_is_the_interval_inside_the_margin() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        d = rng.normal(0.1, 1, 6)
        low, high = t_interval(d, 0.9)
        inside = max(abs(low), abs(high))
        assert equivalence_test(d, inside * 1.001) < 0.05 < equivalence_test(d, inside * 0.999)
    reference = max(
        stats.ttest_1samp(d, -0.8, alternative="greater").pvalue,
        stats.ttest_1samp(d, 0.8, alternative="less").pvalue,
    )
    assert equivalence_test(d, 0.8) == pytest.approx(reference)
    assert equivalence_test([0.1], 1.0) is None
    assert equivalence_test([-0.1, 0.1], 1.0) == pytest.approx(0.0317, abs=1e-4)


def test_two_equal_mixtures_are_equivalent_and_not_only_not_separable() -> None:
    scores = _scores(np.random.default_rng(8), seeds=5, effects={"uniform": 0.0, "same": 0.0}, noise=1e-4)
    (row,) = [r for r in compare(scores)["differences"] if r["capability"] == "code"]
    assert row["equivalent"] and row["verdict"] == "not separable"
    assert "equivalent within" in row["text"]
    far = _scores(np.random.default_rng(8), seeds=5, effects={"uniform": 0.0, "far": -0.1}, noise=1e-4)
    assert not any(r["equivalent"] for r in compare(far)["differences"])


def test_bootstrap_over_seeds_and_documents_holds_its_level() -> None:
    """Crossed effects of seeds and documents, no difference: p below .1 in about a tenth of worlds, not more."""
    rng = np.random.default_rng(9)
    hits = 0
    for world in range(150):
        seeds, documents = 5, 40
        nats = (
            rng.normal(0, 3, (seeds, 1)) + rng.normal(0, 3, documents) + rng.normal(0, 3, (seeds, documents))
        )
        _, p = crossed_bootstrap(nats, np.full(documents, 100.0), seed=world, resamples=400)
        hits += p <= 0.1
    assert (
        1 <= hits <= 150 * 0.1 + 3 * np.sqrt(150 * 0.09) + 4
    )  # five seeds: a percentile bootstrap is a bit narrow
    real = rng.normal(20, 1, (5, 40))
    draws, p = crossed_bootstrap(real, np.full(40, 100.0), resamples=400)
    assert p < 0.02 and draws.mean() == pytest.approx(20 / 100 / np.log(2), rel=0.03)
    assert crossed_bootstrap(real[:1], np.full(40, 100.0), resamples=50)[1] == 1.0


def test_predictions_stand_beside_what_was_realised() -> None:
    scores = _scores(np.random.default_rng(5), seeds=5, effects={"uniform": 0.0, "good": -0.1}, noise=0.005)
    losses = {
        "uniform": {"code": (2.0, 1.9, 2.1), "knowledge": (2.0, 1.9, 2.1)},
        "good": {"code": (1.8, 1.75, 1.85), "knowledge": (1.9, 1.85, 1.95)},
    }
    rows = predicted_against_realised(losses, scores)
    assert [(r.mixture, r.capability) for r in rows] == [("good", "code"), ("good", "knowledge")]
    assert rows[0].predicted == pytest.approx(-0.2) and rows[0].inside is False
    assert rows[1].realised == pytest.approx(-0.1, abs=0.01) and rows[1].inside is True
    assert slope(rows) == pytest.approx((0.2 * 0.1 + 0.1 * 0.1) / (0.2**2 + 0.1**2), rel=0.1)
    changes = {"good": {"code": (-0.1, -0.12, -0.08)}}
    assert predicted_against_realised(changes, scores)[0].inside is True
    with pytest.raises(DataError, match="was not measured"):
        predicted_against_realised({"good": {"law": (1.0, 0.9, 1.1)}}, scores)
