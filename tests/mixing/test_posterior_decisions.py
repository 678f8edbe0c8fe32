"""What follows from the posterior: mixtures, claims, next runs, the front between capabilities."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.optimize import minimize

from benchmarks.mixing_worlds import make_world
from mixing.fit import fit_mixture
from mixing.fit.search import Simplex
from mixing.fit.tables import ProxyTable
from mixing.posterior import (
    first_mixtures,
    fit_posterior,
    influence_scales,
    pareto_front,
    propose,
    recommend,
)
from mixing.posterior.adaptive import knowledge_gradient_batch
from mixing.posterior.chance import permutation_p
from mixing.posterior.paths import project_all, starting_points
from mixing.posterior.recommend import best_mixture
from mixing.projection import project
from tests.mixing.test_posterior import METRICS, OBJECTIVE, SOURCES, law, runs

ALL = Simplex(SOURCES, np.zeros(4), np.ones(4))


def test_projection_of_many_is_the_projection_of_each() -> None:
    rng = np.random.default_rng(0)
    low, high = np.array([0.05, 0, 0, 0.1]), np.array([0.4, 0.35, 1, 0.6])
    weights = rng.dirichlet(np.full(4, 0.7), size=30)
    found = project_all(weights, low, high)
    for row, mine in zip(weights, found, strict=True):
        expected = project(
            dict(zip(SOURCES, row.tolist(), strict=True)), available_tokens=None, budget_tokens=1, max_epochs=None,
            minimum=dict(zip(SOURCES, low.tolist(), strict=True)),
            maximum=dict(zip(SOURCES, high.tolist(), strict=True)),
        )  # fmt: skip
        np.testing.assert_allclose(mine, [expected[s] for s in SOURCES], atol=1e-9)


@pytest.mark.parametrize("high", [1.0, 0.34])
def test_the_optimum_of_a_convex_law_is_found_within_a_thousandth(high: float) -> None:
    simplex = Simplex(SOURCES, np.zeros(4), np.full(4, high))
    posterior = fit_posterior(runs(120), components=1)
    found = best_mixture(posterior, OBJECTIVE, simplex, starting_points(posterior, OBJECTIVE, simplex, 0))
    truth = minimize(
        lambda w: law(w[None]).mean(), np.full(4, 0.25), bounds=[(0, high)] * 4, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-15, "maxiter": 500},
    ).x  # fmt: skip
    assert np.abs(found - truth).max() < 1e-3


def _write(folder, table: ProxyTable, order: np.ndarray, columns: list[int]) -> tuple:
    folder.mkdir()
    with (folder / "ratios.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["run_id", *(table.sources[j] for j in columns)])
        out.writerows([table.run_ids[i], *(repr(float(table.weights[i, j])) for j in columns)] for i in order)
    with (folder / "metrics.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["run_id", *table.metrics])
        out.writerows([table.run_ids[i], *(repr(float(x)) for x in table.losses[i])] for i in order[::-1])
    return folder / "ratios.csv", folder / "metrics.csv"


def test_as_a_method_it_does_not_depend_on_the_order_of_rows_and_columns(tmp_path) -> None:
    table = runs(14, noise=0.02)
    first = fit_mixture(*_write(tmp_path / "a", table, np.arange(14), [0, 1, 2, 3]), "posterior")
    order = np.random.default_rng(0).permutation(14)
    second = fit_mixture(*_write(tmp_path / "b", table, order, [2, 0, 3, 1]), "posterior")
    assert first.weights == second.weights and first.intervals == second.intervals
    assert first.intervals is not None
    for source, weight in first.weights.items():
        assert first.intervals[source][0] <= weight <= first.intervals[source][1]
    assert first.evidence is not None and "uniform" in first.evidence.verdict


def test_a_recommendation_says_how_sure_it_is_and_against_what() -> None:
    simplex = Simplex(SOURCES, np.zeros(4), np.array([1, 1, 1, 0.3]))
    posterior = fit_posterior(runs(24, noise=0.01))
    sizes = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 7.0}
    found = recommend(posterior, OBJECTIVE, simplex, proportional=sizes)
    assert found.separable and found.verdict.startswith("Better than uniform by")
    truth = (law(np.full((1, 4), 0.25)) - law(found.weights[None])) @ OBJECTIVE
    assert found.gain_over["uniform"][1] <= truth[0] <= found.gain_over["uniform"][2]
    assert found.beats["proportional"] > 0.95  # most of it is the useless source, cut to its cap
    assert sum(found.best_of.values()) == pytest.approx(1)
    assert found.regret[0] <= found.regret[1] and found.weights.sum() == pytest.approx(1)
    plain = json.loads(json.dumps(found.record()))
    assert plain["weights"]["d"] < 0.01 and plain["intervals"]["d"][0] == 0


def test_where_all_sources_are_equal_almost_nothing_is_claimed() -> None:
    claims = 0
    for number in range(6):
        world = make_world("equal", "interior", number)
        posterior = fit_posterior(world.table(16, 0), components=2)
        found = recommend(posterior, OBJECTIVE, world.simplex(), draws=4)
        claims += found.separable
        start = "Better than" if found.separable else "Not separable from uniform at this budget"
        assert found.verdict.startswith(start) and found.detectable > 0
    # Each is wrong with probability .025 at most, two of six with less than .01.
    assert claims <= 1


def test_the_permutation_test_keeps_its_level_and_finds_effects() -> None:
    rng = np.random.default_rng(0)
    at = rng.normal(size=(15, 3))
    blocks = np.repeat([0, 1, 2], 5)
    null = [permutation_p(at, rng.normal(size=15) + 5 * blocks, blocks, seed) for seed in range(60)]
    assert np.mean(np.array(null) <= 0.2) < 0.35 and np.mean(null) > 0.35
    assert permutation_p(at, np.sin(at[:, 0]) + 0.1 * rng.normal(size=15), np.full(15, -1), 0) < 0.01
    assert permutation_p(at, np.ones(15), blocks, 0) == 1.0


def test_informative_gradients_lower_regret_and_useless_ones_do_no_harm() -> None:
    regrets: dict[str, list[float]] = {"none": [], "informative": [], "useless": []}
    scales: dict[str, list[float]] = {"informative": [], "useless": []}
    for number, family in enumerate(("power", "log-share")):
        world = make_world(family, "sparse", 40 + number)
        table, simplex = world.table(12, 0), world.simplex()
        for kind in regrets:
            influence = () if kind == "none" else world.influence(kind, 0)
            posterior = fit_posterior(table, influence=influence, components=1)
            starts = starting_points(posterior, OBJECTIVE, simplex, 0)
            regrets[kind].append(world.regret(best_mixture(posterior, OBJECTIVE, simplex, starts)))
            if kind != "none":
                scales[kind] += [scale.scale for scale in influence_scales(posterior)]
    assert np.mean(regrets["informative"]) < 0.8 * np.mean(regrets["none"])
    assert np.mean(regrets["useless"]) < 1.35 * np.mean(regrets["none"])
    assert np.mean(scales["informative"]) > 0.3 and abs(np.mean(scales["useless"])) < 0.2


def test_knowledge_gradient_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    mean, covariance, noise = rng.normal(size=5), root @ root.T, 0.3
    gains = []
    for x in range(5):
        # By simulation: observe x, condition, take the least mean.
        change = covariance[:, x] / (covariance[x, x] + noise)
        seen = rng.normal(0, np.sqrt(covariance[x, x] + noise), 40_000)
        gains.append(mean.min() - (mean[:, None] + change[:, None] * seen).min(axis=0).mean())
    assert knowledge_gradient_batch(mean, covariance, noise, 1) == [int(np.argmax(gains))]
    # Without noise nothing is learned by asking again.
    batch = knowledge_gradient_batch(np.zeros(5), covariance, 0.0, 4)
    assert len(set(batch)) == 4


def test_next_runs_are_allowed_and_lie_where_the_decision_is() -> None:
    simplex = Simplex(SOURCES, np.full(4, 0.05), np.full(4, 0.6))
    weights = first_mixtures(simplex, 6)
    np.testing.assert_array_equal(weights[0], np.full(4, 0.25))
    assert len(np.unique(weights.round(6), axis=0)) == 6

    def decide(weights: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
        names = tuple(f"r{i:02d}" for i in range(len(weights)))
        noise = 0.02 * np.random.default_rng(seed).standard_normal((len(weights), 3))
        posterior = fit_posterior(
            ProxyTable(names, SOURCES, weights, METRICS, law(weights) + noise), components=2
        )
        best = best_mixture(posterior, OBJECTIVE, simplex, starting_points(posterior, OBJECTIVE, simplex, 0))
        return float(law(best[None]).mean()), propose(posterior, simplex, 6, objective=OBJECTIVE)

    uniform, least = float(law(weights[:1]).mean()), 1.5647  # of 200,000 allowed mixtures
    after = []
    for seed in range(4):
        _, chosen = decide(weights, seed)
        assert chosen.shape == (6, 4) and chosen.min() >= 0.05 - 1e-9 and chosen.max() <= 0.6 + 1e-9
        np.testing.assert_allclose(chosen.sum(axis=1), 1, atol=1e-9)
        # Asked where a mixture may be the best one: six runs more know little better, after a prior that fits.
        assert law(chosen).mean() - least < 0.5 * (law(weights).mean() - least)
        after.append(decide(np.vstack([weights, chosen]), seed)[0])
    assert np.mean(after) - least < 0.06 * (uniform - least)


def test_the_front_and_its_prices() -> None:
    posterior = fit_posterior(runs(40, noise=0.003))
    front = pareto_front(posterior, ALL, scalarisations=40)
    losses = np.array([[point.losses[name][0] for name in METRICS] for point in front.points])
    assert len(front.points) > 10 and np.all(np.diff(losses[:, 0]) >= 0)
    found = np.array([[point.weights[s] for s in SOURCES] for point in front.points])
    # Near the true front: no mixture of a fine cloud is better in all capabilities by more than a little.
    cloud = law(np.random.default_rng(0).dirichlet(np.full(4, 0.8), size=4000))
    better = (cloud[None] < law(found)[:, None] - 0.01).all(axis=2).any(axis=1)
    assert not better.any() and found[:, 3].max() < 0.05
    balanced = law(np.array([[front.balanced.weights[s] for s in SOURCES]]))[0]
    for price in front.prices:
        end = law(np.array([[price.end[s] for s in SOURCES]]))[0]
        g, k = METRICS.index(price.gain), METRICS.index(price.cost)
        true = (end[k] - balanced[k]) / (balanced[g] - end[g])
        assert price.price is not None and price.price[1] - 0.05 <= true <= price.price[2] + 0.05
        assert price.gain in price.sentence()
    assert len(json.loads(json.dumps(front.record()))["prices"]) == 6
