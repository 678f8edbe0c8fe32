"""What the recipe's curation block makes of its settings, and what `mixwright curate` says when too little is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from curation.atomic import write_json
from curation.documents import Document, document_id, write_documents
from curation.educational import EducationalClassifier
from curation.errors import DataError, MixwrightError, RecipeError
from recipes.cli import curating
from recipes.execute import open_run, run_recipe
from recipes.pipeline import Run
from recipes.stages.curating import check_carried_scores, scorers


def a_run(tmp_path: Path, model: str, field: str | None) -> Run:
    recipe = {
        "mixwright": 1,
        "name": "r",
        "sources": [
            {"name": name, "kind": "local", "path": f"{name}.jsonl", "capabilities": ["code"]}
            for name in ("a", "b")
        ],
        "curation": {"educational": {"model": model, "carried_score": field}, "judge": {"model": "j"}},
    }
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run = open_run(file, tmp_path / "run")
    for name, meta in (("a", {"stars": 3}), ("b", {"score": 2.5, "stars": 1})):
        texts = [f"{name} text {n}" for n in range(40)]
        rows = [Document(document_id(name, text), text, name, None, dict(meta)) for text in texts]
        write_documents(run.path("documents", name) / "part-00000.parquet", rows)
    return run


def test_scores_that_the_corpora_carry_are_asked_for_in_the_recipe(tmp_path: Path) -> None:
    run = a_run(tmp_path, "no-such-model", "score")
    check_carried_scores(run)
    classifier = scorers(run).classifier
    assert isinstance(classifier, EducationalClassifier) and classifier.reuse == "score"
    found = classifier.score([Document("1", "x", "b", None, {"score": 2.5})])
    assert found["educational_score"].tolist() == [2.5], "and no model was loaded for it"


def test_a_field_that_no_document_has_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the field `scor`.*have \(.*score, stars\)"):
        check_carried_scores(a_run(tmp_path, "m", "scor"))
    check_carried_scores(a_run(tmp_path, "m", None))


def test_the_funnel_is_shown_when_what_follows_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path, "m", None)
    run.path("representative").mkdir()
    write_json(
        run.path("representative", "funnel.json"),
        [{"source": "a", "stage": stage, "documents": n} for stage, n in (("read", 40), ("educational", 0))],
    )
    write_json(run.path("representative", "warnings.json"), ["Only 0 of the 40 pass. Loosen it."])

    def fails(*arguments: object, **options: object) -> None:
        raise DataError("Too few are left")

    monkeypatch.setattr(curating, "execute", fails)
    for done in (True, False):
        monkeypatch.setattr("recipes.pipeline.is_done", lambda *_, done=done: done)
        with pytest.raises(DataError, match="Too few are left"):
            curating.curate(str(tmp_path / "r.yaml"), run.folder, None, None)
        said = capsys.readouterr().out
        assert ("educational" in said and "Warning: Only 0 of the 40 pass. Loosen it.\n" in said) == done


def test_funnel_rows_are_json_beside_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path, "m", None)
    run.path("representative").mkdir()
    rows = [{"source": "a", "stage": "read", "documents": 40}]
    write_json(run.path("representative", "funnel.json"), rows)
    monkeypatch.setattr(curating, "execute", lambda *_, **__: run)
    curating.curate(str(tmp_path / "r.yaml"), run.folder, None, None, as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["documents"] == 40


def test_what_would_stop_the_scoring_is_said_before_anything_has_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`a.jsonl` and `b.jsonl` are not even there: whatever is complained of is complained of first."""
    server = {"url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "NO_SUCH_KEY"}
    no_model = str(tmp_path / "nothing" / "here")
    slurm = {"kind": "slurm", "partition": "p"}
    monkeypatch.setenv("PATH", "")
    for changes, sentence in (
        ({"judge": {"server": server, "model": None}}, "NO_SUCH_KEY"),
        ({"educational": {"model": no_model}}, f"no model at {no_model}"),
        ({"executor": slurm}, "no command `sbatch`"),
    ):
        run = a_run(tmp_path, "m", None)
        written = yaml.safe_load((tmp_path / "r.yaml").read_text())
        written |= {"executor": changes.pop("executor")} if "executor" in changes else {}
        written["curation"] |= changes
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(written))
        with pytest.raises(MixwrightError, match=sentence):
            run_recipe(open_run(tmp_path / "r.yaml", run.folder), "representative", say=print)
