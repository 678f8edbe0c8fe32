"""The projection is the nearest mixture: it equals SciPy and a grid, and says what is missing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from curation.errors import RecipeError
from mixing.projection import epoch_caps, implied_epochs, project

FREE = {"available_tokens": None, "budget_tokens": 1000, "max_epochs": None}


def _divergence(w: np.ndarray, t: np.ndarray) -> float:
    return float(np.sum(np.where(w > 0, w * np.log(np.maximum(w, 1e-300) / t), 0.0)))


def test_the_example_of_the_docstring() -> None:
    weights = project(
        {"a": 0.8, "b": 0.1, "c": 0.1},
        available_tokens={"a": 40, "b": 1000, "c": 1000},
        budget_tokens=100,
        max_epochs=1,
    )
    assert weights == pytest.approx({"a": 0.4, "b": 0.3, "c": 0.3})


def test_equals_brute_force_on_a_grid() -> None:
    target = {"a": 0.6, "b": 0.3, "c": 0.1}
    bounds = {"minimum": {"c": 0.2}, "maximum": {"a": 0.35}}
    found = project(target, **FREE, **bounds)
    t = np.array([0.6, 0.3, 0.1])
    steps = 200
    best = min(
        (
            np.array([i, j, steps - i - j]) / steps
            for i, j in itertools.product(range(steps + 1), repeat=2)
            if i + j <= steps and i / steps <= 0.35 and (steps - i - j) / steps >= 0.2
        ),
        key=lambda w: _divergence(w, t),
    )
    w = np.array([found[n] for n in "abc"])
    assert _divergence(w, t) <= _divergence(best, t) + 1e-12
    assert np.abs(w - best).max() <= 1 / steps


SHARES = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6)


@settings(max_examples=40, deadline=None)
@given(SHARES, st.data())
def test_equals_scipy(raw: list[float], data: st.DataObject) -> None:
    n = len(raw)
    low = np.array(data.draw(st.lists(st.floats(0, 0.9 / n), min_size=n, max_size=n)))
    high = np.array(data.draw(st.lists(st.floats(0.05, 1.0), min_size=n, max_size=n)))
    assume(high.sum() > 1.01 and np.all(low <= high))
    t = np.array(raw) / sum(raw)
    names = [f"s{i}" for i in range(n)]
    found = project(
        dict(zip(names, raw, strict=True)),
        **FREE,
        minimum=dict(zip(names, low, strict=True)),
        maximum=dict(zip(names, high, strict=True)),
    )
    w = np.array([found[name] for name in names])
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert np.all(w >= low - 1e-12) and np.all(w <= high + 1e-12)
    start = low + (high - low) * (1 - low.sum()) / (high - low).sum()
    reference = minimize(
        lambda x: _divergence(x, t),
        start,
        jac=lambda x: np.log(np.maximum(x, 1e-300) / t) + 1,
        bounds=list(zip(np.maximum(low, 1e-9), high, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones_like(x)},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    # Nobody finds a nearer mixture that keeps the bounds ...
    if abs(reference.x.sum() - 1) < 1e-9:
        assert _divergence(w, t) <= _divergence(reference.x, t) + 1e-7
    # ... and the optimum's form, clip(mu t, l, c), holds: the free ones have one common factor.
    free = (w > low + 1e-9) & (w < high - 1e-9)
    if free.any():
        ratio = w[free] / t[free]
        assert ratio.max() == pytest.approx(ratio.min(), rel=1e-6)
        at_low = (w <= low + 1e-9) & (low < high)
        assert np.all(w[at_low] / t[at_low] >= ratio.min() - 1e-6)


@given(SHARES)
def test_a_feasible_proposal_is_kept_and_order_does_not_matter(raw: list[float]) -> None:
    names = [f"s{i}" for i in range(len(raw))]
    forward = project(dict(zip(names, raw, strict=True)), **FREE)
    backward = project(dict(zip(names[::-1], raw[::-1], strict=True)), **FREE)
    assert forward == backward
    assert list(forward) == names
    assert [forward[n] for n in names] == pytest.approx([w / sum(raw) for w in raw], rel=1e-9)


def test_fixed_shares_and_zero_weights() -> None:
    weights = project({"a": 1, "b": 1, "c": 2}, **FREE, fixed={"a": 0.1})
    assert weights == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6})
    assert project({"a": 1, "b": 0}, **FREE) == {"a": 1.0, "b": 0.0}
    assert project({"a": 1, "b": 0}, **FREE, minimum={"b": 0.2}) == pytest.approx({"a": 0.8, "b": 0.2})
    # What the sources with weight cannot take is shared equally by those without.
    weights = project({"a": 1, "b": 0, "c": 0}, **FREE, maximum={"a": 0.5})
    assert weights == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})


def test_infeasible_requests_say_how_many_tokens_are_missing_and_where() -> None:
    have = {"wiki": 100, "code": 50}
    with pytest.raises(RecipeError, match=r"400 tokens are missing.*code: 200.*wiki: 400"):
        project({"wiki": 1, "code": 1}, available_tokens=have, budget_tokens=1000, max_epochs=4)
    with pytest.raises(RecipeError, match=r"'code' asks for 300 tokens.*gives 200.*100 tokens are missing"):
        project(
            {"wiki": 1, "code": 1},
            available_tokens={"wiki": 900, "code": 50},
            budget_tokens=1000,
            max_epochs=4,
            fixed={"code": 0.3},
        )
    with pytest.raises(RecipeError, match=r"sum to 1\.2.*200 tokens more"):
        project({"wiki": 1, "code": 1}, **FREE, minimum={"wiki": 0.6, "code": 0.6})
    with pytest.raises(RecipeError, match="Did you mean 'wiki'"):
        project({"wiki": 1, "code": 1}, **FREE, minimum={"wikis": 0.6})
    with pytest.raises(RecipeError, match="above its maximum"):
        project({"wiki": 1, "code": 1}, **FREE, minimum={"wiki": 0.6}, maximum={"wiki": 0.5})
    for weights in ({}, {"a": -1.0}, {"a": math.nan}, {"a": 0.0}):
        with pytest.raises(RecipeError):
            project(weights, **FREE)
    with pytest.raises(RecipeError, match="budget of 0 tokens"):
        epoch_caps(["a"], None, 0, None)


def test_epochs() -> None:
    assert implied_epochs({"a": 0.5, "b": 0.5, "c": 0.0}, {"a": 100, "b": 400, "c": 0}, 800) == {
        "a": 4.0,
        "b": 1.0,
        "c": 0.0,
    }
