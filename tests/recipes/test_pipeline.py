"""Stages run once, continue after a kill, and run again when settings or inputs change."""

from pathlib import Path

import pytest

from curation.errors import MachineError
from recipes.load import load_recipe
from recipes.pipeline import Run, Spent, Stage, is_done, locked, read_stage_record, run_stage, verify
from tests.recipes.test_load import GOOD, write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe, file = load_recipe(write(tmp_path, GOOD))
    return Run(recipe, file, tmp_path / "run", workers=1)


def make_stages(log: list[str], value: int = 1) -> dict[str, Stage]:
    def first(run: Run) -> Spent:
        log.append("first")
        run.path("one", "number.txt").write_text(str(value))
        return Spent(flops=2.0, tokens=3)

    def second(run: Run) -> Spent:
        log.append("second")
        number = int(run.path("one", "number.txt").read_text())
        run.path("two", "twice.txt").write_text(str(2 * number))
        return Spent()

    stages = (
        Stage("first", "one", (), lambda recipe: {"value": value}, ("*.txt",), first),
        Stage("second", "two", ("first",), lambda recipe: {}, ("*.txt",), second),
    )
    return {stage.name: stage for stage in stages}


def run_all(run: Run, stages: dict[str, Stage]) -> list[bool]:
    return [run_stage(run, stage, stages) for stage in stages.values()]


def test_a_finished_run_does_nothing(run: Run) -> None:
    log: list[str] = []
    stages = make_stages(log)
    assert run_all(run, stages) == [True, True]
    assert run_all(run, stages) == [False, False]
    assert log == ["first", "second"]
    record = read_stage_record(run, stages["first"])
    assert record is not None
    assert (record["status"], record["flops"], record["tokens"], record["attempts"]) == ("done", 2.0, 3, 1)


def test_changed_settings_run_again_with_what_depends_on_them(run: Run) -> None:
    log: list[str] = []
    run_all(run, make_stages(log))
    run.path("one", "stale.txt").write_text("from the old settings")
    assert run_all(run, make_stages(log, value=5)) == [True, True]
    assert run.path("two", "twice.txt").read_text() == "10"
    assert not run.path("one", "stale.txt").exists()


def test_same_bytes_from_a_new_run_of_a_stage_spare_its_dependants(run: Run) -> None:
    log: list[str] = []
    stages = make_stages(log)
    run_all(run, stages)
    run.path("one", "stage.json").unlink()
    assert run_all(run, stages) == [True, False]


def test_a_killed_stage_continues_in_its_folder(run: Run) -> None:
    attempts: list[bool] = []

    def work(run: Run) -> Spent:
        half = run.path("one", "half.txt")
        attempts.append(half.exists())
        half.write_text("half")
        if len(attempts) == 1:
            raise KeyboardInterrupt
        run.path("one", "whole.txt").write_text("whole")
        return Spent()

    stages = {"first": Stage("first", "one", (), lambda recipe: {}, ("whole.txt",), work)}
    with pytest.raises(KeyboardInterrupt):
        run_all(run, stages)
    assert not is_done(run, stages["first"], stages)
    run_all(run, stages)
    assert attempts == [False, True]
    record = read_stage_record(run, stages["first"])
    assert record is not None
    assert record["attempts"] == 2


def test_verify_names_what_changed(run: Run) -> None:
    stages = make_stages([])
    run_all(run, stages)
    assert verify(run, stages) == []
    run.path("one", "number.txt").write_text("7")
    run.path("two", "twice.txt").unlink()
    assert verify(run, stages) == [
        "first: one/number.txt has changed since it was written",
        "second: two/twice.txt is missing",
    ]


def test_only_one_process_works_in_a_run(run: Run) -> None:
    with (
        locked(run.folder),
        pytest.raises(MachineError, match="Another mixwright process"),
        locked(run.folder),
    ):
        pass
    with locked(run.folder):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, run: Run) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(MachineError, match="choose another folder"), locked(blocked / "run"):
        pass
