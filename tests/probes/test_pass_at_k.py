"""Estimators against enumeration of all subsets, and the errors against their definitions."""

from __future__ import annotations

import doctest
import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import probes.pass_at_k as module
from curation.errors import DataError, RecipeError
from probes.pass_at_k import avg_at_n, maj_at_k, mean_pass_at_k, pass_at_k


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 2), (6, 1), (7, 7)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, c: int) -> None:
    right = [1] * c + [0] * (n - c)
    for k in range(1, n + 1):
        subsets = [max(subset) for subset in itertools.combinations(right, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.sets(st.integers(0, 3)), st.data())
def test_maj_at_k_is_the_mean_over_subsets(drawn: list[int], right: set[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(drawn)))
    values = []
    for subset in itertools.combinations(drawn, k):
        votes = {name: subset.count(name) for name in subset if name >= 0}
        best = [name for name in votes if votes[name] == max(votes.values())]
        values.append(sum(name in right for name in best) / len(best) if best else 0.0)
    found = maj_at_k(np.array(drawn), np.array([name in right for name in drawn]), k)
    assert found == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_maj_at_k_of_many_samples_stays_a_probability() -> None:
    classes = np.repeat(np.arange(8), 8)
    right = classes == 3
    for k in (1, 16, 63, 64):
        assert maj_at_k(classes, right, k) == pytest.approx(1 / 8)  # by symmetry


def test_errors_of_avg_at_n() -> None:
    rng = np.random.default_rng(0)
    correct = rng.random((400, 8)) < rng.random(400)[:, None]
    found = avg_at_n(correct, resamples=4000)
    runs, problems = correct.mean(axis=0), correct.mean(axis=1)
    assert found.between_run == pytest.approx(runs.std(ddof=1))
    assert found.run_standard_error == pytest.approx(runs.std(ddof=1) / math.sqrt(8))
    assert found.standard_error == pytest.approx(problems.std() / math.sqrt(400), rel=0.05)
    assert found.interval.low < found.value < found.interval.high
    assert avg_at_n(correct[:, :1]).between_run is None
    assert mean_pass_at_k(correct, 1).value == pytest.approx(found.value)


def test_bad_input() -> None:
    with pytest.raises(RecipeError, match="5 of 4"):
        pass_at_k(4, 1, 5)
    with pytest.raises(DataError, match="both right and wrong"):
        maj_at_k(np.array([0, 0]), np.array([1, 0]), 1)
    with pytest.raises(DataError, match="problems by samples"):
        avg_at_n(np.zeros((0, 3)))


def test_none_of_a_few_solved_is_no_proof() -> None:
    for verdict in (0, 1):
        found = avg_at_n(np.full((6, 4), verdict))
        assert found.value == verdict and found.standard_error == 0.0
        z = statistics.NormalDist().inv_cdf(0.5 + found.interval.level / 2)
        assert found.interval.high - found.interval.low == pytest.approx(z**2 / (6 + z**2))
    assert avg_at_n(np.array([[0, 1]] * 6)).interval.low == 0.5  # resampling is all there is for a share
