"""Decontamination: what shares 13 words with a reference is found, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import overlap_index as module
from curation.benchmark import read_benchmark
from curation.decontaminate import Overlap, ReferenceIndex, decontaminate, overlaps, words_of
from curation.documents import Document, read_documents
from curation.errors import DataError, RecipeError
from curation.readers import read_files


def doc(name: str, words: list[str] | str) -> Document:
    return Document(name, words if isinstance(words, str) else " ".join(words), "s")


W = [f"w{i}" for i in range(60)]


def test_thirteen_words_are_found_and_twelve_are_not() -> None:
    reference = doc("ref", W[:20])
    (found,) = overlaps([doc("d", ["x", *W[3:16], "y"])], [reference])
    assert found == Overlap("d", "ref", 1 / 8, " ".join(W[3:16]), "s")
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
    ngram = " ".join(W[:13])
    assert table == [
        {"document": "copy", "benchmark": "test.jsonl", "item": "q1", "share": 1.0, "ngram": ngram}
    ]
    items = pq.read_table(tmp_path / "clean.items.parquet").to_pylist()
    assert items == [{"benchmark": "test.jsonl", "item": "q1", "share": 1.0, "documents": 1}]
    (benchmark,) = report.benchmarks
    assert (benchmark.items, benchmark.too_short, benchmark.any_match, benchmark.half_match) == (1, 1, 1, 1)


def test_what_cannot_be_searched_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "only a few words"}')
    with pytest.raises(DataError, match="fewer than 8 words"):
        decontaminate([tmp_path / "a.jsonl"], [tmp_path / "a.jsonl"], tmp_path / "out.jsonl")
    with pytest.raises(RecipeError, match="Runs of 5 words"):
        overlaps([], [], words=5)
    assert words_of("") == []
    assert overlaps([doc("d", "")], [doc("r", W[:20])]) == []


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_shares_of_a_benchmark_by_hand(tmp_path: Path) -> None:
    """Items of 18, 14, 10 and 2 words; half of the first is known only to two documents together."""
    other = [f"v{n}" for n in range(40)]
    bench = write_lines(
        tmp_path / "bench.jsonl",
        [
            {"id": "a", "question": " ".join(W[:18])},
            {"id": "b", "question": " ".join(other[:14])},
            {"id": "c", "question": " ".join(other[20:30])},
            {"id": "d", "question": "Why not?"},
        ],
    )
    corpus = write_lines(
        tmp_path / "corpus.jsonl",
        [
            {"id": "1/odd id\u202e", "text": " ".join(["x", *W[:14], "y"])},  # 2 of a's 6 runs
            {"id": "2", "text": " ".join(["x", *W[4:18]])},  # 2 others
            {"id": "3", "text": " ".join(other[:13])},  # 1 of b's 2 runs
            {"id": "4", "text": " ".join(other[20:29])},  # c without its last word
            {"id": "5", "text": "Why not?"},
        ],
    )
    half = decontaminate([corpus], [bench], tmp_path / "half.jsonl", fields=["question"], remove="half")
    assert [d.id for d in read_files([tmp_path / "half.jsonl"])[0]] == ["1/odd id\u202e", "2", "4", "5"]
    assert (half.read, half.kept, half.dropped, half.overlapping) == (5, 4, 1, 3)
    (found,) = half.benchmarks
    assert (found.items, found.too_short, found.any_match, found.half_match) == (3, 1, 2, 2)
    assert found.any_share == found.half_share == pytest.approx(2 / 3)
    items = {row["item"]: row for row in pq.read_table(half.items_table).to_pylist()}
    assert items["a"]["share"] == pytest.approx(4 / 6) and items["a"]["documents"] == 2
    assert items["b"]["share"] == pytest.approx(1 / 2)
    every = decontaminate([corpus], [bench], tmp_path / "any.jsonl", fields=["question"])
    assert (every.kept, every.dropped) == (2, 3)
    none = decontaminate([corpus], [bench], tmp_path / "none.jsonl", fields=["question"], remove="none")
    assert (none.kept, none.dropped, none.overlapping) == (5, 0, 3)
    assert not (tmp_path / "none.jsonl").exists() and Path(none.overlaps_table).is_file()
    common = decontaminate([corpus], [bench], tmp_path / "2.jsonl", fields=["question"], shortest=2)
    assert common.benchmarks[0].too_short == 0 and common.benchmarks[0].any_match == 3


def test_several_fields_make_one_item(tmp_path: Path) -> None:
    bench = write_lines(
        tmp_path / "b.jsonl",
        [{"q": " ".join(W[:8]), "a": " ".join(W[8:16])}, {"q": " ".join(W[20:40]), "a": None}],
    )
    both = read_benchmark(bench, ["q", "a"])
    assert [(item.id, item.source) for item in both] == [("row 1", "b.jsonl"), ("row 2", "b.jsonl")]
    assert both[0].text == " ".join(W[:8]) + "\n" + " ".join(W[8:16])
    assert both[1].text == " ".join(W[20:40])


def test_benchmarks_from_parquet_and_from_the_hub(tmp_path: Path) -> None:
    rows = [{"question": " ".join(W[:20])}, {"question": " ".join(W[20:40])}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert [item.id for item in read_benchmark(tmp_path / "b.parquet", ["question"])] == ["row 1", "row 2"]
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_lines(
        folder / "test.jsonl", rows
    )  # what `datasets` loads stands for the hub, which is out of reach
    assert {item.text for item in read_benchmark(folder, ["question"])} == {row["question"] for row in rows}


def test_benchmarks_with_other_fields_in_one_run(tmp_path: Path) -> None:
    """Each uses the named fields that it has; one that none has is misspelt."""
    questions = write_lines(
        tmp_path / "q.jsonl", [{"id": "1", "question": " ".join(W[:20]), "answer": " ".join(W[40:60])}]
    )
    prompts = write_lines(tmp_path / "p.jsonl", [{"id": "2", "prompt": " ".join(W[20:40])}])
    corpus = write_lines(
        tmp_path / "c.jsonl", [{"id": str(i), "text": " ".join(W[i : i + 20])} for i in (0, 20, 40)]
    )
    fields = ["question", "answer", "prompt"]
    report = decontaminate(
        [corpus], [questions, prompts], tmp_path / "o.parquet", fields=fields, remove="none"
    )
    found = pl.read_parquet(report.overlaps_table).sort("document")
    assert found.select("document", "benchmark", "item").rows() == [
        ("0", "q.jsonl", "1"), ("20", "p.jsonl", "2"), ("40", "q.jsonl", "1"),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"No benchmark has the field `anwser`.*--field"):
        decontaminate([corpus], [questions, prompts], tmp_path / "o.parquet", fields=[*fields, "anwser"])
    with pytest.raises(
        DataError, match=r"no field `question` or `answer`; it has 'id', 'prompt'.*--field"
    ) as raised:
        decontaminate([corpus], [questions, prompts], tmp_path / "o.parquet", fields=fields[:2])
    assert "text_field" not in str(raised.value)


def test_bad_benchmarks_are_sentences(tmp_path: Path) -> None:
    bench = write_lines(tmp_path / "b.jsonl", [{"id": "1", "question": " ".join(W[:20])}])
    corpus = write_lines(tmp_path / "c.jsonl", [{"text": "some text"}])
    with pytest.raises(DataError, match="no field `text`; it has 'id', 'question'"):
        decontaminate([corpus], [bench], tmp_path / "o.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="has no items"):
        decontaminate([corpus], [tmp_path / "empty.jsonl"], tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="There is no such file"):
        decontaminate([corpus], [tmp_path / "nowhere.jsonl"], tmp_path / "o.jsonl")
    with pytest.raises(RecipeError, match="what to remove"):
        decontaminate([corpus], [bench], tmp_path / "o.jsonl", remove="all")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="No field"):
        read_benchmark(bench, [])
    with pytest.raises(RecipeError, match="shortest"):
        ReferenceIndex([doc("r", W)], shortest=14)
    with pytest.raises(DataError, match="cannot be read"):
        read_benchmark(tmp_path, ["question", "answer"][:1] + ["nothing"])


def test_what_all_documents_hold_together_can_be_forgotten() -> None:
    index = ReferenceIndex([doc("r", W[:20])])
    index.overlaps(doc("d", W[:16]))
    assert index.item_shares() == [("s", "r", 0.5)]
    index.forget()
    assert index.item_shares() == [("s", "r", 0.0)]
