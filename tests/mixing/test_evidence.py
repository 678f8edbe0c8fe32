"""What comes out beside the weights: claims only where there is something, costs, predictions, and reasons."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from curation.errors import DataError
from mixing.evidence import Estimate, Evidence
from mixing.fit import ProcessPosterior, fit_mixture
from mixing.fit.loss_posterior import error_correlation
from mixing.fit.weighing import verdict, weigh
from mixing.mixture import Mixture, read_mixture, write_mixture
from tests.mixing.fit_tables import design, law, make_table


class Normal:
    """A posterior that is known: independent normal losses with these means [q, c], in the order asked."""

    def __init__(self, means: np.ndarray, sd: float) -> None:
        self.means, self.sd = means, sd

    def samples(self, weights: np.ndarray, draws: int, seed: int) -> np.ndarray:
        shape = (draws, *self.means.shape)
        return self.means + self.sd * np.random.default_rng(seed).standard_normal(shape)


def test_probabilities_of_a_known_posterior() -> None:
    posterior = Normal(np.array([[1.0, 2.0], [1.2, 2.2]]), 0.1)
    found = weigh(
        np.array([0.7, 0.3]), posterior, np.array([0.5, 0.5]), ("a", "b"), {"uniform": np.array([0.5, 0.5])},
        runs=9, basis="known", seed=0,
    )  # fmt: skip
    # The objectives are 1.5 and 1.7 with a standard deviation of .1 / sqrt(2) each; the difference has .1.
    assert found.beats["uniform"] == pytest.approx(norm.cdf(2.0), abs=0.01)
    assert found.best == pytest.approx({"this": norm.cdf(2.0), "uniform": norm.cdf(-2.0)}, abs=0.01)
    assert found.gain_percent["uniform"].value == pytest.approx(100 * 0.2 / 1.7, rel=0.02)
    assert found.detectable_percent == pytest.approx(100 * (1.6449 + 0.8416) * 0.1 / 1.7, rel=0.05)
    assert found.predicted["b"].low == pytest.approx(2 - 1.6449 * 0.1, abs=0.01)
    assert found.verdict.startswith("Better than uniform")


def test_the_sentence_of_the_verdict() -> None:
    better, worse = Estimate(2.0, 1.0, 3.0), Estimate(-2.0, -3.0, -1.0)
    assert "lower by 2 % (90% interval 1 to 3 %)" in verdict(0.99, better, 1.2)
    assert "higher by 2 % (90% interval 1 to 3 %)" in verdict(0.01, worse, 1.2)
    unclear = verdict(0.8, better, 2.5)
    assert unclear == "Not separable from uniform at this budget (smallest detectable effect 2.5 %)"
    assert verdict(None, None, None) == "This is the uniform mixture"


def test_no_claims_where_sources_are_equal_and_one_where_they_are_not() -> None:
    """Noise alone must not make winners: the processes of greatest likelihood alone would claim most of these."""
    claims, seen = 0, 0
    for world in range(12):
        rng = np.random.default_rng(world)
        table = make_table(design(24, world), 1.2 + rng.normal(0, 0.01, (24, 3)))
        evidence = fit_mixture(runs=table, method="best-of-n", seed=world).evidence
        claims += evidence.verdict.startswith(("Better", "Worse"))
        signal = law(table.weights) + rng.normal(0, 0.01, (24, 2))
        evidence = fit_mixture(runs=make_table(table.weights, signal), method="best-of-n").evidence
        seen += evidence.verdict.startswith("Better")
    assert claims <= 1 and seen == 12


def test_predictions_hold_the_truth() -> None:
    inside = []
    for world in range(10):
        rng = np.random.default_rng(100 + world)
        weights = design(24, 50 + world)
        posterior = ProcessPosterior.fit(make_table(weights, law(weights) + rng.normal(0, 0.01, (24, 2))))
        points = design(8, 200 + world)
        low, high = np.quantile(posterior.samples(points, 800, 0), [0.05, 0.95], axis=0)
        inside.append((low <= law(points)) & (law(points) <= high))
    assert 0.8 <= np.mean(inside) <= 1.0


def test_errors_of_metrics_are_correlated() -> None:
    errors = np.random.default_rng(0).normal(size=(10, 1)).repeat(2, axis=1)
    assert error_correlation(errors)[0, 1] == pytest.approx(0.5)
    weights, rng = design(20), np.random.default_rng(1)
    shared = rng.normal(0, 0.05, (20, 1))
    posterior = ProcessPosterior.fit(make_table(weights, law(weights) + shared))
    drawn = posterior.samples(design(1, 5), 3000, 0)[:, 0]
    assert np.corrcoef(drawn.T)[0, 1] > 0.2


def test_every_method_from_runs_says_all_and_the_costs() -> None:
    weights = np.vstack([np.full((1, 4), 0.25), (np.ones((4, 4)) - np.eye(4)) / 3, design(15)])
    losses = law(weights) + np.random.default_rng(3).normal(0, 0.005, (20, 2))
    table = replace(make_table(weights, losses), flops=2e12, seconds=60.0)
    tokens = {"arxiv": 5e8, "code": 1e9, "web": 5e9, "wiki": 4e8}
    for method in ("best-of-n", "leave-one-out", "log-linear", "gaussian-process", "uniform"):
        mixture = fit_mixture(
            runs=table, method=method, available_tokens=tokens, budget_tokens=10**9, max_epochs=4
        )
        evidence = mixture.evidence
        assert set(evidence.predicted) == {"m0", "m1"} and evidence.objective is not None
        assert set(evidence.beats) == {"uniform", "proportional"} - ({"uniform"} & {method})
        assert sum(evidence.best.values()) == pytest.approx(1)
        assert (evidence.flops, evidence.seconds, evidence.runs) == (2e12, 60.0, 20)
        if method in ("best-of-n", "log-linear", "gaussian-process"):
            assert mixture.intervals is not None


def test_candidates_and_methods_without_runs() -> None:
    weights = design(20)
    table = make_table(weights, law(weights))
    found = fit_mixture(runs=table, candidates={"mine": {"web": 1.0}}).evidence
    assert found.best["mine"] < 0.01
    without = fit_mixture(method="uniform", sources=["a", "b"]).evidence
    assert (
        without.verdict == "Whether it beats uniform is not known" and "No proxy runs" in without.reasons[0]
    )


def test_evidence_survives_the_file(tmp_path) -> None:
    evidence = Evidence(
        "Better", "known", 3, beats={"uniform": 0.9}, gain_percent={"uniform": Estimate(1, 0, 2)},
        best={"this": 1.0}, predicted={"m": Estimate(2, 1, 3)}, objective=Estimate(2, 1, 3),
        detectable_percent=1.5, flops=1e12, reasons=("why",),
    )  # fmt: skip
    mixture = Mixture({"a": 1.0}, evidence=evidence)
    write_mixture(tmp_path / "m.json", mixture)
    assert read_mixture(tmp_path / "m.json") == mixture
    write_mixture(tmp_path / "old.json", Mixture({"a": 1.0}))
    assert "evidence" not in json.loads((tmp_path / "old.json").read_text())
    (tmp_path / "bad.json").write_text('{"weights": {"a": 1}, "evidence": {"beats": 3}}')
    with pytest.raises(DataError, match="evidence of the mixture"):
        read_mixture(tmp_path / "bad.json")


def test_what_may_not_be_claimed_is_not_whatever_the_probability() -> None:
    gain = Estimate(2.0, 1.0, 3.0)
    assert verdict(0.99, gain, 0.5).startswith("Better than uniform")
    doubted = verdict(0.99, gain, 0.5, "chance explains the runs as well")
    assert doubted.startswith("Not separable from uniform") and "chance explains the runs as well" in doubted
