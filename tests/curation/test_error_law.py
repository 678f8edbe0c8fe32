"""The law of a rough pass's errors against scipy's distributions, by hand, and under changes of unit and order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curation.error_law import DEGREES, FAMILY, PRIOR, _log_density, _upper_tail, error_law


def sample(count: int, seed: int = 0, scale: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Rough and exact scores: 0.05 too high at 3, a slope of 0.04, normal errors."""
    chance = np.random.default_rng(seed)
    rough = chance.uniform(2, 4, count)
    return rough, rough - 0.05 - 0.04 * (rough - 3) - scale * chance.standard_normal(count)


def test_densities_and_tails_are_scipys() -> None:
    z = np.linspace(0, 12, 49)
    for law in FAMILY:
        degrees, share, times = law
        plain = stats.norm() if np.isinf(degrees) else stats.t(degrees)
        density = (1 - share) * plain.pdf(z) + share * stats.norm(scale=times).pdf(z)
        tail = (1 - share) * plain.sf(z) + share * stats.norm(scale=times).sf(z)
        np.testing.assert_allclose(np.exp(_log_density(z, law)), density, rtol=1e-9)
        np.testing.assert_allclose(_upper_tail(z, law), tail, rtol=1e-9)
    assert PRIOR[: len(DEGREES)].sum() == pytest.approx(7) and PRIOR.sum() == pytest.approx(10)


def test_many_normal_differences_give_their_line_and_tail() -> None:
    law = error_law(*sample(4000), cut=3.0)
    assert float(law.shift(3.0)) == pytest.approx(0.05, abs=2e-3)
    assert float(law.shift(4.0) - law.shift(2.0)) == pytest.approx(0.08, abs=4e-3)
    assert law.scale == pytest.approx(0.02, rel=0.05)
    found = law.chance(0.02 * np.array([0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found[:3], stats.norm.sf([0, 1, 2]), rtol=0.15)
    assert stats.norm.sf(3) < found[3] < 2 * stats.norm.sf(3)


def test_few_differences_leave_heavy_tails_possible_and_many_do_not() -> None:
    far = np.array([5 * 0.02])
    chances = [float(error_law(*sample(count), cut=3.0).chance(far)[0]) for count in (32, 1000, 5000)]
    assert 3e-3 > chances[0] > 5 * chances[1] > 15 * chances[2] > 15 * stats.norm.sf(5)


def test_one_difference_that_is_far_from_the_others_brings_heavy_tails_back() -> None:
    rough, exact = sample(1000)
    plain = error_law(rough, exact, cut=3.0)
    exact[500] += 0.4
    other = error_law(rough, exact, cut=3.0)
    assert plain.chance(np.array([0.2]))[0] * 10 < other.chance(np.array([0.2]))[0]
    # The line and the scale hardly follow it.
    assert float(other.shift(3.0)) == pytest.approx(float(plain.shift(3.0)), abs=1e-3)
    assert other.scale == pytest.approx(plain.scale, rel=0.1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), unit=st.floats(0.1, 100), by=st.floats(-50, 50))
def test_units_zero_and_sides_do_not_matter(seed: int, count: int, unit: float, by: float) -> None:
    rough, exact = sample(count, seed)
    distances = np.geomspace(1e-3, 1, 12)
    plain = error_law(rough, exact, 2.5)
    for factor in (unit, -unit):
        other = error_law(factor * rough + by, factor * exact + by, factor * 2.5 + by)
        if count > 2:  # below that the scale is the least one
            np.testing.assert_allclose(
                other.chance(unit * distances), plain.chance(distances), rtol=1e-3, atol=1e-9
            )
    chances = plain.chance(np.append(distances, np.inf))
    assert (np.diff(chances) <= 0).all() and chances[0] <= 0.5 and chances[-1] == 0
    assert (np.diff(plain.corrected(np.sort(rough))) >= 0).all()


def test_equal_scores_and_no_differences_are_no_special_case() -> None:
    same = np.full(40, 3.0)
    law = error_law(same, same, 3.0)
    assert law.corrected(same).tolist() == same.tolist()
    assert law.chance(np.array([0.0]))[0] == pytest.approx(0.5) and law.chance(np.array([0.1]))[0] < 1e-3
