"""The posterior over losses: kernels, likelihood and conditioning against things that we did not write."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal

from curation.errors import DataError, RecipeError
from mixing.fit.tables import ProxyTable
from mixing.leave_one_out.study import Effect, LeaveOneOut, plan_leave_one_out
from mixing.posterior.evidence import Effects, Influence, effects_of, gather, influence_of
from mixing.posterior.fit import fit_posterior
from mixing.posterior.kernel import blocks, features, functionals, length_slopes
from mixing.posterior.model import OFFSET_VARIANCE, make_problem, negative_log_posterior
from mixing.posterior.paths import sampled_functions
from mixing.posterior.posterior import LossPosterior, make_component, moments
from mixing.posterior.trend import MEAN, SPREAD

SOURCES, METRICS = ("a", "b", "c", "d"), ("code", "knowledge", "math")
SLOPES = np.array([[-1.5, -0.2, -0.3, 0.2], [-0.1, -1.2, -0.2, 0.2], [0.0, -0.3, -1.6, 0.1]])
OBJECTIVE = np.full(3, 1 / 3)


def law(weights: np.ndarray) -> np.ndarray:
    return 1.0 + np.exp(weights @ SLOPES.T)


def runs(n: int, *, noise: float = 0.0, seed: int = 0, seeds: tuple[int, ...] | None = None) -> ProxyTable:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 1.2), size=n)
    losses = law(weights) + noise * rng.standard_normal((n, 3))
    return ProxyTable(tuple(f"r{i:03d}" for i in range(n)), SOURCES, weights, METRICS, losses, seeds)


def gradient_evidence(error: float = 0.0, seed: int = 0) -> Influence:
    """True benefits at uniform, in a unit of their own."""
    uniform = np.full(4, 0.25)
    slope = SLOPES * np.exp(SLOPES @ uniform)[:, None]
    rng = np.random.default_rng(seed)
    benefit = -slope.T + error * slope.std() * rng.standard_normal((4, 3))
    return Influence(SOURCES, METRICS, dict.fromkeys(SOURCES, 0.25), 7e-5 * (benefit + 3))


def deletions(seeds: int = 2, noise: float = 0.01) -> Effects:
    base = np.full(4, 0.25)
    without = [np.where(np.arange(4) == j, 0, 1 / 3) for j in range(4)]
    rng = np.random.default_rng(1)
    full = law(base[None]) + noise * rng.standard_normal((seeds, 1, 3))
    rest = law(np.array(without))[None] + noise * rng.standard_normal((seeds, 4, 3))
    return Effects(dict.fromkeys(SOURCES, 0.25), SOURCES, METRICS, rest - full)


def test_derivative_blocks_are_those_of_automatic_differentiation() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([0.4, 0.9, 1.5, 0.7])
    points, along = rng.dirichlet(np.ones(4), 5), np.eye(4)[[0, 2, 1, 3, 0]] - 0.25
    mixed = np.where(np.arange(5)[:, None] < 2, 0.0, along)  # two values, three derivatives
    found = blocks(functionals(points, mixed, 0.05), functionals(points, mixed, 0.05), lengths).matrix

    def kernel(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scale = abs(np.log(0.05))
        d = (torch.log(w + 0.05) - torch.log(v + 0.05)) / scale / torch.tensor(lengths)
        return torch.exp(-0.5 * d.square().sum())

    for i in range(5):
        for j in range(5):
            w, v = (torch.tensor(points[k], requires_grad=True) for k in (i, j))
            value = kernel(w, v)
            if i >= 2:
                (slope,) = torch.autograd.grad(value, w, create_graph=True)
                value = slope @ torch.tensor(along[i])
            if j >= 2:
                (slope,) = torch.autograd.grad(value, v)
                value = slope @ torch.tensor(along[j])
            assert found[i, j] == pytest.approx(float(value.detach()), abs=1e-11)


def test_length_slopes_are_finite_differences() -> None:
    rng = np.random.default_rng(2)
    of = functionals(rng.dirichlet(np.ones(4), 6), np.vstack([np.zeros((3, 4)), np.eye(4)[:3] - 0.25]), 0.02)
    weight = rng.normal(size=(6, 6))
    weight = weight + weight.T

    def total(log_lengths: np.ndarray) -> float:
        return float((weight * blocks(of, of, np.exp(log_lengths)).matrix).sum())

    def slope(log_lengths: np.ndarray) -> np.ndarray:
        lengths = np.exp(log_lengths)
        return length_slopes(of, blocks(of, of, lengths), weight, lengths)

    at = np.log([0.5, 0.8, 1.2, 0.6])
    assert check_grad(total, slope, at) < 1e-5 * np.abs(slope(at)).max()


@pytest.mark.parametrize("coupled", [False, True])
def test_likelihood_is_scipys_and_its_gradient_is_right(coupled: bool) -> None:
    table = runs(7, noise=0.02, seeds=(0, 0, 0, 1, 1, 1, 2))
    influence = Influence(("a", "b", "d"), ("code", "math"), {"a": 0.4, "b": 0.3, "c": 0.3}, np.eye(3)[:, :2])
    problem = make_problem(gather(table, deletions(), [influence]), 0.05, coupled)
    theta = problem.layout.mean + 0.3 * np.random.default_rng(3).standard_normal(problem.layout.size)
    value, slope = negative_log_posterior(theta, problem)
    prior = multivariate_normal(problem.layout.mean, np.linalg.inv(problem.layout.precision))
    expected = -multivariate_normal(_trend_mean(problem, theta), _dense(problem, theta)).logpdf(
        problem.targets
    )
    expected += prior.logpdf(problem.layout.mean) - prior.logpdf(theta)
    assert value == pytest.approx(expected, rel=1e-6)
    step = 1e-5 * np.eye(len(theta))
    numeric = [(negative_log_posterior(theta + e, problem)[0] - negative_log_posterior(theta - e, problem)[0]) / 2e-5
               for e in step]  # fmt: skip
    np.testing.assert_allclose(slope, numeric, atol=2e-4)


def _trend_rows(problem, extra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r of the trend by its definition, at the evidence (derivatives by differences) and at mixtures `extra`."""
    evidence = problem.evidence
    at = features(evidence.points[evidence.runs], problem.epsilon)

    def r(w: np.ndarray) -> float:
        away = np.log(w + problem.epsilon) / abs(np.log(problem.epsilon)) - at.mean(axis=0)
        return float(-away.sum() / np.sqrt(at.var(axis=0).sum()))

    seen = []
    for w, u, slope in zip(evidence.points, evidence.directions, evidence.derivative, strict=True):
        seen.append((r(w + 1e-6 * u) - r(w - 1e-6 * u)) / 2e-6 if slope else r(w))
    return np.array(seen), np.array([r(w) for w in extra])


def _trend_mean(problem, theta: np.ndarray) -> np.ndarray:
    """What the model expects of the observations, number by number."""
    part = {name: theta[at] for name, at in problem.layout.slots.items()}
    rows = _trend_rows(problem, np.zeros((0, 4)))[0]
    found = []
    for c, i in zip(problem.capability, problem.row, strict=True):
        response = part["scale"][c] / problem.expected[c] if problem.evidence.derivative[i] else 1.0
        found.append(MEAN * np.exp(part["trend"][c]) * response * rows[i])
    return np.array(found)


def _dense(problem, theta: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
    """The covariance of the observations, number by number from the model's definition (and of the noise-free
    losses at mixtures `extra`, capability by capability, after them)."""
    layout, evidence = problem.layout, problem.evidence
    part = {name: theta[at] for name, at in layout.slots.items()}
    rows = [("seen", int(c), int(i)) for c, i in zip(problem.capability, problem.row, strict=True)]
    extra = np.zeros((0, 4)) if extra is None else extra
    rows += [("new", c, i) for c in range(problem.outputs) for i in range(len(extra))]

    def feature(kind: str, i: int) -> np.ndarray:
        return features(evidence.points[i] if kind == "seen" else extra[i], problem.epsilon)

    def direction(kind: str, i: int) -> np.ndarray | None:
        if kind == "new" or not evidence.derivative[i]:
            return None
        return evidence.directions[i] / (
            (evidence.points[i] + problem.epsilon) * abs(np.log(problem.epsilon))
        )

    def kernel(q: int, one, two) -> float:
        lam = np.exp(-2 * part[f"length{q}"])
        d = feature(one[0], one[2]) - feature(two[0], two[2])
        k, u, v = np.exp(-0.5 * d @ (lam * d)), direction(one[0], one[2]), direction(two[0], two[2])
        if u is None and v is None:
            return k
        if u is None:
            return k * (d @ (lam * v))
        if v is None:
            return -k * (d @ (lam * u))
        return k * (u @ (lam * v) - (d @ (lam * u)) * (d @ (lam * v)))

    r_seen, r_new = _trend_rows(problem, extra)

    def trend(c: int, one, two) -> float:
        left, right = ((r_seen if row[0] == "seen" else r_new)[row[2]] for row in (one, two))
        return float((SPREAD * np.exp(part["trend"][c])) ** 2 * left * right)

    full = np.zeros((len(rows), len(rows)))
    for a, one in enumerate(rows):
        for b, two in enumerate(rows):
            (_, c, i), (_, e, j) = one, two
            responses = [1.0, 1.0]
            for place, (kind, cap, row) in enumerate((one, two)):
                if kind == "seen" and evidence.derivative[row]:
                    responses[place] = part["scale"][cap] / problem.expected[cap]
            signal = 0.0
            if c == e:
                signal += np.exp(2 * part["signal"][c]) * kernel(c, one, two) + trend(c, one, two)
            if problem.coupled:
                signal += part["loading"][c] * part["loading"][e] * kernel(problem.outputs, one, two)
            value = responses[0] * responses[1] * signal
            offset = [
                evidence.offset[i] if one[0] == "seen" else 0,
                evidence.offset[j] if two[0] == "seen" else 0,
            ]
            value += OFFSET_VARIANCE * (offset[0] == offset[1] and c == e)
            if one[0] == two[0] == "seen":
                plain = not evidence.derivative[i] and i == j
                value += (np.exp(2 * part["noise"][c]) + 1e-9) * (plain and c == e)
                if problem.coupled:
                    value += part["noise_loading"][c] * part["noise_loading"][e] * plain
                if "seed" in part:
                    value += np.exp(2 * part["seed"][c]) * (
                        c == e and evidence.seed[i] == evidence.seed[j] >= 0
                    )
                if evidence.derivative[i] and evidence.derivative[j]:
                    value += np.exp(2 * part["error"][c]) * (i == j and c == e)
                    same = (
                        evidence.toward[i] == evidence.toward[j] and evidence.offset[i] == evidence.offset[j]
                    )
                    value += np.exp(2 * part["bias"][0]) * same if "bias" in part else 0.0
            full[a, b] = value
    return full


def test_posterior_is_dense_conditioning_of_all_three_kinds_of_evidence() -> None:
    problem = make_problem(gather(runs(6, noise=0.02), deletions(), [gradient_evidence()]), 0.05, True)
    theta = problem.layout.mean + 0.3 * np.random.default_rng(5).standard_normal(problem.layout.size)
    component = make_component(problem, theta, 1.0)
    fresh = np.random.default_rng(6).dirichlet(np.ones(4), 3)
    joint, n = _dense(problem, theta, fresh), len(problem.targets)
    gain = np.linalg.solve(joint[:n, :n], joint[:n, n:]).T
    mean, covariance = moments(component, fresh)
    prior = MEAN * np.outer(_trend_rows(problem, fresh)[1], np.exp(theta[problem.layout.slots["trend"]]))
    away = problem.targets - _trend_mean(problem, theta)
    expected = ((gain @ away).reshape(3, 3).T + prior) * problem.scale + problem.mean
    np.testing.assert_allclose(mean, expected, rtol=1e-7)
    spread = (joint[n:, n:] - gain @ joint[:n, n:]).reshape(3, 3, 3, 3).transpose(1, 0, 3, 2)
    spread = spread * problem.scale[None, :, None, None] * problem.scale
    np.testing.assert_allclose(covariance, spread, atol=1e-7 * np.abs(spread).max() + 1e-9)


def test_samples_means_gradients_and_drawn_functions_agree() -> None:
    posterior = fit_posterior(runs(16, noise=0.03), influence=gradient_evidence(), components=3)
    points = np.random.default_rng(1).dirichlet(np.ones(4), 4)
    drawn = posterior.samples(points, 4000, seed=2)
    assert drawn.shape == (4000, 4, 3)
    np.testing.assert_array_equal(drawn, posterior.samples(points, 4000, seed=2))
    mean, covariance = posterior.objective_moments(points, OBJECTIVE)
    error = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(drawn.mean(axis=(0)) @ OBJECTIVE - mean) < 0.1 * error)
    np.testing.assert_allclose((drawn @ OBJECTIVE).std(axis=0), error, rtol=0.1)
    np.testing.assert_allclose(posterior.mean(points) @ OBJECTIVE, mean, rtol=1e-10)
    # Functions drawn as a whole have the same moments, capability by capability.
    for place in range(3):
        alone = np.eye(3)[place]
        mean, covariance = posterior.objective_moments(points, alone)
        functions = sampled_functions(posterior, alone, 1500, seed=4)
        values = np.stack([functions(np.tile(p, (1500, 1)))[0] for p in points], axis=1)
        error = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(values.mean(axis=0) - mean) < 0.2 * error)
        np.testing.assert_allclose(values.std(axis=0), error, rtol=0.2)
    functions = sampled_functions(posterior, OBJECTIVE, 3, seed=4)
    for place in range(3):

        def value(w: np.ndarray, place: int = place) -> float:
            return float(functions(np.tile(w, (3, 1)))[0][place])

        def slope(w: np.ndarray, place: int = place) -> np.ndarray:
            return functions(np.tile(w, (3, 1)))[1][place]

        assert check_grad(value, slope, points[0]) < 1e-5
    error = check_grad(
        lambda w: posterior.mean_gradient(w, OBJECTIVE)[0],
        lambda w: posterior.mean_gradient(w, OBJECTIVE)[1],
        points[1],
    )
    assert error < 1e-5
    assert posterior.mean_gradient(points[1], OBJECTIVE)[0] == pytest.approx(
        posterior.mean(points[1:2])[0] @ OBJECTIVE
    )


def _error(posterior: LossPosterior) -> float:
    fresh = np.random.default_rng(11).dirichlet(np.ones(4), 200)
    away = posterior.mean(fresh) - law(fresh)
    return float(np.sqrt(np.square(away - away.mean(axis=0)).mean()))


def test_leave_one_out_and_influence_make_the_prediction_better() -> None:
    table = runs(6, noise=0.02, seed=3)
    alone = _error(fit_posterior(table, components=1))
    assert _error(fit_posterior(table, deletions(seeds=3), components=1)) < 0.8 * alone
    assert _error(fit_posterior(table, influence=gradient_evidence(0.1), components=1)) < 0.9 * alone


def test_what_a_seed_shares_does_not_count_as_an_effect() -> None:
    weights = np.vstack([np.full(4, 0.25), 0.05 + 0.8 * np.eye(4)])
    seeds = np.repeat(np.arange(6), 5)
    shared = np.random.default_rng(0).normal(0, 0.3, 6)[seeds][:, None]
    losses = (
        law(np.tile(weights, (6, 1))) + shared + 0.005 * np.random.default_rng(1).standard_normal((30, 3))
    )
    order = np.random.default_rng(4).permutation(30)[:17]  # not every mixture with every seed
    pairs = tuple(int(seeds[i]) for i in order)
    names = tuple(f"r{i:02d}" for i in range(17))
    paired = ProxyTable(names, SOURCES, np.tile(weights, (6, 1))[order], METRICS, losses[order], pairs)
    plain = ProxyTable(names, SOURCES, paired.weights, METRICS, losses[order])

    def contrast(posterior: LossPosterior) -> tuple[np.ndarray, np.ndarray]:
        drawn = posterior.samples(weights, 800, 0) @ OBJECTIVE
        gap = drawn - drawn[:, :1]
        return gap.mean(axis=0), gap.std(axis=0)

    truth = law(weights) @ OBJECTIVE
    mean, spread = contrast(fit_posterior(paired))
    assert np.all(np.abs(mean - (truth - truth[0])) < 0.03)
    assert spread.max() < 0.4 * contrast(fit_posterior(plain))[1].max()


def test_records_of_other_parts_become_evidence() -> None:
    rows = [
        {"source": s, "capability": c, "benefit": i + 0.5 * k}
        for i, s in enumerate("ab")
        for k, c in enumerate(METRICS)
    ]
    record = influence_of(rows, {"a": 0.5, "b": 0.5})
    assert record.benefit.tolist() == [[0.0, 0.5, 1.0], [1.0, 1.5, 2.0]]
    plan = plan_leave_one_out("abcd", None, [3, 5])
    effects = tuple(
        Effect(s, c, 0.1, 0, 1, {"3": 0.1 * i, "5": 0.2 * i}) for i, s in enumerate("abcd") for c in METRICS
    )
    study = LeaveOneOut(plan, METRICS, {}, effects, (), np.zeros((1, 4, 3)), ())
    delta = effects_of(study).delta
    assert delta.shape == (2, 4, 3) and delta[1, 3, 0] == pytest.approx(0.6)
    evidence = gather(runs(3), effects_of(study))
    # The base and one run without each source, by seed; values without "a" have no "a".
    assert evidence.points.shape == (3 + 2 * 5, 4) and evidence.points[4].tolist() == [0, 1 / 3, 1 / 3, 1 / 3]
    missing = plan_leave_one_out("abcd", None, [3], reading="missing")
    with pytest.raises(DataError, match="did not replace"):
        effects_of(LeaveOneOut(missing, METRICS, {}, (), (), np.zeros((1, 4, 3)), ()))


def test_bad_evidence_is_named() -> None:
    table = runs(5)
    with pytest.raises(DataError, match="'x', which the table of runs has not"):
        gather(table, influence=[Influence(("a", "x"), METRICS, {"a": 1.0}, np.zeros((2, 3)))])
    with pytest.raises(DataError, match="'speed'"):
        gather(table, influence=[Influence(("a", "b"), ("speed",), {"a": 1.0}, np.eye(2)[:, :1])])
    with pytest.raises(DataError, match="not one row a source"):
        gather(table, influence=[Influence(("a", "b"), METRICS, {"a": 1.0}, np.zeros((2, 2)))])
    with pytest.raises(DataError, match="all zero"):
        gather(table, influence=[Influence(("a", "b"), METRICS, {"a": 0.0}, np.zeros((2, 3)))])
    with pytest.raises(RecipeError, match="epsilon of 2"):
        fit_posterior(table, epsilon=2)
    with pytest.raises(DataError, match="at least two runs"):
        fit_posterior(runs(1))
    # A metric that never varies, and influence that is equal for all sources, say nothing and break nothing.
    flat = ProxyTable(table.run_ids, SOURCES, table.weights, METRICS, np.ones((5, 3)))
    same = Influence(SOURCES, METRICS, dict.fromkeys(SOURCES, 0.25), np.ones((4, 3)))
    found = fit_posterior(flat, influence=same).mean(table.weights)
    np.testing.assert_allclose(found, 1.0, atol=1e-6)
