"""Readers: every record is a document or is named as broken, and nothing a file holds ends the reading."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import readers
from curation.documents import Document, document_id
from curation.errors import DataError
from curation.readers import BrokenRecord, ReadCounts, read_file, read_files


def broken(path: Path) -> list[BrokenRecord]:
    return [r for r in read_file(path) if isinstance(r, BrokenRecord)]


def texts(path: Path) -> list[str]:
    return [r.text for r in read_file(path) if isinstance(r, Document)]


def write(path: Path, data: bytes) -> Path:
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


ROWS = [
    {"text": "one\u2028still one\x85\x0b\x0c line"},
    {"text": "two", "id": "mine", "source": "web", "url": "u"},
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


@pytest.mark.parametrize("extension", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".JSONL"])
def test_json_lines_end_at_newline_only(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"c{extension}", b"\xef\xbb\xbf" + LINES + b"\r\n\n  \n")
    first, second = read_file(path)
    assert first == Document(document_id("c", ROWS[0]["text"]), ROWS[0]["text"], "c")
    assert second == Document("mine", "two", "web", "u")
    assert next(iter(read_file(path, source="given"))).source == "given"  # type: ignore[union-attr]


BAD_LINES = [
    (b'{"text": "cut', "not JSON"),
    (b'["text"]', "not a JSON object but list"),
    (b"null", "not a JSON object but NoneType"),
    (b'{"content": "x", "n": 1}', "no field `text`; it has 'content', 'n'"),
    (b"{}", "it has no fields"),
    (b'{"text": 7}', "not a string but int"),
    (b'{"text": ["a"]}', "not a string but list"),
    (b'{"text": "\xff"}', "not UTF-8: byte 11 of the line is 0xff"),
    (b'{"text": "\\ud800"}', "surrogate"),
    (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not readable"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_broken_line_is_named_and_reading_goes_on(tmp_path: Path, line: bytes, why: str) -> None:
    path = write(tmp_path / "c.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}')
    assert texts(path) == ["before", "after"]
    (bad,) = broken(path)
    assert why in bad.why
    assert bad.where == f"{path}, line 2"
    assert not bad.empty


@pytest.mark.parametrize(
    "line", [b'{"text": ""}', b'{"text": " \\n\\t"}', b'{"text": null}', b'{"text": "\\u0000"}']
)
def test_empty_texts_are_counted_apart(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "c.jsonl", line + b'\n{"text": "kept\\u0000here"}')
    counts = ReadCounts()
    assert [d.text for d in counts.documents(read_file(path))] == ["kept\0here"]
    assert (counts.read, counts.broken, counts.empty) == (2, 0, 1)
    counts.check("c", tolerance=0.0)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_whatever_end_the_reading(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for extension in readers.EXTENSIONS:
        path = folder / f"f{extension}"
        path.write_bytes(data)
        records = list(read_file(path))
        assert all(isinstance(r, Document | BrokenRecord) for r in records)
        if extension == ".jsonl":
            lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
            assert len(records) == len(lines)


@pytest.mark.parametrize("extension", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_file_gives_what_it_holds_and_says_so(tmp_path: Path, extension: str) -> None:
    rows = [document_id("s", str(i)) * 10 for i in range(20_000)]
    path = write(tmp_path / f"c{extension}", b"".join(json.dumps({"text": t}).encode() + b"\n" for t in rows))
    path.write_bytes(path.read_bytes()[:-2000])
    found = texts(path)
    assert 0 < len(found) < len(rows)
    assert found == rows[: len(found)]
    assert "cut short" in broken(path)[-1].why
    path.write_bytes(b"not compressed at all")
    assert texts(path) == []
    assert len(broken(path)) == 1


def test_several_gzip_and_zstd_frames_are_one_file(tmp_path: Path) -> None:
    for compress, extension in ((gzip.compress, ".gz"), (zstandard.compress, ".zst")):
        path = tmp_path / f"c.jsonl{extension}"
        path.write_bytes(compress(b'{"text": "a"}\n') + compress(b'{"text": "b"}\n'))
        assert texts(path) == ["a", "b"]


def test_an_endless_line_is_skipped_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 2**20)
    long = b'{"text": "' + b"x" * 3 * 2**20 + b'"}'
    path = write(tmp_path / "c.jsonl.gz", b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n' + long)
    assert texts(path) == ["a", "b"]
    assert [b.where.rsplit(" ", 1)[1] for b in broken(path)] == ["2", "4"]


def test_meta_keeps_flat_fields_that_parquet_can_hold(tmp_path: Path) -> None:
    row = '{"text": "t", "score": 3.5, "n": NaN, "i": 1e999, "ok": true, "deep": {"a": [1]}, "s": "\\ud800", '
    row += '"metadata": {"lang": "en", "x": [1]}, "meta": "{\\"date\\": 5}"}'
    (document,) = read_file(write(tmp_path / "c.jsonl", row.encode()))
    assert isinstance(document, Document)
    assert document.meta == {"score": 3.5, "ok": True, "lang": "en", "date": 5}


def test_parquet_rows(tmp_path: Path) -> None:
    table = pa.table(
        {"text": ["a", None, "", "b"], "id": [1, 2, 3, 4], "score": [1.5, 2.0, 2.5, None], "v": [[1]] * 4}
    )
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    a, null, empty, b = read_file(tmp_path / "c.parquet")
    assert a == Document("1", "a", "c", None, {"score": 1.5})
    assert b == Document("4", "b", "c")
    assert isinstance(null, BrokenRecord) and null.empty and null.where.endswith("row 2")
    assert isinstance(empty, BrokenRecord) and empty.empty and empty.where.endswith("row 3")


def test_parquet_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "c.parquet")
    assert "no field `text`; it has 'body'" in broken(tmp_path / "c.parquet")[0].why
    assert [
        r.text for r in read_file(tmp_path / "c.parquet", text_field="body") if isinstance(r, Document)
    ] == ["a"]
    pq.write_table(pa.table({"text": [1]}), tmp_path / "i.parquet")
    assert "not a string but int" in broken(tmp_path / "i.parquet")[0].why
    # A string column whose bytes are not UTF-8, as written by careless writers.
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    pq.write_table(table, tmp_path / "u.parquet")
    assert texts(tmp_path / "u.parquet") == ["good", "fine"]
    assert broken(tmp_path / "u.parquet")[0].where.endswith("row 2")


def test_one_damaged_row_group_does_not_take_the_others(tmp_path: Path) -> None:
    rows = [document_id("s", str(i)) * 20 for i in range(300)]
    path = tmp_path / "c.parquet"
    pq.write_table(
        pa.table({"text": rows}), path, row_group_size=100, compression="zstd", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[column.data_page_offset : middle] = bytes(middle - column.data_page_offset)
    path.write_bytes(data)
    assert texts(path) == rows[:100] + rows[200:]
    assert [b.why[:19] for b in broken(path)] == ["rows 101 to 200 can"]


def test_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts(write(tmp_path / "a.txt", "\ufeffGrüße\n\nZeile".encode())) == ["Grüße\n\nZeile"]
    assert "byte 3 of the file is 0xfc" in broken(write(tmp_path / "b.txt", "Grüße".encode("latin-1")))[0].why
    assert "UTF-16" in broken(write(tmp_path / "c.txt", "Grüße".encode("utf-16")))[0].why
    assert "NUL" in broken(write(tmp_path / "d.txt", b"\x7fELF\0\0"))[0].why
    assert broken(write(tmp_path / "e.txt", b""))[0].empty
    monkeypatch.setattr(readers, "TEXT_PART_BYTES", 10)
    assert texts(write(tmp_path / "f.txt", b"line 1\nline 2\nline 3\n")) == ["line 1\nline 2\n", "line 3\n"]


def test_what_is_not_a_known_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_file(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="folder, not a file"):
        (tmp_path / "d.jsonl").mkdir()
        read_file(tmp_path / "d.jsonl")
    for name, advice in (
        (".json", "one JSON object per line"),
        (".jsnol", "Did you mean .jsonl"),
        ("", "without an"),
    ):
        with pytest.raises(DataError, match=advice):
            read_file(write(tmp_path / f"x{name}", b"{}"))


def test_tolerance(tmp_path: Path) -> None:
    good, bad = b'{"text": "a"}\n', b"{\n"
    path = write(tmp_path / "c.jsonl", good * 98 + bad * 2)
    documents, counts = read_files([path], broken_tolerance=0.02)
    assert (len(documents), counts.read, counts.broken) == (98, 100, 2)
    with pytest.raises(
        DataError, match=r"2 of 100 records \(2.0%\) are broken, more than the 1.0%.*line 99: not JSON"
    ):
        read_files([path])
    with pytest.raises(DataError, match="corpus is empty"):
        read_files([write(tmp_path / "e.jsonl", b"\n\n")])
    with pytest.raises(DataError, match="None of the 2 records has a text"):
        read_files([write(tmp_path / "n.jsonl", b'{"text": ""}\n' * 2)])
