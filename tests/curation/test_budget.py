"""The budget planner: its arithmetic by hand, and the coverage of its intervals by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from curation.budget import Cost, Cut, pilot_sample, plan_budget
from curation.duplicate_growth import growth_paths
from curation.errors import DataError, RecipeError


def funnel(
    rng: np.random.Generator, pilot: int, passing: float, unique: float, shares: tuple[float, float]
) -> list[Cut]:
    """What a pilot sees of a source whose true rates are given."""
    taught = int(rng.binomial(pilot, passing))
    reasoned = math.ceil(shares[0] * taught - 1e-9)
    chosen = math.ceil(shares[1] * reasoned - 1e-9)
    return [
        Cut("educational", pilot, taught),
        Cut("reasoning", taught, reasoned, share=shares[0]),
        Cut("domain", reasoned, chosen, share=shares[1]),
        Cut("deduplicated", chosen, int(rng.binomial(chosen, unique)), duplicates=True),
    ]


def read_until(
    rng: np.random.Generator, target: int, passing: float, unique: float, shares: tuple[float, float]
) -> int:
    """How many documents are really read, one after another, until `target` are left."""
    chosen = target + int(rng.negative_binomial(target, unique)) if unique < 1 else target
    taught = math.ceil(math.ceil(chosen / shares[1]) / shares[0])
    return taught + int(rng.negative_binomial(taught, passing))


@pytest.mark.parametrize("target", [60, 10_000])
def test_the_interval_covers_what_is_really_needed(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 simulated sources; a right 90 % interval covers 85 to 95 % of them."""
    monkeypatch.setattr("curation.budget.DRAWS", 4_000)
    rng = np.random.default_rng(target)
    covered = 0
    for number in range(300):
        passing, unique = rng.uniform(0.01, 0.6), rng.uniform(0.7, 0.99)
        shares = (rng.uniform(0.1, 1.0), rng.uniform(0.3, 1.0))
        cuts = funnel(rng, 2_000, passing, unique, shares)
        plan = plan_budget(f"s{number}", cuts, target, seed=number)
        needed = read_until(rng, target, passing, unique, shares)
        covered += plan.low <= needed <= (plan.high or math.inf)
    assert 0.85 <= covered / 300 <= 0.95


def test_known_numbers() -> None:
    cuts = [
        Cut("near_duplicates", 2_000, 2_000),
        Cut("educational", 2_000, 500),
        Cut("reasoning", 500, 50, share=0.1),
        Cut("domain", 50, 5, share=0.1),
    ]
    costs = [
        Cost("classifier", "educational", 0.01, 1e9),
        Cost("judge", "reasoning", 0.1, 1e10),
        Cost("judge", "domain", 0.1, 1e10),
    ]
    plan = plan_budget("web", cuts, 1_000, available=10_000_000, costs=costs)
    assert plan.needed == 400_000, "1000 / (.25 x .1 x .1)"
    assert plan.low < 400_000 < (plan.high or 0) < 450_000
    assert plan.verdict == "enough" and plan.expected == pytest.approx(25_000)
    # 400,000 are classified, 100,000 are asked about reasoning and 10,000 about the domain.
    assert plan.seconds == pytest.approx({"classifier": 4_000.0, "judge": 11_000.0})
    assert plan.flops == pytest.approx(400_000 * 1e9 + 110_000 * 1e10)
    more = plan_budget("web", cuts, 1_000, costs=[*costs, Cost("embedder", "domain", 0.1)])
    assert more.flops == plan.flops and more.flops_unknown == ("embedder",) and not plan.flops_unknown
    rate = {rate.name: rate for rate in plan.rates}["educational"]
    exact = binomtest(500, 2_000).proportion_ci(0.9, method="exact")
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high))


def test_a_source_that_cannot_give_them_is_told_so() -> None:
    cuts = [Cut("educational", 1_000, 100), Cut("domain", 100, 10, share=0.1)]
    plan = plan_budget("wiki", cuts, 10_000, available=30_000)
    assert plan.verdict == "not enough"
    assert plan.expected == pytest.approx(300)
    assert any("wiki cannot give 10,000 documents" in note and "30,000" in note for note in plan.notes)
    assert plan_budget("wiki", cuts, 10_000, available=30_000, at_least=True).verdict == "unknown"
    assert plan_budget("wiki", cuts, 300, available=30_000).verdict == "perhaps"
    assert plan_budget("wiki", cuts, 300).verdict == "unknown"


def test_nothing_passed() -> None:
    cuts = [Cut("educational", 500, 0), Cut("domain", 0, 0, share=0.1), Cut("deduplicated", 0, 0)]
    plan = plan_budget("proofs", cuts, 100, available=10_000)
    assert plan.needed is None and plan.high is None and plan.low > 10_000
    assert plan.verdict == "not enough" and plan.expected == 0
    assert any("None of the 500" in note for note in plan.notes)
    assert any("No document of proofs reached the cut `deduplicated`" in note for note in plan.notes)
    assert plan_budget("proofs", cuts, 1, available=10**7).verdict == "perhaps"


def test_duplicates_and_a_whole_pilot_are_named() -> None:
    plan = plan_budget("s", [Cut("deduplicated", 100, 90, duplicates=True)], 50, available=100, whole=True)
    assert any("lower bound" in note for note in plan.notes)
    assert any("whole of s" in note for note in plan.notes)


def test_all_that_pass_need_little_more_than_the_target() -> None:
    plan = plan_budget("s", [Cut("educational", 5_000, 5_000)], 1_000)
    assert plan.needed == 1_000 and plan.low == 1_000 and 1_000 <= (plan.high or 0) <= 1_010


def test_a_pilot_is_uniform_and_the_same_in_any_order() -> None:
    ids = [f"id {n}\n\u202e" for n in range(2_000)]
    sample = pilot_sample(ids, 500, 1)
    assert sample == pilot_sample(reversed(ids), 500, 1) and len(set(sample)) == 500
    assert sample != pilot_sample(ids, 500, 2)
    assert pilot_sample(sample, 10_000, 1) == sample, "larger than the source: all of it"
    low = sum(int(name.split()[1]) < 1_000 for name in sample)
    assert binomtest(low, 500).pvalue > 1e-4
    assert pilot_sample([], 5, 0) == []


def test_bad_settings() -> None:
    good = [Cut("a", 10, 5)]
    for arguments, message in (
        ({"target": 0}, "no target"),
        ({"level": 1.0}, "level"),
        ({"available": -1}, "available"),
    ):
        with pytest.raises(RecipeError, match=message):
            plan_budget("s", good, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="pilot of 0"):
        pilot_sample(["a"], 0, 0)
    with pytest.raises(RecipeError, match="share of 0"):
        plan_budget("s", [Cut("a", 1, 1, share=0.0)])
    with pytest.raises(DataError, match="no documents"):
        plan_budget("s", [Cut("a", 0, 0)])
    with pytest.raises(DataError, match="cannot have passed"):
        plan_budget("s", [Cut("a", 1, 2)])


def test_the_interval_holds_the_estimate() -> None:
    """A pilot of few documents, of which all passed, has a posterior below its own rate."""
    found = plan_budget("s", [Cut("a", 40, 40), Cut("b", 40, 20, share=0.5)], 40)
    assert found.needed is not None and found.high is not None
    assert found.low <= found.needed <= found.high and found.needed == 80


def groups(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(np.unique(labels, return_counts=True)[1].tolist())


def test_paths_are_the_pilots_own_up_to_its_size() -> None:
    """Hurlbert's formula against drawing: of groups of 3, 2 and 1, two documents are in 2 - (3 + 1) / 15 groups."""
    found = growth_paths([3, 2, 1], 50, 1_000, np.random.default_rng(0))
    at = {n: found.kept(np.full(50, float(n))) for n in (1, 2, 6, 1_000)}
    assert at[1] == pytest.approx(1) and at[2] == pytest.approx(2 - 4 / 15) and at[6] == pytest.approx(3)
    assert (at[1_000] >= 3).all() and (np.diff(found.groups, axis=1) >= -1e-9).all()
    assert (found.groups <= found.sizes + 1e-9).all()
    back = found.needed(found.kept(np.full(50, 300.0)))
    grows = found.kept(np.full(50, 300.0)) > 3.01
    assert (back[grows] <= 300.01).all() and (found.needed(np.full(50, 2_000.0)) == np.inf).all()


@pytest.mark.parametrize("kind", ["mixed", "templates"])
def test_growth_is_predicted_where_a_constant_share_promises_too_much(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources of known groups: the interval holds what ten times the pilot gives, and its middle is near."""
    monkeypatch.setattr("curation.budget.DRAWS", 4_000)
    rng = np.random.default_rng(5)
    covered, ratios, constant = 0, [], []
    for number in range(24):
        weights = np.exp(rng.normal(0, 1.0, int(rng.integers(200, 2_000))))
        labels = rng.choice(len(weights), 2_000, p=weights / weights.sum())
        if kind == "mixed":
            labels = np.where(rng.random(2_000) < rng.uniform(0.2, 0.8), 10**6 + np.arange(2_000), labels)
        sizes = groups(labels[:200])
        cuts = [Cut("deduplicated", 200, len(sizes), duplicates=True, groups=sizes)]
        plan = plan_budget(f"s{number}", cuts, 50, available=2_000)
        true = len(np.unique(labels))
        assert plan.expected and plan.expected_low is not None and plan.expected_high is not None
        covered += plan.expected_low <= true <= plan.expected_high
        ratios.append(plan.expected / true)
        constant.append(len(sizes) / 200 * 2_000 / true)
    assert covered >= 20
    assert abs(np.median(ratios) - 1) < 0.25 and np.median(constant) > 1.15 * np.median(ratios)


def square(rng: np.random.Generator, documents: int) -> np.ndarray:
    """Labels of random points of a square, each with the nearest kept one within a distance, or kept itself."""
    points, near = rng.random((documents, 2)), 10 ** rng.uniform(-2, -1)
    kept: list[int] = []
    labels = np.zeros(documents, dtype=np.int64)
    for row, point in enumerate(points):
        distances = ((points[kept] - point) ** 2).sum(axis=1)
        if kept and distances.min() < near**2:
            labels[row] = distances.argmin()
        else:
            labels[row] = len(kept)
            kept.append(row)
    return labels


@pytest.mark.parametrize("kind", ["uneven templates", "square"])
def test_intervals_hold_what_a_partition_does_not_foresee(kind: str) -> None:
    """Templates of very uneven weight end all the same, and gaps between groups of one size fill slowly."""
    rng = np.random.default_rng(11)
    documents = 2_000 if kind == "square" else 4_000
    covered = 0
    for _ in range(16):
        if kind == "square":
            labels = square(rng, documents)
        else:
            weights = np.arange(1, rng.integers(50, 800)) ** -rng.uniform(0, 1.2)
            labels = rng.choice(len(weights), documents, p=weights / weights.sum())
        paths = growth_paths(groups(labels[: documents // 10]), 1_000, documents, rng)
        low, high = np.quantile(paths.kept(np.full(1_000, float(documents))), [0.05, 0.95])
        covered += low <= len(np.unique(labels)) <= high
    assert covered >= 14


def test_chao_bound_is_where_bounded_paths_end() -> None:
    """30 groups seen once and 15 twice: 30 with 30^2 / (2 x 15) = 30 more, with the chance of the two counts."""
    from curation.duplicate_growth import _bounded

    sizes = np.array([1] * 30 + [2] * 15 + [40] * 10)
    new = _bounded(sizes, np.array([1e3, 1e9]), 4_000, np.random.default_rng(0))
    assert (new[:, 0] <= new[:, 1]).all()
    assert np.median(new[:, 1]) == pytest.approx(30, rel=0.1)


def test_a_target_beyond_all_templates_is_out_of_reach() -> None:
    """200 documents of 5 templates, each seen about 40 times: no number of them gives 100."""
    cut = Cut("deduplicated", 200, 5, duplicates=True, groups=(40, 40, 40, 40, 40))
    plan = plan_budget("s", [cut], 100, available=100_000)
    assert plan.high is None and plan.verdict in ("not enough", "perhaps")
    assert plan.expected is not None and plan.expected < 20
    assert plan_budget("s", [cut], 4).verdict == "unknown"
    few = plan_budget("s", [cut], 4, available=100_000)
    assert few.high is not None and few.high < 100 and few.verdict == "enough"


def test_groups_that_another_source_has_do_not_pass() -> None:
    cut = Cut("deduplicated", 100, 40, duplicates=True, groups=(2,) * 20 + (1,) * 60)
    plan = plan_budget("s", [cut], 10, available=100)
    assert plan.expected == pytest.approx(40, abs=1)
    with pytest.raises(DataError, match="hold 99 documents, not the 100"):
        plan_budget("s", [Cut("a", 100, 50, duplicates=True, groups=(99,))])
