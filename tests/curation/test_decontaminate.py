"""Decontamination: what shares 13 words with a reference is found, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import decontaminate as module
from curation.decontaminate import Overlap, ReferenceIndex, decontaminate, overlaps, words_of
from curation.documents import Document, read_documents
from curation.errors import DataError, RecipeError


def doc(name: str, words: list[str] | str) -> Document:
    return Document(name, words if isinstance(words, str) else " ".join(words), "s")


W = [f"w{i}" for i in range(60)]


def test_thirteen_words_are_found_and_twelve_are_not() -> None:
    reference = doc("ref", W[:20])
    (found,) = overlaps([doc("d", ["x", *W[3:16], "y"])], [reference])
    assert found == Overlap("d", "ref", 1 / 8, " ".join(W[3:16]))
    assert overlaps([doc("d", ["x", *W[3:15], "y", *W[15:20]])], [reference]) == []


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
    question = "If Ann has 3 apples, and buys 4 more at the shop, how many apples has she?"
    copy = "  IF ann has (3) apples and buys 4 more -- at the shop; how many apples has she"
    (found,) = overlaps([doc("d", f"Exercise 7. {copy}! Answer: seven")], [doc("q", question)])
    assert found.share == 1.0


@pytest.mark.parametrize("length", range(5, 15))
def test_short_references_must_occur_whole(length: int) -> None:
    index = ReferenceIndex([doc("r", W[:length])])
    assert bool(index.too_short) == (length < 8)
    whole = index.overlaps(doc("d", ["a", *W[:length], "b"]))
    assert [o.share for o in whole] == ([] if length < 8 else [1.0])
    assert index.overlaps(doc("d", ["a", *W[1:length], "b"])) == [] or length >= 14


def test_shares_count_each_run_of_the_reference_once() -> None:
    reference = doc("r", W[:30])
    repeated = W[:20] * 50
    (found,) = overlaps([doc("d", repeated)], [reference])
    assert found.share == pytest.approx(8 / 18)
    assert overlaps([doc("d", repeated)], [reference], least_share=0.5) == []


def naive(text: list[str], reference: list[str], words: int) -> float:
    size = min(words, len(reference))
    runs = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    wanted = [tuple(reference[i : i + size]) for i in range(len(reference) - size + 1)]
    return sum(run in runs for run in wanted) / len(wanted)


TEXT = st.lists(st.sampled_from(["a", "b", "c"]), max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=4), st.integers(8, 13))
def test_equals_the_definition(texts: list[list[str]], references: list[list[str]], words: int) -> None:
    documents = [doc(f"d{i}", t) for i, t in enumerate(texts)]
    against = [doc(f"r{i}", r) for i, r in enumerate(references)]
    found = {(o.document_id, o.reference_id): o.share for o in overlaps(documents, against, words=words)}
    expected = {
        (d.id, r.id): share
        for d, t in zip(documents, texts, strict=True)
        for r, q in zip(against, references, strict=True)
        if len(q) >= 8 and (share := naive(t, q, words))
    }
    assert found == pytest.approx(expected)


def test_hash_collisions_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash that is always equal, every run is a candidate, and only true copies are reported."""
    original = module._run_hashes

    def constant(text: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        hashes, known = original(text, size)
        return np.zeros_like(hashes), known

    monkeypatch.setattr(module, "_run_hashes", constant)
    (found,) = overlaps([doc("d", W[5:18])], [doc("r", W[:40])])
    assert found.share == 1 / 28 and found.ngram == " ".join(W[5:18])
    assert overlaps([doc("d", W[:12] + W[20:30])], [doc("r", W[:40])]) == []


def test_the_command(tmp_path: Path) -> None:
    lines = [{"id": "copy", "text": " ".join(["see", *W[:15]])}, {"id": "clean", "text": " ".join(W[30:])}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"id": "q1", "text": " ".join(W[:15])}) + '\n{"text": "short"}'
    )
    report = decontaminate([tmp_path / "train.jsonl"], [tmp_path / "test.jsonl"], tmp_path / "clean.parquet")
    assert (report.read, report.kept, report.dropped) == (2, 1, 1)
    assert (report.references, report.references_too_short) == (2, 1)
    assert [d.id for d in read_documents(tmp_path / "clean.parquet")] == ["clean"]
    table = pq.read_table(tmp_path / "clean.overlaps.parquet").to_pylist()
    assert table == [{"document": "copy", "reference": "q1", "share": 1.0, "ngram": " ".join(W[:13])}]


def test_what_cannot_be_searched_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "only a few words"}')
    with pytest.raises(DataError, match="fewer than 8 words"):
        decontaminate([tmp_path / "a.jsonl"], [tmp_path / "a.jsonl"], tmp_path / "out.jsonl")
    with pytest.raises(RecipeError, match="Runs of 5 words"):
        overlaps([], [], words=5)
    assert words_of("") == []
    assert overlaps([doc("d", "")], [doc("r", W[:20])]) == []
