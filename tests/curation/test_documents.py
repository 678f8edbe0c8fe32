"""Documents: stable ids, an explicit schema, equal bytes for equal documents."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.documents import (
    DOCUMENT_SCHEMA,
    Document,
    document_id,
    iterate_documents,
    read_documents,
    write_documents,
)
from curation.errors import DataError

TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)


def some(count: int) -> list[Document]:
    return [
        Document(
            document_id("s", f"text {i}"),
            f"text {i}",
            "s",
            f"u/{i}" if i % 2 else None,
            {"piece": i} if i % 3 else None,
        )
        for i in range(count)
    ]


def test_id_is_what_it_says() -> None:
    import hashlib

    assert document_id("wiki", "Ü") == hashlib.sha256("wiki\0Ü".encode()).hexdigest()[:20]
    assert document_id("wik", "i\0Ü") != document_id("wiki", "Ü")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            TEXT, st.none() | TEXT, st.none() | st.dictionaries(TEXT, st.none() | st.integers(-9, 9) | TEXT)
        ),
        max_size=6,
    )
)
def test_documents_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    documents = [Document(document_id("s", text), text, "s", url, meta) for text, url, meta in rows]
    path = tmp_path_factory.mktemp("round") / "part-00000.parquet"
    assert write_documents(path, documents) == len(documents)
    assert read_documents(path) == documents


def test_equal_documents_give_equal_bytes_and_the_stated_schema(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.parquet", some(50))
    write_documents(tmp_path / "b.parquet", iter(some(50)))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    write_documents(tmp_path / "none.parquet", [])
    for name in ("a.parquet", "none.parquet"):
        assert pq.read_schema(tmp_path / name).equals(DOCUMENT_SCHEMA)
    assert read_documents(tmp_path / "none.parquet") == []


def test_a_late_meta_key_or_url_does_not_break_the_schema(tmp_path: Path) -> None:
    documents = [
        Document("a", "x", "s"),
        Document("b", "y", "s", "u", {"k": 1}),
        Document("c", "z", "s", None, {"k": 1.5}),
    ]
    write_documents(tmp_path / "f.parquet", documents)
    assert read_documents(tmp_path / "f.parquet") == documents


def test_row_groups_are_bounded_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.documents.ROW_GROUP_DOCUMENTS", 7)
    write_documents(tmp_path / "f.parquet", some(20))
    assert pq.ParquetFile(tmp_path / "f.parquet").metadata.num_row_groups == 3
    assert read_documents(tmp_path / "f.parquet") == some(20)


def test_a_folder_is_read_by_file_name_and_hidden_files_are_not(tmp_path: Path) -> None:
    write_documents(tmp_path / "part-00001.parquet", some(4)[2:])
    write_documents(tmp_path / "part-00000.parquet", some(4)[:2])
    (tmp_path / ".part-00002.parquet.partial").write_bytes(b"half")
    assert list(iterate_documents(tmp_path)) == some(4)


def test_files_with_scores_beside_the_text_are_read(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "score": [1.0], "text": ["x"], "source": ["s"]})
    pq.write_table(table, tmp_path / "scored.parquet")
    assert read_documents(tmp_path / "scored.parquet") == [Document("a", "x", "s")]


def test_origin_is_shared_by_pieces() -> None:
    assert Document("a", "x", "s", "f.py#1", {"origin": "f.py", "piece": 1}).origin == "f.py"
    assert Document("a", "x", "s", "f.py").origin == "f.py"
    assert Document("a", "x", "s").origin == "a"


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents here"):
        read_documents(tmp_path / "absent")
    with pytest.raises(DataError, match="no parquet files"):
        read_documents(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="not a readable parquet"):
        read_documents(tmp_path / "torn.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="id, source is missing"):
        read_documents(tmp_path / "bare.parquet")
