"""Known optima are found, rows are joined by id, and what cannot be known is said."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from curation.errors import DataError, RecipeError
from mixing.fit import fit_mixture, read_proxy_table
from mixing.fit.gaussian_process import fit_process
from mixing.fit.log_linear import fit_log_linear

SOURCES = ["arxiv", "code", "web", "wiki"]
FLOORS = np.array([0.7, 0.9])
SLOPES = np.array([[-1.2, -0.4, 0.3, -0.9], [0.2, -1.5, 0.1, -0.2]])


def law(weights: np.ndarray) -> np.ndarray:
    return FLOORS + np.exp(weights @ SLOPES.T)


def optimum(high: float = 1.0) -> np.ndarray:
    found = minimize(
        lambda w: law(w).mean(), np.full(4, 0.25), bounds=[(0, high)] * 4, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return found.x


def write(
    folder: Path, weights: np.ndarray, losses: np.ndarray, *, names=SOURCES, order=None, seeds=None
) -> tuple:
    order = np.arange(len(weights)) if order is None else order
    ids = [f"run-{i:03d}" for i in range(len(weights))]
    folder.mkdir(exist_ok=True)
    with (folder / "ratios.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["run", "name", "index", *(["seed"] if seeds is not None else []), *names])
        for i, w in enumerate(weights):
            seed = [seeds[i]] if seeds is not None else []
            out.writerow([ids[i], f"v{i}", i, *seed, *(repr(float(x)) for x in w)])
    with (folder / "metrics.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["run", "name", "index", *(f"m{k}" for k in range(losses.shape[1]))])
        for i in order:
            out.writerow([ids[i], f"v{i}", i, *(repr(float(x)) for x in losses[i])])
    return folder / "ratios.csv", folder / "metrics.csv"


def design(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(4, 1.0), size=n)


def array(mixture) -> np.ndarray:
    return np.array([mixture.weights[s] for s in SOURCES])


def test_log_linear_recovers_a_known_optimum_within_a_thousandth(tmp_path) -> None:
    weights = design(32)
    tables = write(tmp_path, weights, law(weights))
    found = fit_mixture(*tables, "log-linear")
    assert np.abs(array(found) - optimum()).max() < 1e-3
    # Equally so with a cap that binds: the optimum under the cap, not the capped optimum.
    capped = fit_mixture(*tables, "log-linear", maximum=dict.fromkeys(SOURCES, 0.45))
    assert np.abs(array(capped) - optimum(0.45)).max() < 1e-3


def test_gaussian_process_comes_near_a_known_optimum_and_beats_the_best_run(tmp_path) -> None:
    weights = design(32)
    tables = write(tmp_path, weights, law(weights))
    mixture = fit_mixture(*tables, "gaussian-process")
    regret = law(array(mixture)).mean() - law(optimum()).mean()
    observed = law(array(fit_mixture(*tables, "best-of-n"))).mean() - law(optimum()).mean()
    assert 0 <= regret < 0.4 * observed
    evidence = mixture.evidence
    assert evidence is not None and evidence.beats["uniform"] > 0.95
    assert evidence.verdict.startswith("Better than uniform")


@pytest.mark.parametrize("method", ["log-linear", "gaussian-process", "best-of-n"])
def test_shuffled_rows_and_columns_give_the_same_answer(tmp_path, method: str) -> None:
    weights = design(14)
    losses = law(weights) + np.random.default_rng(1).normal(0, 0.005, (14, 2))
    first = fit_mixture(*write(tmp_path / "a", weights, losses), method)
    turned = [2, 0, 3, 1]
    order = np.random.default_rng(2).permutation(14)
    names = [SOURCES[j] for j in turned]
    second = fit_mixture(*write(tmp_path / "b", weights[:, turned], losses, names=names, order=order), method)
    assert second.weights == first.weights and second.intervals == first.intervals


def test_intervals_hold_the_truth_about_as_often_as_they_say(tmp_path) -> None:
    weights, truth, inside = design(30), optimum(), []
    rng = np.random.default_rng(5)
    for trial in range(4):
        tables = write(tmp_path / str(trial), weights, law(weights) + rng.normal(0, 0.01, (30, 2)))
        mixture = fit_mixture(*tables, "log-linear", seed=trial)
        assert mixture.intervals is not None
        inside += [
            low - 1e-3 <= t <= high + 1e-3
            for t, (low, high) in zip(truth, (mixture.intervals[s] for s in SOURCES), strict=True)
        ]
    assert np.mean(inside) >= 0.7


def test_gradients_of_the_process_are_right_and_left_out_predictions_too() -> None:
    weights = design(12)
    losses = law(weights)[:, 0]
    process = fit_process(weights, losses)
    point = np.array([0.3, 0.2, 0.4, 0.1])
    error = check_grad(lambda w: float(process.predict(w[None])[0]), process.gradient, point)
    assert error < 1e-5
    # Closed form against really leaving run 4 out with the same kernel and standardisation.
    keep = np.arange(12) != 4
    cross = process._cross(weights)
    noise = np.eye(11) * (process.noise + 1e-10)
    alpha = np.linalg.solve(cross[np.ix_(keep, keep)] + noise, process.targets[keep])
    expected = process.mean + process.scale * cross[4, keep] @ alpha
    assert process.left_out()[4] == pytest.approx(expected, rel=1e-6)


def test_log_linear_fit_is_as_low_as_scipys() -> None:
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.ones(4), 30)
    losses = 1 + np.exp(weights @ np.array([-1.0, -0.3, 0.2, 0.0])) + 0.02 * rng.standard_normal(30)
    losses[:3] += 0.3  # outliers
    for ridge in (1e-10, 0.1):

        def value(theta: np.ndarray, ridge: float = ridge) -> float:
            residuals = np.abs(theta[0] + np.exp(weights @ theta[1:]) - losses)
            huber = np.where(residuals <= 0.02, residuals**2 / 2, 0.02 * (residuals - 0.01))
            return float(huber.sum() + ridge / 2 * np.square(theta[1:] - theta[1:].mean()).sum())

        found = fit_log_linear(weights, losses, ridge=ridge)
        own = value(np.concatenate([[np.exp(found.log_floor)], found.slopes]))
        starts = [
            np.concatenate([[floor], slopes]) for floor in (0.1, 0.9) for slopes in (np.zeros(4), -np.ones(4))
        ]
        bounds = [(1e-13, None)] + [(None, None)] * 4
        best = min(minimize(value, start, bounds=bounds, method="L-BFGS-B", options={"maxiter": 2000}).fun
                   for start in starts)  # fmt: skip
        assert own <= best + 1e-7


def test_log_linear_law_is_recovered() -> None:
    weights = design(20)
    fitted = fit_log_linear(weights, law(weights)[:, 0])
    fresh = design(50, seed=9)
    np.testing.assert_allclose(fitted.predict(fresh), law(fresh)[:, 0], atol=1e-4)


def _deletions() -> np.ndarray:
    rows = [np.full(4, 0.25)]
    for j in range(4):
        w = np.full(4, 1 / 3)
        w[j] = 0
        rows.append(w)
    return np.array(rows)


def test_leave_one_out_from_anybodys_table(tmp_path) -> None:
    weights = np.repeat(_deletions(), 3, axis=0)
    seeds = np.tile([0, 1, 2], 5)
    noise = np.random.default_rng(0).normal(0, 0.2, 3)[seeds][:, None]  # shared by the runs of a seed
    tables = write(tmp_path, weights, law(weights) + noise, seeds=seeds)
    mixture = fit_mixture(*tables, "leave-one-out", shrink=0.0)
    base = law(_deletions()[0]).mean()
    delta = np.maximum(np.array([law(w).mean() - base for w in _deletions()[1:]]), 0)
    np.testing.assert_allclose(array(mixture), delta / delta.sum(), atol=1e-9)
    assert mixture.weights["web"] == 0  # removing it helps
    assert mixture.intervals is not None
    with pytest.raises(DataError, match="without 'wiki'"):
        fit_mixture(*write(tmp_path / "less", weights[:-3], law(weights[:-3])), "leave-one-out")


def test_methods_without_runs() -> None:
    sizes = {"big": 1600, "small": 100}
    assert fit_mixture(method="uniform", sources=["b", "a"]).weights == {"a": 0.5, "b": 0.5}
    assert fit_mixture(method="proportional", available_tokens=sizes).weights["small"] == pytest.approx(
        1 / 17
    )
    assert fit_mixture(method="temperature", available_tokens=sizes).weights["small"] == pytest.approx(0.2)
    unimax = fit_mixture(method="unimax", available_tokens=sizes, budget_tokens=1600, max_epochs=4)
    assert unimax.weights == pytest.approx({"big": 0.75, "small": 0.25})
    assert unimax.epochs == pytest.approx({"big": 0.75, "small": 4.0})


def test_unimax_equals_its_published_loop() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        sizes = {f"s{i}": float(n) for i, n in enumerate(rng.integers(1, 1000, size=6))}
        budget, epochs = float(rng.integers(100, 3000)), 2.0
        if sum(sizes.values()) * epochs < budget:
            continue
        left, share = budget, {}
        for place, name in enumerate(sorted(sizes, key=sizes.__getitem__)):
            share[name] = min(left / (6 - place), epochs * sizes[name])
            left -= share[name]
        found = fit_mixture(
            method="unimax", available_tokens=sizes, budget_tokens=int(budget), max_epochs=epochs
        )
        assert found.weights == pytest.approx({n: s / budget for n, s in share.items()})


def test_our_own_long_metrics_count_at_their_last_step(tmp_path) -> None:
    (tmp_path / "ratios.csv").write_text("run_id,seed,budget_tokens,a,b\nx,0,100,0.5,0.5\ny,0,100,1.0,0.0\n")
    (tmp_path / "metrics.csv").write_text(
        "run_id,step,probe,bits_per_byte,nats_per_token\ny,10,code,2.0,1\ny,20,code,1.0,1\nx,10,code,1.5,1\nx,20,code,1.25,1\n"
    )
    table = read_proxy_table(tmp_path / "ratios.csv", tmp_path / "metrics.csv")
    assert table.run_ids == ("x", "y") and table.losses.tolist() == [[1.25], [1.0]]
    assert table.weights.tolist() == [[0.5, 0.5], [1.0, 0.0]] and table.seeds == (0, 0)


GOOD = ("run,a,b\nx,0.5,0.5\ny,0.2,0.8\n", "run,m\nx,1.0\ny,2.0\n")


@pytest.mark.parametrize(
    ("ratios", "metrics", "match"),
    [
        (GOOD[0] + "x,0.5,0.5\n", GOOD[1], "'x' is there twice"),
        (GOOD[0], GOOD[1] + "x,3.0\n", "'x' is there twice"),
        (GOOD[0], "run,m\nx,1.0\n", "1 runs are not in this table: y"),
        (GOOD[0], GOOD[1] + "z,1.0\n", "not in this table: z"),
        ("run,a,b\nx,0.5,0.4\ny,0.2,0.8\n", GOOD[1], r"'x' sum to 0\.9"),
        ("run,a,b\nx,1.5,-0.5\ny,0.2,0.8\n", GOOD[1], "'x' has a negative share"),
        ("run,a,b,comment\nx,0.5,0.5,hello\ny,0.2,0.8,hi\n", GOOD[1], "'hello' in column 'comment'"),
        (GOOD[0], "run,m\nx,\ny,2.0\n", "'x' has '' in column 'm'"),
        (GOOD[0], "run,m\nx,nan\ny,2.0\n", "'x' has 'nan'"),
        (GOOD[0], "name,m\nx,1.0\ny,2.0\n", "no run id in common"),
        ("run,a,a\nx,0.5,0.5\n", GOOD[1], "'a' is there twice"),
        ("run,a,b\nx,0.5\n", GOOD[1], "Line 2 has 2 cells"),
        ("run,a,b\n", GOOD[1], "no runs"),
        (GOOD[0], "run,step,probe,bits_per_byte\nx,1,c,1\ny,1,c,1\ny,1,k,1\n", "'x' has no 'k'"),
    ],
)
def test_bad_tables_are_named(tmp_path, ratios: str, metrics: str, match: str) -> None:
    (tmp_path / "r.csv").write_text(ratios)
    (tmp_path / "m.csv").write_text(metrics)
    with pytest.raises(DataError, match=match):
        fit_mixture(tmp_path / "r.csv", tmp_path / "m.csv", "best-of-n")


def test_bad_requests_are_sentences(tmp_path) -> None:
    (tmp_path / "r.csv").write_text(GOOD[0])
    (tmp_path / "m.csv").write_text(GOOD[1])
    tables = (tmp_path / "r.csv", tmp_path / "m.csv")
    with pytest.raises(RecipeError, match="Did you mean 'log-linear'"):
        fit_mixture(*tables, "loglinear")
    with pytest.raises(RecipeError, match="metric 'n'"):
        fit_mixture(*tables, "best-of-n", objective={"n": 1})
    with pytest.raises(DataError, match="neither sources nor bookkeeping: b"):
        fit_mixture(*tables, "best-of-n", sources=["a"])
    with pytest.raises(RecipeError, match="needs to know how many tokens"):
        fit_mixture(*tables, "proportional")
    with pytest.raises(RecipeError, match="learns from proxy runs"):
        fit_mixture(method="log-linear")
    with pytest.raises(DataError, match="cannot be read"):
        fit_mixture(tmp_path / "none.csv", tables[1], "best-of-n")


def test_what_the_runs_cannot_tell_is_said(tmp_path) -> None:
    weights = design(3)
    few = fit_mixture(*write(tmp_path / "few", weights, law(weights)), "gaussian-process")
    assert any("3 runs span 2 of the 3 directions" in note for note in few.notes)
    few = fit_mixture(*write(tmp_path / "few", weights, law(weights)), "log-linear")
    assert few.intervals is None
    weights = design(8)
    same = fit_mixture(*write(tmp_path / "same", weights, np.ones((8, 2))), "gaussian-process")
    assert set(same.weights.values()) == {0.25} and "nothing tells mixtures apart" in same.notes[0]
