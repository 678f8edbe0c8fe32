"""Collections of the running installation: read and not imported, named without machine paths, enough."""

from __future__ import annotations

import ast
import itertools
import sys
import sysconfig
from pathlib import Path

import pytest

from curation import installation
from curation.decontaminate import overlaps
from curation.documents import Document, read_documents
from curation.errors import DataError
from curation.installation import COLLECTIONS, read_collection
from curation.sources import SourceSpec, read_source
from curation.tables import table


def first(collection: str, count: int, seed: int = 0) -> list[Document]:
    records = read_collection(collection, source="s", seed=seed)
    return list(itertools.islice((r for r in records if isinstance(r, Document)), count))


@pytest.mark.parametrize("collection", sorted(COLLECTIONS))
def test_every_collection_gives_its_share_and_the_same_again(collection: str, tmp_path: Path) -> None:
    spec = SourceSpec("s", "python", collection=collection)
    report = read_source(spec, tmp_path / "a", max_bytes=150_000, seed=1)
    assert 140_000 < report.bytes <= 150_000
    assert report.broken == 0
    read_source(spec, tmp_path / "b", max_bytes=150_000, seed=1)
    one, two = ((tmp_path / x / "s" / "part-00000.parquet").read_bytes() for x in "ab")
    assert one == two
    prefix = str(Path(sysconfig.get_path("purelib")))
    for document in read_documents(tmp_path / "a" / "s"):
        assert len(document.text.encode()) <= 4000
        assert document.url is not None and document.url.startswith(("python:", "generated:"))
        assert document.meta is not None and document.url.startswith(document.meta["origin"])
        assert prefix not in document.url + document.text


def test_another_seed_begins_with_other_files() -> None:
    assert {d.url for d in first("sympy_source", 20, 0)} != {d.url for d in first("sympy_source", 20, 1)}


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "numpy"
    package.mkdir()
    doc = "It explains itself at length. " * 10
    (package / "__init__.py").write_text(f'"""{doc}"""\nraise SystemExit("imported!")\n')
    (package / "broken.py").write_text("def (:\n")
    (package / "latin.py").write_bytes(
        b'# coding: latin-1\ndef f(a, b=2):\n    """' + b"Gr\xfc\xdfe. " * 40 + b'"""\n'
    )
    monkeypatch.setattr(installation, "_find_package", lambda name: package if name == "numpy" else None)
    before = set(sys.modules)
    records = {getattr(r, "url", None): r for r in read_collection("docstrings", source="s", seed=0)}
    assert {name for name in set(sys.modules) - before if not name.startswith("encodings.")} == set()
    assert set(records) == {None, "python:numpy/__init__.py#numpy", "python:numpy/latin.py#numpy.latin.f"}
    assert "not valid Python" in records[None].why  # type: ignore[union-attr]
    function = records["python:numpy/latin.py#numpy.latin.f"]
    assert isinstance(function, Document) and function.text.startswith("numpy.latin.f(a, b=2)\n\nGrüße.")
    assert function.meta == {"origin": "python:numpy/latin.py"}


def test_documents_of_one_file_share_their_origin_across_collections() -> None:
    origins = {d.origin for d in first("language_reference", 400)}
    assert any("#" in origin for origin in origins), "a topic of the reference is an origin of its own"
    assert "python:pydoc_data/topics.py" not in origins


def test_reference_and_library_do_not_repeat_each_other() -> None:
    library, reference = first("standard_library", 60), first("language_reference", 700)
    found = {o.document_id for o in overlaps(reference, library, words=13)}
    assert len(found) < 0.05 * len(reference)


def test_tests_and_generated_files_are_left_out() -> None:
    urls = [d.url or "" for d in first("standard_library", 10**6)]
    assert len(urls) > 150
    assert not [
        u for u in urls if "/test/" in u or "/tests/" in u or "site-packages" in u or "_sysconfigdata" in u
    ]
    for document in first("standard_library", 30):
        ast.parse(document.text)


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_find_package", lambda name: None)
    with pytest.raises(
        DataError, match=r"reads the package sympy, which is not installed.*pip install sympy"
    ):
        read_collection("sympy_source", source="s", seed=0)
    with pytest.raises(DataError, match="none is installed"):
        read_collection("docstrings", source="s", seed=0)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(DataError, match="standard library's source files"):
        read_collection("standard_library", source="s", seed=0)


def test_tables_are_noise_of_every_kind() -> None:
    made = [table(0, i) for i in range(60)]
    assert made == [table(0, i) for i in range(60)]
    assert len({t.kind for t in made}) == 7
    assert len({t.text for t in made}) == 60
    assert all(400 < len(t.text) < 4100 for t in made)
