"""Eqs. 5 and 6 by hand, their intervals, the bounded step, and the summary."""

from __future__ import annotations

import json
from math import exp

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import DataError, RecipeError
from mixing.influence import (
    BENEFIT_SCHEMA,
    benefit_table,
    checkpoint_weights,
    densities,
    joint_benefit,
    mixture_weights,
    positive_weights,
    summarise,
    trust_region_weights,
)


def rows_of(*rows: tuple, reference: str = "domain") -> pa.Table:
    """(document, source, capability, checkpoint, tokens, benefit)."""
    keys = ("document", "source", "capability", "checkpoint", "tokens", "benefit")
    return pa.Table.from_pylist(
        [{**dict(zip(keys, row, strict=True)), "reference": reference} for row in rows], schema=BENEFIT_SCHEMA
    )


# Two capabilities; code has checkpoints 10 and 30, mathematics 20 and 20 + 40.
HAND = rows_of(
    ("a1", "a", "code", 10, 1, 4.0),
    ("a1", "a", "code", 30, 1, 8.0),
    ("a2", "a", "code", 10, 3, 0.0),
    ("a2", "a", "code", 30, 3, 2.0),
    ("b1", "b", "code", 10, 5, -1.0),
    ("b1", "b", "code", 30, 5, -1.0),
    ("a1", "a", "mathematics", 20, 1, 3.0),
    ("a1", "a", "mathematics", 60, 1, -1.0),
    ("a2", "a", "mathematics", 20, 3, 2.0),
    ("a2", "a", "mathematics", 60, 3, 2.0),
    ("b1", "b", "mathematics", 20, 5, -3.0),
    ("b1", "b", "mathematics", 60, 5, 1.0),
)


def test_joint_benefit_by_hand() -> None:
    joint = joint_benefit(HAND)
    # a1: code 4/4 + 8*3/4 = 7, mathematics 3/4 - 3/4 = 0, mean 3.5; a2: 1.5 and 2, mean 1.75; b1: -1 and 0.
    assert joint.to_pydict() == {
        "document": ["a1", "a2", "b1"],
        "source": ["a", "a", "b"],
        "tokens": [1, 3, 5],
        "benefit": [3.5, 1.75, -0.5],
    }
    assert joint_benefit(HAND, capabilities=["code"])["benefit"].to_pylist() == [7.0, 1.5, -1.0]
    assert joint_benefit(HAND, checkpoints="uniform", capabilities=["code"])["benefit"][0].as_py() == 6.0
    assert joint_benefit(HAND, checkpoints="last", capabilities=["code"])["benefit"][0].as_py() == 8.0
    rates = {10: 3.0, 30: 1.0}
    by_rate = joint_benefit(HAND, checkpoints="learning_rate", learning_rates=rates, capabilities=["code"])
    assert by_rate["benefit"].to_pylist() == [5.0, 0.5, -1.0]
    assert checkpoint_weights([10, 30], {10: 1.0, 30: 1.0}) == {10: 0.5, 30: 0.5}


def test_densities_and_weights_by_hand() -> None:
    joint = joint_benefit(HAND)
    # a: (3.5 * 1 + 1.75 * 3) / 4 = 2.1875; b: -0.5
    assert densities(joint) == {"a": 2.1875, "b": -0.5}
    found = mixture_weights(joint, resamples=200)
    assert [(w.source, w.rho, w.weight, w.clipped) for w in found] == [
        ("a", 2.1875, 1.0, False),
        ("b", -0.5, 0.0, True),
    ]
    assert found[0].rho_low == pytest.approx(1.75) and found[0].rho_high == pytest.approx(3.5)
    assert positive_weights({"a": 3.0, "b": 1.0, "c": -2.0}, floor=0.5) == {
        "a": pytest.approx(3.6667 / 6, rel=1e-4),
        "b": pytest.approx(1.6667 / 6, rel=1e-4),
        "c": pytest.approx(0.6667 / 6, rel=1e-4),
    }
    assert positive_weights({"a": -1.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_bounded_step_by_hand() -> None:
    # Mean 0 and spread 1 under the current mixture: z is +1 and -1.
    moved = trust_region_weights({"a": 0.5, "b": 0.5}, {"a": 7.0, "b": 5.0}, step=1.0)
    assert moved["a"] == pytest.approx(exp(0.5) / (exp(0.5) + exp(-0.5)))
    assert trust_region_weights({"a": 0.7, "b": 0.3}, {"a": 1.0, "b": 1.0}, 1.0) == {"a": 0.7, "b": 0.3}
    with pytest.raises(DataError, match="'b' has a weight or a density but not both"):
        trust_region_weights({"a": 1.0, "b": 1.0}, {"a": 1.0}, 1.0)


names = st.text("abcdef", min_size=1, max_size=3)
values = st.floats(-100, 100, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.tuples(st.floats(0.01, 1), values), min_size=2, max_size=6), st.floats(0, 3))
def test_bounded_step_properties(sources: dict, step: float) -> None:
    current = {n: w for n, (w, _) in sources.items()}
    rho = {n: r for n, (_, r) in sources.items()}
    moved = trust_region_weights(current, rho, step)
    total = sum(current.values())
    assert sum(moved.values()) == pytest.approx(1.0)
    for name in moved:
        assert abs(moved[name] / (current[name] / total)) <= exp(2 * step) * (1 + 1e-9)
        assert moved[name] > 0
    # Only relative distances count.
    shifted = trust_region_weights(current, {n: 3.0 * r + 5.0 for n, r in rho.items()}, step)
    spread = max(rho.values()) - min(rho.values())
    if spread > 1e-6:
        assert shifted == {n: pytest.approx(w, rel=1e-5) for n, w in moved.items()}
    ratio = {n: moved[n] / current[n] for n in moved}
    assert all(ratio[a] <= ratio[b] * (1 + 1e-9) for a in moved for b in moved if rho[a] < rho[b])


documents = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 50), values), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(documents, st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_densities_are_linear_and_do_not_depend_on_order(docs: list, factor: float, random) -> None:
    def table(scale: float, order: list[int], steps=(1, 3)) -> pa.Table:
        return rows_of(
            *((f"d{i}", docs[i][0], "c", s, docs[i][1], scale * docs[i][2] * s) for i in order for s in steps)
        )

    order = list(range(len(docs)))
    base = mixture_weights(joint_benefit(table(1.0, order)), resamples=20)
    random.shuffle(order)
    again = mixture_weights(joint_benefit(table(1.0, order)), resamples=20)
    assert base == again
    scaled = densities(joint_benefit(table(factor, order)))
    assert scaled == {w.source: pytest.approx(factor * w.rho, rel=1e-9, abs=1e-9) for w in base}
    assert sum(w.weight for w in base) == pytest.approx(1.0)
    assert all(w.rho_low <= w.rho_high and w.low <= w.high for w in base)


def test_interval_narrows_with_documents_and_holds_the_truth() -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    held, widths = 0, []
    for count in (25, 400):
        for trial in range(30):
            table = rows_of(
                *((f"d{i}", "a", "c", 1, 10, float(b)) for i, b in enumerate(rng.normal(2, 1, count)))
            )
            [found] = mixture_weights(joint_benefit(table), resamples=300, seed=trial)
            held += found.rho_low <= 2 <= found.rho_high
            widths.append(found.rho_high - found.rho_low)
    assert 46 <= held <= 59  # 90 % of 60 is 54
    assert 3 < np.mean(widths[:30]) / np.mean(widths[30:]) < 5.5  # sqrt(400 / 25) = 4


def test_table_of_self_and_cross_influence() -> None:
    table = benefit_table({c: joint_benefit(HAND, capabilities=[c]) for c in ("code", "mathematics")})
    assert [(r["source"], r["capability"], r["benefit"], r["documents"], r["tokens"]) for r in table] == [
        ("a", "code", 2.875, 2, 4),
        ("b", "code", -1.0, 1, 5),
        ("a", "mathematics", 1.5, 2, 4),
        ("b", "mathematics", 0.0, 1, 5),
    ]
    assert table[1]["low"] == table[1]["high"] == -1.0


def test_normalised_probes_weigh_the_same() -> None:
    small = rows_of(
        *(("d" + str(i), s, "small", 1, 1, b) for i, (s, b) in enumerate([("a", 0.1), ("b", -0.1)]))
    )
    large = rows_of(*(("d" + str(i), s, "large", 1, 1, b) for i, (s, b) in enumerate([("a", -5), ("b", 5)])))
    both = pa.concat_tables([small, large])
    assert densities(joint_benefit(both))["b"] == pytest.approx(2.45)
    assert densities(joint_benefit(both, normalise="rms")) == {"a": 0.0, "b": 0.0}


def test_incomplete_tables_are_refused() -> None:
    with pytest.raises(DataError, match="'a2' of source a is not scored at every checkpoint"):
        joint_benefit(HAND.slice(0, 3))
    with pytest.raises(DataError, match="scored twice"):
        joint_benefit(pa.concat_tables([HAND, HAND]))
    with pytest.raises(DataError, match="no benefits for the capability 'knowledge'"):
        joint_benefit(HAND, capabilities=["knowledge"])
    with pytest.raises(RecipeError, match="Step 10 has no learning rate"):
        joint_benefit(HAND, checkpoints="learning_rate")
    with pytest.raises(RecipeError, match="must not all be zero"):
        checkpoint_weights([0], "step")


def proxies() -> dict[str, pa.Table]:
    """Domain models that pay for noise, and a uniform proxy that does not."""
    domain = {"wiki": 1.0, "code": 2.0, "noise": 3.0}
    uniform = {"wiki": 2.0, "code": 3.0, "noise": -0.5}
    return {
        name: rows_of(
            *((f"{s}{i}", s, "knowledge", 5, 10, b + 0.1 * i) for s, b in by.items() for i in range(4)),
            reference=name,
        )
        for name, by in (("domain", domain), ("uniform", uniform))
    }


def test_summary_keeps_the_papers_protocol_unless_it_pays_for_noise() -> None:
    plain = summarise(proxies(), resamples=50)
    assert plain["chosen"] == "domain" and "first of those" in plain["why"]
    guarded = summarise(proxies(), noise=["noise"], resamples=50)
    assert guarded["chosen"] == "uniform"
    assert "below its uniform share; domain and domain, bounded step did not" in guarded["why"]
    entry = guarded["references"]["uniform"]
    assert {w["source"]: w["clipped"] for w in entry["weights"]} == {
        "code": False,
        "noise": True,
        "wiki": False,
    }
    assert sum(w["weight"] for w in entry["weights"]) == pytest.approx(1)
    assert set(entry["table"][0]) == {"source", "capability", "benefit", "low", "high", "documents", "tokens"}
    assert set(entry["weights"][0]) == {
        "source", "rho", "rho_low", "rho_high", "weight", "low", "high", "clipped"
    }  # fmt: skip
    bounded = guarded["references"]["uniform, bounded step"]["weights"]
    assert all(w["weight"] > 0.05 for w in bounded) and bounded[1]["weight"] < 1 / 3
    json.dumps(guarded, allow_nan=False)


def test_summary_prefers_the_reference_that_agrees_with_leave_one_out() -> None:
    effects = [
        {"source": s, "capability": "knowledge", "delta": d}
        for s, d in (("wiki", 0.1), ("code", 0.3), ("noise", -0.2))
    ]
    found = summarise(proxies(), effects=effects, resamples=20)
    benefit = {row["source"]: row["benefit"] for row in found["references"]["uniform"]["table"]}
    expected = np.corrcoef([benefit["wiki"], benefit["code"], benefit["noise"]], [0.1, 0.3, -0.2])[0, 1]
    assert found["references"]["uniform"]["agreement"] == {"knowledge": pytest.approx(expected)}
    assert expected > 0.9
    assert found["references"]["domain"]["agreement"]["knowledge"] < 0
    assert found["chosen"] == "uniform" and f"{expected:.2f}" in found["why"]
    only = summarise({"domain": proxies()["domain"]}, noise=["noise"], resamples=20)
    assert "read it with care" in only["why"]
