"""Weights without scoring everything: coverage of the adaptive sample, averaged gradients, against full scoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.errors import DataError, RecipeError
from mixing.influence import (
    AssemblySettings,
    InfluenceSettings,
    SampledWeights,
    Stopping,
    adaptive_influence,
    averaged_benefits,
    densities,
    influence_at_checkpoints,
    joint_benefit,
    probe_directions,
    read_benefits,
    read_record,
    sample_weights,
    score,
)
from mixing.influence.adaptive_sample import Estimate, look_error, wider_for_skewness
from mixing.influence.weights import positive_rows
from tests.mixing.test_influence_checkpoints import Trained

Population = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("sampling"))


def population(kind: str, seed: int, sources: int = 5, count: int = 2000) -> Population:
    rng = np.random.default_rng([seed, 5])
    found = {}
    for g in range(sources):
        tokens = np.clip(rng.lognormal(5, 1, count), 2, 1024).astype(int).astype(float)
        noise = rng.normal(size=count)
        if kind == "skewed":
            noise = 0.8 * (rng.lognormal(0, 1, count) - np.exp(0.5))
        elif kind == "long documents help":
            noise = 0.8 * noise + 0.5 * (np.log(tokens) - 5)
        mean = 0.04 * (g - 2) if kind == "one counts" and g else 2.0 - 0.6 * g
        found[f"s{g}"] = (mean + noise, tokens)
    return found


def sample(truth: Population, stopping: Stopping) -> SampledWeights:
    units = {name: np.arange(len(b)) for name, (b, _) in truth.items()}
    return sample_weights(
        units, lambda fresh: {n: (truth[n][0][at], truth[n][1][at]) for n, at in fresh.items()}, stopping
    )


def full_weights(truth: Population) -> np.ndarray:
    rho = np.array([(b * s).sum() / s.sum() for b, s in truth.values()])
    return positive_rows(rho[None])[0]


@pytest.mark.parametrize("kind", ["even", "skewed", "long documents help", "one counts"])
def test_intervals_hold_the_weights_of_the_full_scoring_wherever_they_stop(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At level .9 of 200 intervals 180 are expected to hold; 168 is 2.8 standard deviations fewer."""
    monkeypatch.setattr("mixing.influence.adaptive_sample.DRAWS", 4000)
    held, looks, share = [], [], []
    for seed in range(40):
        truth = population(kind, seed)
        found = sample(truth, Stopping(half_width=0.03, level=0.9, seed=seed))
        right = full_weights(truth)
        held += [w.low <= r <= w.high for w, r in zip(found.weights, right, strict=True)]
        assert all(w.low <= w.weight <= w.high for w in found.weights)
        if found.reached:
            assert max((w.high - w.low) / 2 for w in found.weights) <= 0.03
        looks.append(len(found.looks))
        share.append(sum(found.units.values()) / 10_000)
    assert sum(held) >= 168, (sum(held), np.mean(looks))
    assert np.mean(share) < 0.75


def test_the_error_is_spent_once_over_all_looks() -> None:
    parts = [look_error(0.05, look) for look in range(1, 60)]
    assert sum(parts) == pytest.approx(0.05) and parts[1] == 0.025
    assert sum(parts) <= 0.05 * (1 + 1e-12)


def test_estimates_by_hand_and_the_finite_population() -> None:
    benefit, tokens = np.array([2.0, 1.0, 4.0]), np.array([1.0, 3.0, 2.0])
    estimate = Estimate({"a": (benefit, tokens)}, {"a": 12})
    rho = (2 + 3 + 8) / 6
    terms = tokens * (benefit - rho) / 2
    assert estimate.rho[0] == pytest.approx(rho)
    assert estimate.errors(estimate.count)[0] == pytest.approx(np.sqrt((1 - 3 / 12) * terms.var(ddof=1) / 3))
    assert estimate.errors(np.array([12]))[0] == 0.0


def test_skewness_never_narrows_an_interval() -> None:
    noise = np.linspace(-4, 4, 81)[:, None]
    for skewness in (-0.8, -0.1, 0.0, 0.1, 0.8):
        wide = wider_for_skewness(noise, np.array([skewness]))
        assert (np.abs(wide) >= np.abs(noise) - 1e-6).all()
    assert wider_for_skewness(noise, np.array([0.5]))[-1] > 1.5 * noise[-1]


def test_more_is_taken_where_it_matters() -> None:
    rng = np.random.default_rng(3)
    tokens = np.full(3000, 10.0)
    truth = {
        "calm": (rng.normal(1, 0.01, 3000), tokens),
        "wild": (rng.normal(1, 2, 3000), tokens),
        "hopeless": (rng.normal(-9, 2, 3000), tokens),
    }
    found = sample(truth, Stopping(seed=1))
    assert found.units["wild"] > 5 * found.units["calm"] and found.units["hopeless"] == 64
    assert found.reached and found.weights[1].clipped and "within the ± 2" in found.why
    assert sample(truth, Stopping(seed=1)).record() == found.record()
    assert SampledWeights.from_record(found.record()) == found


def test_maxima_and_small_sources() -> None:
    truth = population("even", 0)
    stopped = sample(truth, Stopping(half_width=0.001, most=100))
    assert not stopped.reached and "maximum of 100 units" in stopped.why
    assert set(stopped.units.values()) == {100}
    truth["s0"] = (truth["s0"][0][:5], truth["s0"][1][:5])
    everything = sample({n: (b[:20], s[:20]) for n, (b, s) in truth.items()}, Stopping(half_width=0.001))
    assert everything.reached and "Everything was scored" in everything.why
    assert all(w.high - w.low < 1e-9 for w in everything.weights)
    with pytest.raises(RecipeError, match="half_width = 2"):
        Stopping(half_width=2)


def test_an_averaged_gradient_is_the_weighted_mean_of_the_benefits(trained: Trained) -> None:
    from training.checkpoint import load_checkpoint_model

    model = load_checkpoint_model(trained.job(12).checkpoint, averaged=False).double()
    directions = probe_directions(model, trained.probes)
    documents = trained.samples[:10]
    for reduction in ("mean", "sum"):
        scores = score(model, documents, directions, engine="explicit", context=12, reduction=reduction)  # type: ignore[arg-type]
        values, tokens, read = averaged_benefits(
            model, [documents[:7], documents[7:]], directions, context=12, reduction=reduction
        )  # type: ignore[arg-type]
        for at, part in enumerate((slice(0, 7), slice(7, 10))):
            s = scores.tokens[part]
            np.testing.assert_allclose(
                values[at], (scores.benefit[part] * s[:, None]).sum(0) / s.sum(), rtol=1e-9
            )
            assert tokens[at] == s.sum() and read >= s.sum()
    single, _, _ = averaged_benefits(model, [[d] for d in documents], directions, cosine=True)
    assert (np.abs(single) <= 1).all()
    own = {"self": probe_directions(model, {"self": documents[:1]}, context=4096)["self"]}
    same, _, _ = averaged_benefits(model, [documents[:1]], own, cosine=True)
    assert same[0, 0] == pytest.approx(1.0)


def test_an_adaptive_sample_of_documents_and_of_groups_against_scoring_everything(
    trained: Trained, tmp_path: Path
) -> None:
    from mixing.influence import choose_samples

    samples = choose_samples(trained.sources.values(), 60, seed=3)
    jobs = [trained.job(step, "code", "knowledge") for step in (6, 12)]
    table, _ = read_benefits(influence_at_checkpoints(jobs, trained.probes, samples, tmp_path / "full"))
    rho = densities(joint_benefit(table))
    right = positive_rows(np.array([[rho["code"], rho["prose"]]]))[0]
    cost = {}
    for groups in (0, 4):
        settings = InfluenceSettings(group_documents=groups)
        stopping = Stopping(half_width=0.1, first=8)
        found = adaptive_influence(
            jobs, trained.probes, samples, tmp_path / str(groups), settings, stopping=stopping
        )
        for w, truth in zip(found.sampled.weights, right, strict=True):
            assert w.low <= truth <= w.high
        scored = sum(found.sampled.units.values())
        assert found.table.num_rows == 4 * scored and found.sampled.reached
        assert 0 < found.forward_tokens <= found.full_tokens
        cost[groups] = found.records[0]["forwards_per_token"]
        # What was scored has the values of the full scoring.
        if groups == 0:
            known = {
                (r["document"], r["capability"], r["checkpoint"]): r["benefit"] for r in table.to_pylist()
            }
            for row in found.table.to_pylist():
                key = (row["document"], row["capability"], row["checkpoint"])
                assert row["benefit"] == pytest.approx(known[key], rel=2e-3, abs=2e-4)
    assert cost[4] == 3.0
    with pytest.raises(RecipeError, match="rms needs the benefits of all"):
        adaptive_influence(
            jobs, trained.probes, samples, tmp_path, assembly=AssemblySettings(normalise="rms")
        )


def test_groups_and_cosines_in_tables(trained: Trained, tmp_path: Path) -> None:
    jobs = [trained.job(12, "code", "knowledge")]
    exact = InfluenceSettings(engine="forward")
    plain, _ = read_benefits(
        influence_at_checkpoints(jobs, trained.probes, trained.samples, tmp_path / "a", exact)
    )
    groups = influence_at_checkpoints(
        jobs, trained.probes, trained.samples, tmp_path / "b", InfluenceSettings(group_documents=5)
    )
    table, _ = read_benefits(groups)
    assert table.num_rows == 2 * (2 + 2)
    want, got = densities(joint_benefit(plain)), densities(joint_benefit(table))
    assert got == {name: pytest.approx(value, rel=1e-4) for name, value in want.items()}
    assert read_record(groups[0])["engine"] == "averaged gradients"
    cosines = influence_at_checkpoints(
        jobs, trained.probes, trained.samples, tmp_path / "c", InfluenceSettings(cosine=True)
    )
    values = read_benefits(cosines)[0]["benefit"].to_numpy()
    assert np.abs(values).max() <= 1 and read_record(cosines[0])["engine"] == "explicit, cosine"
    signs = np.sign(values) == np.sign(plain["benefit"].to_numpy())
    assert signs.all()
    with pytest.raises(DataError, match="No token of source 'short'"):
        from mixing.influence import SampleDocument

        short = [*trained.samples[:4], SampleDocument("x", "short", np.array([1]))]
        influence_at_checkpoints(jobs, trained.probes, short, tmp_path / "d")
