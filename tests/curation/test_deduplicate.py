"""Semantic deduplication against loops over all pairs; nothing depends on the order of the input."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clusters import estimate_recall
from curation.deduplicate import Duplicate, deduplicate, deduplicate_files, keep_order
from curation.documents import Document, document_id
from curation.errors import DataError, RecipeError
from curation.semantic_duplicates import find_duplicates, rows_near_others, semantic_duplicates
from curation.similarity_search import RoughVectors, candidates
from curation.verdicts import _duplicate


def unit_vectors(seed: int, count: int, dim: int, copies: int) -> np.ndarray:
    """Random rows of length 1, of which some are near-copies of others."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim))
    for _ in range(copies):
        a, b = rng.integers(0, count, 2)
        vectors[a] = vectors[b] + rng.uniform(0, 0.6) * rng.standard_normal(dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_loops(vectors: np.ndarray, threshold: float, rule: str) -> set[int]:
    """Rows that are dropped, by the definition."""
    exact = vectors.astype(np.float64)
    dropped: set[int] = set()
    for j in range(len(exact)):
        for i in range(j):
            if (rule == "semdedup" or i not in dropped) and exact[i] @ exact[j] >= threshold - 1e-6:
                dropped.add(j)
                break
    return dropped


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    dim=st.integers(2, 12),
    threshold=st.floats(0.3, 1.0),
    rule=st.sampled_from(["greedy", "semdedup"]),
)
def test_equals_loops_over_all_pairs(seed: int, count: int, dim: int, threshold: float, rule: str) -> None:
    vectors = unit_vectors(seed, count, dim, copies=count // 2)
    found = find_duplicates(vectors, threshold, rule=rule)  # type: ignore[arg-type]
    assert {j for j, _, _ in found} == by_loops(vectors, threshold, rule)
    for j, i, cosine in found:
        assert i < j
        assert cosine == pytest.approx(float(vectors[i].astype(float) @ vectors[j].astype(float)), abs=2e-6)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(3, 200, 8, copies=120)
    whole = find_duplicates(vectors, 0.9)
    monkeypatch.setattr("curation.semantic_duplicates.BLOCK", 7)
    monkeypatch.setattr("curation.semantic_duplicates.STRIPE", 13)
    assert find_duplicates(vectors, 0.9) == whole
    assert len(whole) > 20


def test_the_end_of_a_chain_says_that_it_fell_through_others() -> None:
    """Else a reader sees a cosine below the threshold beside the word duplicate."""
    assert _duplicate(Duplicate("a", "b", 0.95), 0.9) == "duplicate of b, cosine 0.9500"
    assert _duplicate(Duplicate("a", "b", 0.68), 0.9).endswith("0.6800, through others that were dropped")


def test_greedy_keeps_the_end_of_a_chain_and_semdedup_does_not() -> None:
    angles = np.deg2rad([0.0, 20.0, 40.0])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    threshold = float(np.cos(np.deg2rad(25)))
    assert [j for j, _, _ in find_duplicates(chain, threshold, rule="greedy")] == [1]
    shot = find_duplicates(chain, threshold, rule="semdedup")
    assert [(j, i) for j, i, _ in shot] == [(1, 0), (2, 0)]  # 2 fell to 1, which is not kept: 0 is named
    assert shot[1][2] == pytest.approx(np.cos(np.deg2rad(40)), abs=1e-5)


def test_clusters_find_what_lies_together() -> None:
    """Beyond the limit only pairs of a cluster are compared; exact copies always share one."""
    vectors = unit_vectors(5, 300, 16, copies=0)
    vectors = np.concatenate([vectors, vectors[:50]])
    exact = find_duplicates(vectors, 0.999)
    clustered = find_duplicates(vectors, 0.999, exact_documents=100)
    assert len(exact) == 50
    assert clustered == exact


@pytest.mark.parametrize("rough", [torch.bfloat16, torch.float32])
def test_the_bound_of_the_rough_product_holds(rough: torch.dtype) -> None:
    """No pair that reaches the threshold is passed over, and the bound is above every error that occurs."""
    vectors = unit_vectors(11, 400, 384, copies=300)
    search, rows = RoughVectors(vectors, rough=rough), np.arange(400)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    product = (search.rows @ search.rows.T).double().numpy()
    assert 0 < np.abs(product - exact).max() < search.band < 0.01
    for threshold in (0.5, 0.9, 0.99, 1e-3):
        found = set(zip(*(side.tolist() for side in candidates(search, rows, rows, threshold)), strict=True))
        assert set(zip(*(side.tolist() for side in np.nonzero(exact >= threshold)), strict=True)) <= found


@pytest.mark.parametrize("rule", ["greedy", "semdedup"])
@pytest.mark.parametrize("exact_documents", [10_000, 0])
def test_threads_do_not_show(rule: str, exact_documents: int) -> None:
    vectors = unit_vectors(4, 3000, 24, copies=1500)
    results = [
        semantic_duplicates(vectors, 0.9, rule=rule, exact_documents=exact_documents, workers=workers)  # type: ignore[arg-type]
        for workers in (1, 3)
    ]
    assert results[0] == results[1]
    assert len(results[0].found) > 500


def test_clusters_compare_what_shares_one_of_the_nearest() -> None:
    """More probes find more, all probes find everything, and the estimate of the recall covers the true one."""
    vectors = unit_vectors(6, 900, 12, copies=600)
    exact = {j for j, _, _ in find_duplicates(vectors, 0.9)}
    found = {p: semantic_duplicates(vectors, 0.9, exact_documents=0, probes=p) for p in (1, 3, 30)}
    shares = [len(result.found) / len(exact) for result in found.values()]
    assert shares[0] < shares[1] <= shares[2] + 0.02
    assert {j for j, _, _ in found[30].found} == exact
    for result in found.values():
        kept = set(range(900)) - {j for j, _, _ in result.found}
        assert all(i in kept and i < j for j, i, _ in result.found)
        assert result.recall is not None and result.recall.sampled == len(
            kept
        )  # all of them: no sampling error
    left = np.array(sorted(j for j, _, _ in found[1].found))
    truth = found[1].recall
    assert truth is not None and truth.missed > 0
    sampled = estimate_recall(RoughVectors(vectors), 0.9, left, 1, 150)
    assert sampled.low < truth.estimate < sampled.high and sampled.high - sampled.low < 0.3
    assert f"{sampled.missed} still duplicate" in sampled.sentence()


def test_semdedup_of_many_copies_needs_no_pairs() -> None:
    vectors = np.repeat(unit_vectors(2, 3, 8, copies=0), 4000, axis=0)
    found = find_duplicates(vectors, 0.999, rule="semdedup")
    assert len(found) == 3 * 3999 and {i for _, i, _ in found} == {0, 4000, 8000}


def test_rows_near_others_are_all_of_them() -> None:
    vectors = unit_vectors(9, 2500, 48, copies=60)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T - 2 * np.eye(len(vectors))
    touched = rows_near_others(vectors, 0.9)
    assert touched[(exact >= 0.9).any(axis=1)].all()
    assert not touched[(exact < 0.89).all(axis=1)].any()


def test_the_order_of_the_input_is_irrelevant() -> None:
    documents = [Document(document_id(s, str(i)), str(i), s) for i in range(40) for s in ("a", "b")]
    vectors = unit_vectors(8, len(documents), 4, copies=60)
    scores = {d.id: float(i % 7) for i, d in enumerate(documents)}
    results = []
    for seed in range(3):
        order = random.Random(seed).sample(range(len(documents)), len(documents))
        results.append(
            deduplicate(
                [documents[i] for i in order], vectors[order], 0.9, priority={"b": 0, "a": 1}, scores=scores
            )
        )
    assert results[0] == results[1] == results[2]
    kept, duplicates = results[0]
    assert len(kept) + len(duplicates) == len(documents)
    assert {d.kept_instead for d in duplicates} <= {d.id for d in kept}


def test_keep_order_is_source_then_score_then_id() -> None:
    documents = [Document(i, i, s) for i, s in (("3", "a"), ("1", "b"), ("2", "a"), ("4", "c"))]
    order = keep_order(documents, {"b": 0, "a": 1}, {"2": 0.5, "3": 0.7})
    assert [documents[i].id for i in order] == ["1", "3", "2", "4"]


def test_impossible_requests() -> None:
    with pytest.raises(RecipeError, match="threshold is 0"):
        find_duplicates(np.zeros((1, 2), dtype=np.float32), 0)
    with pytest.raises(RecipeError, match="no rule `clever`"):
        find_duplicates(np.zeros((1, 2), dtype=np.float32), 0.5, rule="clever")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not finite"):
        find_duplicates(np.full((2, 2), np.nan, dtype=np.float32), 0.5)


def test_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    whale = "Call me Ishmael. Some years ago, never mind how long precisely, having little money in my purse."
    other = "The derivative of a sum is the sum of the derivatives, term by term and for every point."
    third = "def merge(left, right): return sorted(left + right)  # a function of two lists"
    first.write_text("".join(json.dumps({"text": text}) + "\n" for text in (whale, other, third)))
    second.write_text(json.dumps({"text": whale + " "}) + "\n")
    out = tmp_path / "kept.jsonl"
    report = deduplicate_files([first, second], 0.95, out)
    assert (report.read, report.kept, report.dropped) == (4, 3, 1)
    kept = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert kept.count(whale) == 1
    table = pq.read_table(report.table).to_pylist()
    assert table[0]["dropped"] == document_id("second", whale + " ")
    assert table[0]["kept_instead"] == document_id("first", whale)
    assert 0.95 <= table[0]["cosine"] <= 1
