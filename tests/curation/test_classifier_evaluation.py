"""The report's figures are scikit-learn's, its intervals hold the truth, and leaked texts are found."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score, roc_auc_score

from curation.classifiers.annotated import Annotated, split_annotated
from curation.classifiers.evaluation import best_threshold, held_out_report
from curation.classifiers.leakage import leaked


def sample(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and their outcomes."""
    generator = np.random.default_rng(seed)
    p = generator.beta(0.7, 0.9, count)
    return p, (generator.random(count) < p).astype(float)


def test_binary_figures_are_scikit_learns() -> None:
    p, y = sample(400, 0)
    report = held_out_report(p, y, positive_from=0.5, threshold=0.37, seed=0, probabilities=p)
    said = p >= 0.37
    best = report["best_threshold"]
    assert best["f1"]["value"] == pytest.approx(f1_score(y, said), abs=1e-4)
    assert best["precision"]["value"] == pytest.approx(precision_score(y, said), abs=1e-4)
    assert best["recall"]["value"] == pytest.approx(recall_score(y, said), abs=1e-4)
    assert report["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-4)
    assert report["macro_f1"]["value"] == pytest.approx(f1_score(y, p >= 0.5, average="macro"), abs=1e-4)
    assert report["calibration"]["brier"]["value"] == pytest.approx(brier_score_loss(y, p), abs=1e-4)
    for row in report["thresholds"]:
        assert row["f1"] == pytest.approx(f1_score(y, p >= row["threshold"], zero_division=0), abs=1e-4)


def test_graded_figures_are_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    y = generator.integers(0, 6, 300).astype(float)
    s = y + generator.normal(0, 0.8, 300)
    report = held_out_report(s, y, positive_from=3, threshold=2.9, seed=0)
    rounded = np.rint(np.clip(s, 0, 5))
    assert report["macro_f1"]["value"] == pytest.approx(f1_score(y, rounded, average="macro"), abs=1e-4)
    assert report["macro_f1"]["classes"] == 6
    assert [row["threshold"] for row in report["thresholds"]] == [0.5 * k for k in range(1, 11)]
    assert report["calibration"]["of"] == "label"
    assert report["calibration"]["mean_squared_error"]["value"] == pytest.approx(
        np.mean((s - y) ** 2), abs=1e-4
    )


def test_calibration_by_hand() -> None:
    p = np.array([0.05, 0.05, 0.95, 0.95])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    found = held_out_report(p, y, positive_from=0.5, threshold=0.5, seed=0, probabilities=p)["calibration"]
    # two texts say .05 and .5 of them are positive; two say .95 and all are
    assert found["ece"]["value"] == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
    assert [(row["texts"], row["true"]) for row in found["reliability"]] == [(2, 0.5), (2, 1.0)]
    calibrated, outcome = sample(5_000, 3)
    honest = held_out_report(
        calibrated, outcome, positive_from=0.5, threshold=0.5, seed=0, probabilities=calibrated
    )
    proud = np.clip(2 * calibrated - 0.5, 0, 1)
    boast = held_out_report(proud, outcome, positive_from=0.5, threshold=0.5, seed=0, probabilities=proud)
    assert honest["calibration"]["ece"]["value"] < 0.03 < 0.1 < boast["calibration"]["ece"]["value"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    p, y = sample(100_000, 9)
    truth = f1_score(y, p >= 0.5)
    hits = 0
    for seed in range(60):
        p, y = sample(150, seed)
        f1 = held_out_report(p, y, positive_from=0.5, threshold=0.5, seed=seed)["best_threshold"]["f1"]
        hits += f1["low"] <= truth <= f1["high"]
    assert hits >= 52


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=20)
)
def test_the_best_threshold_is_the_best(rows: list[tuple[float, bool]]) -> None:
    scores, positive = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])

    def f1(threshold: float) -> float:
        kept = scores >= threshold
        return 2 * float((kept & positive).sum()) / float(kept.sum() + positive.sum() or 1)

    best = f1(best_threshold(scores, positive))
    assert best == pytest.approx(max(f1(t) for t in scores))


def test_reports_of_one_text_do_not_break() -> None:
    report = held_out_report(np.array([0.3]), np.array([1.0]), positive_from=0.5, threshold=0.5, seed=0)
    assert report["auc"] is None and report["best_threshold"]["f1"]["value"] == 0.0


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices([f"w{i}" for i in range(500)], k=count))


def test_leaked_texts_are_found_and_others_are_not() -> None:
    chance = random.Random(0)
    train = [words(chance, 120) for _ in range(200)]
    near = [t + " one more" for t in train[:5]]
    changed = []
    for text in train[5:10]:
        parts = text.split()
        parts[60] = "other"
        changed.append(" ".join(parts))
    fresh = [words(chance, 120) for _ in range(50)]
    half = [" ".join(t.split()[:60]) + " " + words(chance, 60) for t in train[10:20]]
    assert leaked(train, [*near, *changed, *fresh, *half]) == list(range(10))
    assert leaked(["a b"], ["a b", "a c", ""]) == [0]


def test_splits_keep_groups_together_in_any_order() -> None:
    rows = [Annotated(f"{i:03d}", f"text {i}", i % 2, f"g{i // 3}") for i in range(600)]
    first = split_annotated(rows, 0)
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    assert split_annotated(shuffled, 0) == first
    groups = [{e.group for e in part} for part in (first.train, first.validation, first.held_out)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert sum(map(len, (first.train, first.validation, first.held_out))) == 600
    assert 0.7 < len(first.train) / 600 < 0.9
    assert split_annotated(rows, 1) != first
    labels = [e.label for e in first.train]
    assert sum(a != b for a, b in itertools.pairwise(labels)) > 20, "not one class after the other"
