"""MixMin, RegMix, influence and DoReMi against hand-made values, brute force and SciPy."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from curation.errors import DataError, MachineError, RecipeError
from mixing import doremi
from mixing.fit import fit_mixture, read_proxy_table, regmix
from mixing.fit.influence_table import bounded_step, positive_shares, read_influence
from mixing.fit.mixmin import minimise_mixmin, mixture_loss
from mixing.fit.search import Simplex
from mixing.influence.joint import joint_benefit
from mixing.influence.weights import densities, positive_weights, trust_region_weights
from tests.mixing.fit_tables import SOURCES, design, law, make_table

FREE = Simplex(("a", "b", "c"), np.zeros(3), np.ones(3))
needs_lightgbm = pytest.mark.skipif(
    importlib.util.find_spec("lightgbm") is None, reason="lightgbm is not installed"
)


# ---- MixMin


def test_mixmin_by_hand() -> None:
    two = Simplex(("a", "b"), np.zeros(2), np.ones(2))
    found = minimise_mixmin(np.log([[0.5, 0.125], [0.125, 0.5]]), np.array([0.5, 0.5]), two)
    np.testing.assert_allclose(found.weights, [0.5, 0.5], atol=1e-6)
    assert found.value == pytest.approx(-math.log(5 / 16))


@pytest.mark.parametrize("high", [1.0, 0.45])
def test_mixmin_equals_scipy_and_its_gap_is_a_bound(high: float) -> None:
    rng = np.random.default_rng(0)
    simplex = Simplex(FREE.sources, np.array([0.0, 0.05, 0.0]), np.full(3, high))
    for _ in range(4):
        logs = rng.normal(-40, 2, (30, 3)) + 2 * rng.normal(size=(1, 3))
        importance = 1 / (30 * rng.integers(5, 50, 30))
        found = minimise_mixmin(logs, importance, simplex)
        reference = minimize(
            lambda w, logs=logs, a=importance: mixture_loss(logs, a, np.maximum(w, 1e-300)),
            np.full(3, 1 / 3), method="SLSQP", bounds=list(zip(simplex.low, simplex.high, strict=True)),
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        assert found.gap <= 1e-6
        assert found.value <= reference.fun + 1e-6
        rough = minimise_mixmin(logs, importance, simplex, gap=1e-2)
        assert rough.value - found.value <= rough.gap + 1e-9


def test_mixmin_recovers_the_mixture_that_made_the_texts() -> None:
    """Texts of one symbol from 20: the maximum of the likelihood is the true mixture, within 1e-3."""
    rng = np.random.default_rng(1)
    models = rng.dirichlet(np.ones(20), size=3)
    truth = np.array([0.2, 0.5, 0.3])
    found = minimise_mixmin(np.log(models.T), truth @ models, FREE, gap=1e-10)
    assert np.abs(found.weights - truth).max() < 1e-3


def _likelihoods(path, order, names=("a", "b", "c"), gap: bool = False):
    rng = np.random.default_rng(2)
    logs = rng.normal(-30, 2, (12, 3))
    rows = [
        {
            "document": f"d{i}",
            "source": name,
            "tokens": 10,
            "capability": "xy"[i % 2],
            "log_probability": logs[i, j],
        }
        for i in range(12)
        for j, name in enumerate(names)
    ]
    rows = [rows[i] for i in order][: -1 if gap else None]
    frame = pl.DataFrame(rows)
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return path


def test_mixmin_from_anybodys_table_in_any_order(tmp_path) -> None:
    first = fit_mixture(method="mixmin", likelihoods=_likelihoods(tmp_path / "a.parquet", range(36)))
    order = np.random.default_rng(0).permutation(36)
    second = fit_mixture(method="mixmin", likelihoods=_likelihoods(tmp_path / "b.csv", order))
    assert first.weights == second.weights and first.intervals == second.intervals
    assert all(low <= first.weights[s] <= high for s, (low, high) in first.intervals.items())
    wide = pl.read_parquet(tmp_path / "a.parquet").pivot(
        "source", index=["document", "tokens", "capability"], values="log_probability"
    )
    wide.write_csv(tmp_path / "wide.csv")
    assert fit_mixture(method="mixmin", likelihoods=tmp_path / "wide.csv").weights == first.weights
    with pytest.raises(DataError, match="'c' has not scored the text 'd11'"):
        fit_mixture(method="mixmin", likelihoods=_likelihoods(tmp_path / "gap.csv", range(36), gap=True))


def test_mixmin_from_our_runs(tmp_path) -> None:
    rows = {"a": [3.0, 9.0], "b": [9.0, 3.0]}
    for name, nats in rows.items():
        folder = tmp_path / name / "evaluations"
        folder.mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps({"run": {"weights": {name: 1.0}}}))
        table = {"probe": ["p", "p"], "id": ["x", "y"], "tokens": [4, 4], "nats": nats}
        pl.DataFrame(table).write_parquet(folder / "step-9.parquet")
    assert fit_mixture(method="mixmin", likelihoods=tmp_path).weights == pytest.approx({"a": 0.5, "b": 0.5})


# ---- RegMix


@needs_lightgbm
def test_regmix_finds_the_good_corner_and_is_seeded() -> None:
    weights = design(40)
    losses = (1 - 0.5 * weights[:, [1]]) + np.random.default_rng(0).normal(0, 0.002, (40, 1))
    table = make_table(weights, losses)
    found = fit_mixture(runs=table, method="regmix", regmix_candidates=2_000)
    assert found.weights["code"] > 0.4
    assert found.intervals["code"][0] <= found.weights["code"] <= found.intervals["code"][1]
    assert fit_mixture(runs=table, method="regmix", regmix_candidates=2_000) == found
    capped = fit_mixture(runs=table, method="regmix", regmix_candidates=2_000, maximum={"code": 0.4})
    assert capped.weights["code"] == pytest.approx(0.4, abs=0.02)


def test_regmix_without_its_library_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(MachineError, match=r"mixwright\[regmix\]"):
        regmix._lightgbm()


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_many_projections_equal_the_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = rng.uniform(0, 0.2, 4), rng.uniform(0.3, 1.0, 4)
    simplex = Simplex(SOURCES, low, high)
    points = rng.dirichlet(np.full(4, 0.5), size=5) + 1e-9
    expected = np.array([simplex.project(point) for point in points])
    np.testing.assert_allclose(simplex.project_all(points), expected, atol=1e-9)


# ---- influence


def _benefits(path, order=None, drop: int = 0):
    rng = np.random.default_rng(4)
    rows = [
        {
            "document": f"{source}{i}", "source": source, "capability": c, "reference": "r", "checkpoint": step,
            "tokens": 5 + i, "benefit": float(rng.normal(0.2 * j, 1)),
        }
        for j, source in enumerate(("a", "b", "c"))
        for i in range(6)
        for c in ("code", "maths")
        for step in (10, 30)
    ]  # fmt: skip
    rows = rows[drop:] if order is None else [rows[i] for i in order]
    pl.DataFrame(rows).write_parquet(path)
    return path


def test_influence_equals_the_floor_that_makes_the_tables(tmp_path) -> None:
    path = _benefits(tmp_path / "b.parquet")
    rho = densities(joint_benefit(pl.read_parquet(path).to_arrow()))
    table = read_influence(path)
    mine = table.densities(np.full(2, 0.5))
    np.testing.assert_allclose(mine, [rho[s] for s in table.sources], rtol=1e-12)
    assert fit_mixture(method="influence", influence=path).weights == pytest.approx(positive_weights(rho))
    current = {"a": 0.5, "b": 0.2, "c": 0.3}
    moved = fit_mixture(method="influence", influence=path, current=current, step=0.7)
    assert moved.weights == pytest.approx(trust_region_weights(current, rho, 0.7))
    assert positive_shares(np.array([3.0, 1.0, -2.0])).tolist() == [0.75, 0.25, 0.0]
    assert bounded_step(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 0.0).tolist() == [0.5, 0.5]


def test_influence_in_any_order_with_gaps_and_wrong_requests(tmp_path) -> None:
    path = _benefits(tmp_path / "b.parquet")
    shuffled = _benefits(tmp_path / "s.parquet", np.random.default_rng(0).permutation(72))
    first, second = (fit_mixture(method="influence", influence=p) for p in (path, shuffled))
    assert first.weights == second.weights and first.intervals == second.intervals
    with pytest.raises(DataError, match="Not every document of source 'a'"):
        fit_mixture(method="influence", influence=_benefits(tmp_path / "g.parquet", drop=1))
    with pytest.raises(RecipeError, match=r"'code2'.*Did you mean 'code'"):
        fit_mixture(method="influence", influence=path, objective={"code2": 1})
    with pytest.raises(RecipeError, match="names source 'z'"):
        fit_mixture(method="influence", influence=path, current={"z": 1.0}, step=0.5)
    with pytest.raises(RecipeError, match="needs a step"):
        fit_mixture(method="influence", influence=path, current={"a": 1.0})
    with pytest.raises(RecipeError, match="no reference 'q'"):
        fit_mixture(method="influence", influence=path, reference="q")
    with pytest.raises(RecipeError, match="table that nobody gave"):
        fit_mixture(method="influence")


# ---- DoReMi


def test_doremi_on_two_sources_by_hand(tmp_path) -> None:
    source = np.array([0, 0, 1])
    excess = doremi.excess_losses(np.array([3.0, 1, 2]), np.array([1.0, 2, 1.5]), source, np.zeros(2))
    assert excess.tolist() == [1.0, 0.5]
    kept = doremi.excess_losses(np.array([3.0]), np.array([1.0]), np.array([0]), np.array([9.0, 7.0]))
    assert kept.tolist() == [2.0, 7.0]  # source 1 is not in the batch and keeps its last
    state = doremi.update_weights(doremi.start_weights(2), np.array([math.log(3), 0]), eta=1.0, smoothing=0.0)
    np.testing.assert_allclose(state.current, [0.75, 0.25])
    state = doremi.update_weights(state, np.array([0.0, math.log(3)]), eta=1.0, smoothing=0.5)
    np.testing.assert_allclose(state.current, [0.5, 0.5])
    np.testing.assert_allclose(state.average, [0.625, 0.375])
    assert doremi.token_weights(np.array([0.75, 0.25]), source).tolist() == [0.375, 0.375, 0.25]
    assert doremi.token_weights(np.array([0.75, 0.25]), np.array([1, 1])).tolist() == [0.5, 0.5]
    (tmp_path / "doremi.json").write_text(json.dumps({"weights": {"a": 0.625, "b": 0.375}, "notes": ["n"]}))
    found = fit_mixture(method="doremi", doremi=tmp_path / "doremi.json", maximum={"a": 0.5})
    assert found.weights == pytest.approx({"a": 0.5, "b": 0.5}) and found.notes[0] == "n"


def test_doremi_says_when_its_weights_are_not_to_be_trusted() -> None:
    one_hot = np.tile([0.97, 0.03], (10, 1))
    assert "Nearly all weight (0.97) went to code" in doremi.stability(one_hot, ("code", "web"))[0]
    moving = np.column_stack([np.linspace(0, 1, 10), np.linspace(1, 0, 10)])
    assert "still move" in doremi.stability(moving, ("code", "web"))[0]
    assert doremi.stability(np.full((10, 2), 0.5), ("code", "web")) == ()
    with pytest.raises(DataError, match="not finite"):
        doremi.excess_losses(np.array([np.nan]), np.array([1.0]), np.array([0]), np.zeros(1))
    with pytest.raises(RecipeError, match="eta -1"):
        doremi.update_weights(doremi.start_weights(2), np.zeros(2), eta=-1)


# ---- all together


@given(st.permutations(range(6)), st.permutations(range(4)), st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_methods_see_one_table_whatever_the_order(rows, columns, others) -> None:
    """All that methods learn from runs is the table, so its order of sources, rows and metrics decides nothing."""
    weights = design(6)
    with tempfile.TemporaryDirectory() as folder:
        for name, order, places in (("a", range(6), range(4)), ("b", rows, columns)):
            header = ["run", *(SOURCES[j] for j in places)]
            lines = [[f"r{i}", *(repr(float(weights[i, j])) for j in places)] for i in order]
            Path(folder, f"{name}.csv").write_text("\n".join(",".join(line) for line in [header, *lines]))
        for name, order in (("ma", range(6)), ("mb", others)):
            lines = [f"r{i},{float(law(weights)[i, 0])!r}" for i in order]
            Path(folder, f"{name}.csv").write_text("\n".join(["run,m0", *lines]))
        first = read_proxy_table(Path(folder, "a.csv"), Path(folder, "ma.csv"))
        second = read_proxy_table(Path(folder, "b.csv"), Path(folder, "mb.csv"))
    assert (first.run_ids, first.sources) == (second.run_ids, second.sources)
    np.testing.assert_allclose(first.weights, second.weights, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(first.losses, second.losses)


def test_one_csv_with_shares_and_metrics_side_by_side(tmp_path) -> None:
    weights = design(12)
    with (tmp_path / "all.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["run", "seconds", *SOURCES, "m0", "m1"])
        for i, (w, y) in enumerate(zip(weights.tolist(), law(weights).tolist(), strict=True)):
            out.writerow([f"run-{i:03d}", 10, *map(repr, w), *map(repr, y)])
    found = fit_mixture(runs=tmp_path / "all.csv", sources=SOURCES, method="best-of-n")
    expected = fit_mixture(runs=make_table(weights, law(weights)), method="best-of-n")
    assert found.weights == pytest.approx(expected.weights) and found.evidence.seconds == 120
    with pytest.raises(RecipeError, match="which columns are the sources"):
        fit_mixture(runs=tmp_path / "all.csv", method="best-of-n")


def test_requests_that_cannot_be(tmp_path) -> None:
    table = make_table(design(6), law(design(6)))
    with pytest.raises(RecipeError, match="budget of 100 tokens is smaller than one batch of 2,048"):
        fit_mixture(runs=table, budget_tokens=100, batch_tokens=2048)
    with pytest.raises(RecipeError, match=r"maximum share of source 'web' is -0\.1"):
        fit_mixture(runs=table, maximum={"web": -0.1})
    with pytest.raises(RecipeError, match="At most -4 epochs"):
        tokens = dict.fromkeys(SOURCES, 1e9)
        fit_mixture(runs=table, available_tokens=tokens, budget_tokens=10**9, max_epochs=-4)
    with pytest.raises(RecipeError, match="Source 'wiki' has 0 tokens"):
        fit_mixture(runs=table, available_tokens=dict.fromkeys(SOURCES, 1e9) | {"wiki": 0})
    empty = dict.fromkeys(SOURCES, 1e9) | {"wiki": 0}
    assert fit_mixture(runs=table, available_tokens=empty, fixed={"wiki": 0}).weights["wiki"] == 0
    with pytest.raises(RecipeError, match=r"candidate 'mine' names source 'wikis'.*Did you mean 'wiki'"):
        fit_mixture(runs=table, candidates={"mine": {"wikis": 1.0}})
    (tmp_path / "m.json").write_text('{"weights": {"wiki": 0.7, "web": 0.2}}')
    with pytest.raises(RecipeError, match=r"sum to 0\.9"):
        fit_mixture(runs=table, candidates={"mine": tmp_path / "m.json"})


def test_what_few_runs_cannot_tell_is_named() -> None:
    weights = np.array(
        [[0.5, 0.3, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.2, 0.4, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]
    )
    notes = fit_mixture(runs=make_table(weights, law(weights))).notes
    assert any("the effects of web, wiki cannot be told apart" in note for note in notes)
