"""Sources: what is read, cut, deduplicated and sampled, and that every record is accounted for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import sources
from curation.atomic import hash_folder, read_json
from curation.documents import Document, document_id, read_documents
from curation.errors import DataError, RecipeError
from curation.pieces import cut
from curation.readers import read_file
from curation.sources import SourceReport, SourceSpec, check_sources, read_report, read_source
from curation.splits import split_of
from curation.writers import write_file


def write_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def local(path: Path, **options: object) -> SourceSpec:
    return SourceSpec("web", "local", path=str(path), capabilities=("knowledge",), options=options)


TEXTS = [f"Text number {i} says {document_id('s', str(i))}." for i in range(200)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_lines(tmp_path / "corpus" / "a.jsonl", TEXTS[:80])
    write_lines(tmp_path / "corpus" / "deep" / "b.jsonl", TEXTS[80:])
    return tmp_path / "corpus"


def balanced(report: SourceReport) -> bool:
    records = report.read == report.broken + report.empty + report.documents
    return records and report.pieces == report.kept + report.duplicates + report.not_sampled


def test_the_sample_does_not_depend_on_files(corpus: Path, tmp_path: Path) -> None:
    one = read_source(local(corpus), tmp_path / "one", max_bytes=4000, seed=3)
    write_lines(tmp_path / "all" / "z.jsonl", TEXTS[::-1])
    read_source(local(tmp_path / "all"), tmp_path / "two", max_bytes=4000, seed=3)
    first, second = read_documents(tmp_path / "one" / "web"), read_documents(tmp_path / "two" / "web")
    assert first == second
    assert 3500 < one.bytes <= 4000 and balanced(one)
    assert one.bytes == sum(len(d.text.encode()) for d in first)
    assert not {d.text for d in first} <= set(TEXTS[:80]), "a sample, not the first file"
    other = read_source(local(corpus), tmp_path / "three", max_bytes=4000, seed=4)
    assert other.kept > 0 and read_documents(tmp_path / "three" / "web") != first


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(corpus: Path, tmp_path: Path) -> None:
    for size in (1000, 6000):
        read_source(local(corpus), tmp_path / str(size), max_bytes=size, seed=0)
    small, large = (read_documents(tmp_path / str(size) / "web") for size in (1000, 6000))
    assert small == large[: len(small)]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(14)), st.integers(1, 400))
def test_sample_is_the_longest_prefix_by_hash_that_fits(order: list[int], max_bytes: int) -> None:
    every = [Document(str(i), "x" * (7 * i % 41 + 1), "s") for i in range(14)]
    chosen = sources._sample([every[i] for i in order], max_bytes, 9)
    ranked = sources._sample(every, 10**9, 9)
    assert len(ranked) == 14
    assert chosen == ranked[: len(chosen)]
    assert sum(len(d.text) for d in chosen) <= max_bytes or len(chosen) == 1
    if len(chosen) < 14:
        assert sum(len(d.text) for d in ranked[: len(chosen) + 1]) > max_bytes


def test_same_bytes_every_time_and_another_part_size_keeps_the_documents(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = local(corpus)
    read_source(spec, tmp_path / "a", max_bytes=None, seed=1)
    read_source(spec, tmp_path / "b", max_bytes=None, seed=1)
    read_source(spec, tmp_path / "b", max_bytes=None, seed=1)
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    monkeypatch.setattr(sources, "PART_BYTES", 2000)
    read_source(spec, tmp_path / "c", max_bytes=None, seed=1)
    assert len(list((tmp_path / "c" / "web").glob("part-*.parquet"))) > 3
    assert read_documents(tmp_path / "c" / "web") == read_documents(tmp_path / "a" / "web")


def test_records_are_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = [json.dumps({"text": t, "id": f"mine-{i}"}) for i, t in enumerate(TEXTS[:50])]
    lines += [
        json.dumps({"text": "  TEXT number 3 says\n" + TEXTS[3].split("says ")[1].upper()}),
        "{",
        '{"text": ""}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    report = read_source(local(path), tmp_path / "out", max_bytes=10**6, seed=0, broken_tolerance=0.02)
    expected = {
        "read": 53,
        "broken": 1,
        "empty": 1,
        "documents": 51,
        "pieces": 51,
        "duplicates": 1,
        "kept": 50,
    }
    assert {name: getattr(report, name) for name in expected} == expected
    saved = read_json(tmp_path / "out" / "web" / "read.json")
    assert saved["broken_examples"][0] == {
        "where": "c.jsonl, line 52",
        "why": "not JSON: Expecting property name enclosed in double quotes at column 2",
    }
    assert read_report(tmp_path / "out" / "web") == report
    document = next(d for d in read_documents(tmp_path / "out" / "web") if d.text == TEXTS[7])
    assert document.id == document_id("web", TEXTS[7])
    assert document.meta is not None and document.meta["original_id"] == "mine-7"


def test_a_refused_source_leaves_what_was_there(corpus: Path, tmp_path: Path) -> None:
    read_source(local(corpus), tmp_path / "out", max_bytes=1000, seed=0)
    before = hash_folder(tmp_path / "out" / "web")
    write_lines(corpus / "c.jsonl", [""] * 3)
    (corpus / "d.jsonl").write_text("no json\n" * 30)
    with pytest.raises(DataError, match=r"30 of 233 records .* d.jsonl, line 1: not JSON"):
        read_source(local(corpus), tmp_path / "out", max_bytes=1000, seed=0)
    assert hash_folder(tmp_path / "out" / "web") == before


def test_pieces_share_their_origin_and_never_straddle(tmp_path: Path) -> None:
    for name in range(12):
        (tmp_path / "c").mkdir(exist_ok=True)
        paragraphs = [f"{name} {document_id(str(name), str(i))} and some more words. " * 3 for i in range(20)]
        (tmp_path / "c" / f"{name}.txt").write_text("\n\n".join(paragraphs))
    report = read_source(local(tmp_path / "c", piece_bytes=500), tmp_path / "out", max_bytes=None, seed=0)
    assert report.documents == 12 and report.kept > 60 and balanced(report)
    documents = read_documents(tmp_path / "out" / "web")
    assert max(len(d.text) for d in documents) <= 500
    splits: dict[str, set[str]] = {}
    for document in documents:
        assert document.meta is not None and document.url is not None
        assert document.url == f"{document.meta['origin']}#{document.meta['piece']}"
        split = split_of(document, 5, {"train": 0.6, "test": 0.4})
        splits.setdefault(document.text.split(" ", 1)[0], set()).add(split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())
    assert {name for found in splits.values() for name in found} == {"train", "test"}


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("ab.é漢😀 \n#"), max_size=900) | st.text(max_size=300),
    st.integers(64, 300),
)
def test_cut_loses_nothing_and_keeps_to_the_size(text: str, piece_bytes: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    pieces = list(cut(text, piece_bytes))
    assert "".join(pieces) == text
    sizes = [len(piece.encode()) for piece in pieces]
    assert max(sizes) <= piece_bytes
    assert all(pieces) or pieces == [""]
    if len(pieces) > 1:
        assert min(sizes) > piece_bytes // 8, "no mere rest"


def test_cut_prefers_definitions_to_lines() -> None:
    text = "def one():\n" + "    x = 1\n" * 8 + "\n\ndef two():\n" + "    y = 2\n" * 12
    assert next(cut(text, 150)).rstrip().endswith("x = 1")
    assert list(cut(text, 150))[1].startswith("def two")


def test_splits_follow_the_shares_and_do_not_move() -> None:
    shares = {"train": 0.9, "test": 0.1}
    documents = [Document(str(i), "t", "s", f"u{i}") for i in range(4000)]
    counts = Counter(split_of(d, 0, shares) for d in documents)
    assert abs(counts["test"] - 400) < 4 * (4000 * 0.09) ** 0.5
    assert [split_of(d, 0, dict(reversed(shares.items()))) for d in documents[:200]] == [
        split_of(d, 0, shares) for d in documents[:200]
    ]
    assert [split_of(d, 1, shares) for d in documents] != [split_of(d, 0, shares) for d in documents]
    pieces = [replace(documents[0], id="p", url="elsewhere", meta={"origin": "u0"}), documents[0]]
    assert len({split_of(d, seed, {"a": 0.5, "b": 0.5}) for d in pieces for seed in [3]}) == 1
    assert {split_of(d, 0, {"train": 1.0, "test": 0.0}) for d in documents} == {"train"}
    with pytest.raises(RecipeError, match="sum to 1"):
        split_of(documents[0], 0, {"train": 0.9, "test": 0.2})


def test_hub_kind_reads_a_dataset(corpus: Path, tmp_path: Path) -> None:
    """Through `datasets.load_dataset`, on local files instead of the hub."""
    options = {"data_files": [str(corpus / "a.jsonl"), str(corpus / "deep" / "b.jsonl")]}
    spec = SourceSpec("web", "hub", dataset="json", options=options)
    report = read_source(spec, tmp_path / "hub", max_bytes=10**6, seed=3)
    assert report.kept == 200 and balanced(report)
    read_source(local(corpus), tmp_path / "local", max_bytes=10**6, seed=3)
    hub, own = (read_documents(tmp_path / kind / "web") for kind in ("hub", "local"))
    assert [(d.id, d.text) for d in hub] == [(d.id, d.text) for d in own]
    part = read_source(
        replace(spec, options={**options, "scan_bytes": 2000}), tmp_path / "part", max_bytes=900, seed=3
    )
    assert part.bytes + part.not_sampled * 45 >= 2000 and part.read < 60


def test_hub_names_its_trouble(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "train.jsonl", ["a text"])
    for spec, message in (
        (SourceSpec("x", "hub", dataset=str(tmp_path / "absent")), "cannot be read"),
        (SourceSpec("x", "hub", dataset=str(tmp_path / "d"), options={"split": "none"}), "cannot be read"),
        (
            SourceSpec("x", "hub", dataset=str(tmp_path / "d"), options={"text_field": "body"}),
            "no field `body`",
        ),
    ):
        with pytest.raises(DataError, match=message):
            read_source(spec, tmp_path / "out", max_bytes=1000, seed=0)


def test_folders_globs_and_what_is_skipped(corpus: Path, tmp_path: Path) -> None:
    (corpus / "deep" / "notes.md").write_text("not read")
    (corpus / ".cache").mkdir()
    (corpus / ".cache" / "x.jsonl").write_text("hidden")
    report = read_source(local(corpus), tmp_path / "a", max_bytes=None, seed=0)
    assert (report.kept, report.skipped_files) == (200, ("deep/notes.md",))
    assert read_source(local(corpus / "**" / "b.jsonl"), tmp_path / "b", max_bytes=None, seed=0).kept == 120
    assert read_source(local(corpus / "*.jsonl"), tmp_path / "c", max_bytes=None, seed=0).kept == 80
    for path, message in (
        (corpus / "absent", "no such file or folder"),
        (corpus / "*.txt", "no such file or folder"),
        (corpus / "deep" / "*.md", "notes.md for instance"),
        (corpus / "deep" / "notes.md", "Rename it to .txt"),
    ):
        with pytest.raises(DataError, match=message):
            read_source(local(path), tmp_path / "d", max_bytes=None, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SourceSpec("../up", "local", path="x"), "cannot be the name"),
        (SourceSpec("a", "locale", path="x"), "Did you mean `local`"),
        (SourceSpec("a", "local"), "needs `path`"),
        (SourceSpec("a", "local", path="x", capabilities=("maths",)), "no capability `maths`"),
        (SourceSpec("a", "local", path="x", options={"piece_byte": 1}), "Did you mean `piece_bytes`"),
        (SourceSpec("a", "python", collection="sympi_source"), "Did you mean `sympy_source`"),
        (SourceSpec("a", "local", path="x", options={"scan_bytes": -1}), "`scan_bytes` is -1"),
    ],
)
def test_an_impossible_source_is_a_sentence(tmp_path: Path, spec: SourceSpec, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_source(spec, tmp_path, max_bytes=100, seed=0)


def test_two_sources_of_one_name() -> None:
    with pytest.raises(RecipeError, match="Two sources have one name"):
        check_sources([SourceSpec("a", "local", path="x"), SourceSpec("A", "local", path="y")])


@pytest.mark.parametrize("extension", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_written_files_are_read_back_and_have_equal_bytes(tmp_path: Path, extension: str) -> None:
    documents = [
        Document("a", "one\u2028\n\0two", "s", "u", {"n": 1, "k": "v"}),
        Document("b", "ü", "t"),
    ]
    path = tmp_path / f"f{extension}"
    assert write_file(path, documents) == 2
    assert list(read_file(path)) == documents
    before = path.read_bytes()
    write_file(path, iter(documents))
    assert path.read_bytes() == before
