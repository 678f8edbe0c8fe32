"""Scoring over files: units inside files, equal bytes however they are shared out, nothing read that need not be."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.atomic import hash_file, hash_folder, write_json
from curation.documents import Document, document_id, write_documents
from curation.errors import DataError, MachineError, RecipeError
from curation.score_tables import score_ahead, score_files
from curation.scoring import guard
from curation.scoring.blocks import ReadUnits
from curation.scoring.corpus import Corpus, check_ids, corpus_of
from curation.scoring.execution import Execution
from curation.scoring.parts import fingerprint_of, part_name
from curation.scoring.rows import RowReader
from curation.scoring.runners import open_runner
from curation.scoring.units import plan_units, read_units, write_units
from curation.sizes import ByteCount, TokenCount
from tests.curation.fakes import Length


def documents(count: int, source: str = "s") -> list[Document]:
    texts = ["x" * (i % 97 + 1) + str(i) for i in range(count)]
    return [Document(document_id(source, text), text, source, f"u/{i}") for i, text in enumerate(texts)]


def corpus(folder: Path, count: int = 230, files: int = 3) -> Corpus:
    found = documents(count)
    size = -(-count // files)
    for number in range(files):
        write_documents(folder / f"part-{number}.parquet", found[number * size : (number + 1) * size])
    return corpus_of("s", folder)


def test_units_partition_the_documents_and_stay_inside_files(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d")
    units = plan_units(whole.listing(), whole.files, "s", "f", 30)
    assert [unit.documents for unit in units] == [30, 30, 17] * 2 + [30, 30, 16]
    found = []
    for unit in units:
        ids = pq.read_table(unit.file, columns=["id"])["id"].to_pylist()
        found += [ids[row] for row in unit.rows]
        assert unit.name == part_name([ids[row] for row in unit.rows], "f")
    assert sorted(found) == sorted(d.id for d in documents(230))
    turned = Corpus("s", whole.files[::-1])
    again = plan_units(turned.listing(), turned.files, "s", "f", 30)
    assert {unit.name for unit in again} == {unit.name for unit in units}
    assert (
        len(
            {unit.name for unit in plan_units(whole.listing(), whole.files, "s", "g", 30)}
            & {u.name for u in units}
        )
        == 0
    )


def test_every_unit_belongs_to_exactly_one_task(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d")
    write_units(tmp_path / "plan", plan_units(whole.listing(), whole.files, "s", "f", 7))
    names = [unit.name for unit in read_units(tmp_path / "plan")]
    for tasks in (1, 2, 5, 100):
        shared = [u.name for rank in range(tasks) for u in read_units(tmp_path / "plan", rank, tasks)]
        assert shared == names


@pytest.fixture(scope="module")
def row_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    table = pl.DataFrame({"id": [str(i) for i in range(1000)], "text": ["t"] * 1000})
    table.write_parquet(file, row_group_size=130)
    return file


@given(rows=st.lists(st.integers(0, 999), unique=True, min_size=1), pieces=st.integers(1, 5))
def test_rows_are_found_across_batches_and_row_groups(row_groups: Path, rows: list[int], pieces: int) -> None:
    reader, rows = RowReader(row_groups, ("id", "text")), sorted(rows)

    def taken(wanted: list[int]) -> list[int]:
        return [int(name) for batch in reader.take(wanted) for name in batch["id"].to_pylist()]

    for part in np.array_split(np.array(rows), pieces):
        assert taken(part.tolist()) == part.tolist()
    assert taken([rows[0]]) == [rows[0]]  # and back again


def test_the_bytes_do_not_depend_on_workers_tasks_or_the_order_of_files(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d")
    model = tmp_path / "model"
    model.mkdir()
    scorer = Length(model=str(model))
    expected = score_files(whole, scorer, tmp_path / "here", unit_documents=10)
    assert dict(zip(expected["id"], expected["score"], strict=True)) == {
        d.id: len(d.text) for d in documents(230)
    }
    loads = len(list(model.iterdir()))
    turned = Corpus("s", whole.files[::-1])
    for name, workers, tasks in (("one", 1, 1), ("eight", 2, 8)):
        with open_runner(Execution(workers=workers, tasks=tasks)) as runner:
            table = score_files(turned, scorer, tmp_path / name, runner=runner, unit_documents=10)
            assert table.equals(expected)
            assert hash_folder(tmp_path / name) == hash_folder(tmp_path / "here")
            loads += workers  # 8 tasks load the model once for each process
            assert len(list(model.iterdir())) <= loads
            assert not [p for p in (tmp_path / name).iterdir() if "parts" in p.name or "work" in p.name]


def test_sources_of_one_unit_each_are_scored_side_by_side(tmp_path: Path) -> None:
    class Never:
        def tasks(self, units: int) -> int:
            return units

        def run(self, works: Any) -> None:
            pytest.fail("scored again")

    model = tmp_path / "model"
    model.mkdir()
    scorer = Length(model=str(model))
    small = {
        name: corpus(tmp_path / name, count, files=1) for name, count in (("a", 30), ("b", 20), ("c", 9))
    }
    alone = {name: score_files(found, scorer, tmp_path / "alone" / name) for name, found in small.items()}
    for mark in model.iterdir():
        mark.unlink()
    wanted = [(found, tmp_path / "together" / name, found.listing()) for name, found in small.items()]
    with open_runner(Execution(workers=2)) as runner:
        score_ahead(wanted[:1], scorer, runner)
        assert len(list(model.iterdir())) == 1
        score_ahead(wanted, scorer, runner)
    assert len(list(model.iterdir())) == 2  # both workers had something to do
    for name, found in small.items():
        table = score_files(found, scorer, tmp_path / "together" / name, runner=Never())
        assert table.equals(alone[name])
    assert hash_folder(tmp_path / "together") == hash_folder(tmp_path / "alone")
    bad = documents(9)[4]
    failing = Length(fail=bad.text, setting=2)
    with (
        open_runner(Execution(workers=2)) as runner,
        pytest.raises(DataError, match=f"failed on the document {bad.id}: ValueError"),
    ):
        score_ahead(wanted, failing, runner)


def test_only_what_is_wanted_and_missing_is_scored(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d")
    chosen = pl.Series("id", [d.id for d in documents(230)[::3]])
    scorer = Length()
    table = score_files(Corpus("s", whole.files, chosen), scorer, tmp_path / "s", unit_documents=10)
    assert set(table["id"]) == set(chosen) == set(scorer.seen)
    score_files(whole, scorer, tmp_path / "s", unit_documents=10)
    assert len(scorer.seen) == 230 == len(set(scorer.seen))
    score_files(whole, scorer, tmp_path / "s", unit_documents=10)
    assert len(scorer.seen) == 230


def test_a_table_of_other_settings_is_set_aside_and_found_again(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d", 40)
    score_files(whole, Length(), tmp_path / "s")
    first = hash_file(tmp_path / "s" / "length.parquet")
    assert score_files(whole, Length(setting=2), tmp_path / "s")["score"].max() == 2 * 42
    again = Length()
    score_files(whole, again, tmp_path / "s")
    assert again.seen == [] and hash_file(tmp_path / "s" / "length.parquet") == first


def test_a_changed_setting_input_or_task_count_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = corpus(tmp_path / "d", 60)
    bad = documents(60)[35].text
    with pytest.raises(DataError):
        score_files(whole, Length(fail=bad), tmp_path / "s", unit_documents=10)
    work = tmp_path / "s" / ".length.work"
    (work / "completions").mkdir()
    (work / "completions" / "00000").touch()  # datatrove's mark of a finished task
    again = Length(setting=2)
    with caplog.at_level(logging.WARNING), open_runner(Execution(tasks=3)) as runner:
        table = score_files(whole, again, tmp_path / "s", unit_documents=10, runner=runner)
    assert "settings changed since the unfinished work" in caplog.text.replace("input and ", "")
    assert len(again.seen) == 60 and table["score"].min() > 2  # nothing of the other setting counts as done
    caplog.clear()
    write_json(tmp_path / "g" / "work.json", {"tasks": 1})
    (tmp_path / "g" / "completions").mkdir()
    assert guard.begin(tmp_path / "g", {"tasks": 2}, "x") == ["tasks"]
    assert guard.begin(tmp_path / "g", {"tasks": 2}, "x") == []
    assert not caplog.text and not (tmp_path / "g" / "completions").exists(), (
        "nothing that a user should mind"
    )


def test_an_exception_names_source_file_and_document_and_the_rest_is_kept(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d", 60)
    bad = documents(60)[35]
    with (
        open_runner(Execution(workers=1, tasks=2)) as runner,
        pytest.raises(
            DataError, match=rf"length failed on the document {bad.id}: ValueError: a text"
        ) as error,
    ):
        score_files(whole, Length(fail=bad.text), tmp_path / "s", unit_documents=10, runner=runner)
    assert error.value.where == f"s, {tmp_path / 'd' / 'part-1.parquet'}"
    again = Length()
    score_files(whole, again, tmp_path / "s", unit_documents=10)
    assert len(again.seen) < 60 and bad.id in again.seen


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d", 60)
    with pytest.raises(DataError):
        score_files(whole, Length(fail=documents(60)[59].text), tmp_path / "s", unit_documents=10)
    fingerprint = fingerprint_of(Length(), 10)
    parts = sorted((tmp_path / "s" / f".length.parts-{fingerprint[:16]}").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:50])
    parts[1].write_bytes(parts[2].read_bytes())  # whole, but not the documents of its name
    again = Length()
    table = score_files(whole, again, tmp_path / "s", unit_documents=10)
    assert table.height == 60 and len(again.seen) == 60 - 10 * (len(parts) - 2)


def test_missing_results_are_never_taken_as_done(tmp_path: Path) -> None:
    class Idle:
        def tasks(self, units: int) -> int:
            return 1

        def run(self, works: Any) -> None:
            (works[0].logs / "completions").mkdir()
            (works[0].logs / "completions" / "00000").touch()

    with pytest.raises(MachineError, match="are missing or damaged"):
        score_files(corpus(tmp_path / "d", 5), Length(), tmp_path / "s", runner=Idle())


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "d", 20)
    with pytest.raises(DataError, match="Two documents have the id"):
        Corpus("s", (whole.files[0], whole.files[0])).listing()
    with pytest.raises(DataError, match="in two sources, a and b"):
        check_ids({"a": whole.listing(), "b": whole.listing()})
    damaged = tmp_path / "bad.parquet"
    damaged.write_bytes(whole.files[0].read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        Corpus("s", (damaged,)).listing()
    pl.DataFrame({"id": ["a", None], "text": ["t", "t"]}).write_parquet(damaged)
    with pytest.raises(DataError, match="row 1 has no id"):
        Corpus("s", (damaged,)).listing()
    pl.DataFrame({"id": [1, 2], "text": ["t", "t"]}).write_parquet(damaged)
    with pytest.raises(DataError, match="ids are of the type int64"):
        Corpus("s", (damaged,)).listing()
    pl.DataFrame({"id": ["a", "b"], "text": ["t", None]}).write_parquet(damaged)
    with pytest.raises(DataError, match="The document b has no text"):
        score_files(Corpus("s", (damaged,)), ByteCount(), tmp_path / "s")
    with pytest.raises(RecipeError, match="no executor `cloud`"):
        open_runner(Execution(kind="cloud", workers=1))  # type: ignore[arg-type]


def test_sizes_are_those_of_the_texts(tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["The sum of two even numbers", "ünïcode", "return first"]
    found = [Document(document_id("s", text), text, "s") for text in texts]
    random.Random(0).shuffle(found)
    write_documents(tmp_path / "d.parquet", found)
    whole = Corpus("s", (tmp_path / "d.parquet",))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    expected = {d.id: len(tokenizer.encode(d.text, add_special_tokens=False)) for d in found}
    table = score_files(whole, TokenCount(str(tokenizer_folder)), tmp_path / "s")
    assert dict(table.rows()) == expected
    assert dict(score_files(whole, ByteCount(), tmp_path / "s").rows()) == {
        d.id: len(d.text.encode()) for d in found
    }


def test_the_reader_has_the_documents_of_the_file(tmp_path: Path) -> None:
    meta = {"origin": "o", "score": 3.5}
    document = Document("i", "text", "s", "u", meta)
    write_documents(tmp_path / "d.parquet", [document])
    whole = Corpus("s", (tmp_path / "d.parquet",))
    write_units(tmp_path / "plan", plan_units(whole.listing(), whole.files, "s", "f", 10))
    (found,) = ReadUnits(tmp_path / "plan")()
    assert (found.id, found.text, found.metadata["source"], found.metadata["url"]) == ("i", "text", "s", "u")
    seen: list[Document] = []

    class Seeing(Length):
        def score(self, documents: Any) -> dict[str, np.ndarray]:
            seen.extend(documents)
            return super().score(documents)

    score_files(whole, Seeing(), tmp_path / "s")
    assert seen == [document]
