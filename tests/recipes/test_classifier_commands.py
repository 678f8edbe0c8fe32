"""`classifier train`, `classifier report` and `score`, as a user types them, and the recipe's new settings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

import recipes.cli.classifying
from curation.errors import DataError, MixwrightError, RecipeError
from curation.judge_prompt import load_prompt
from curation.rater_tokenizer import train_rater_tokenizer
from recipes.cli import app
from recipes.execute import open_run, run_recipe
from recipes.plan import _notes
from recipes.stages.curating import _judge
from recipes.stages.raters import prompt_names
from tests.curation.judges import make_judge
from tests.curation.serving import serving

assert recipes.cli.classifying
GOOD, BAD = (
    ["even", "number", "sum", "twice", "because", "therefore", "proof"],
    ["click", "buy", "cookie", "login", "menu", "banner"],
)


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = train_rater_tokenizer([" ".join(GOOD + BAD), "Good?"] * 20, folder / "t", vocabulary=400)
    return make_judge("qwen2", tokenizer, folder / "judge")


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {"text": " ".join(chance.choices((BAD, GOOD)[i % 2] * 3 + BAD + GOOD, k=15)), "label": i % 2}
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixwright(*arguments: str) -> str:
    """What the command prints, 80 columns wide; errors are raised."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, list(arguments), catch_exceptions=False)
    if isinstance(result.exception, MixwrightError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_report_and_score(tmp_path: Path) -> None:
    table, folder = write(tmp_path / "labels.jsonl", texts(400)), tmp_path / "quality"
    shown = mixwright("classifier", "train", str(table), "--kind", "fasttext", "--out", str(folder))
    assert "F1 0." in shown and "calibration of the probability" in shown
    assert max(len(line) for line in shown.replace(str(folder), "quality").splitlines()) <= 80
    record = json.loads(mixwright("classifier", "report", str(folder), "--json"))
    assert record["held_out"]["best_threshold"]["f1"]["value"] > 0.8
    corpus, out = write(tmp_path / "new.jsonl", texts(30, seed=1)), tmp_path / "scores.parquet"
    assert "30 documents scored" in mixwright("score", str(corpus), "--model", str(folder), "--out", str(out))
    scores = pl.read_parquet(out)
    assert scores.columns == ["id", "source", "educational_score"]
    assert scores["source"].unique().to_list() == ["new"]
    assert scores["educational_score"].is_between(0, 1).all()


def test_a_student_of_a_judge(tmp_path: Path, judge_folder: Path) -> None:
    corpus, scores = write(tmp_path / "a.jsonl", texts(200)), tmp_path / "scores.parquet"
    prompt = tmp_path / "short.txt"
    prompt.write_text("Good?\n<document>\n{document}\n</document>\nAnswer:")
    shown = mixwright(
        "score", str(corpus), "--judge", str(judge_folder), "--prompt", str(prompt), "--out", str(scores)
    )
    assert "truncated: 0" in shown
    middle = str(pl.read_parquet(scores)["p1_calibrated"].median())
    told = mixwright(
        "classifier", "train", str(corpus), "--scores", str(scores), "--positive-from", middle,
        "--out", str(tmp_path / "student"), "--json",
    )  # fmt: skip
    assert json.loads(told)["split"]["train"] > 100


def test_a_served_judge_scores_files(tmp_path: Path, judge_folder: Path) -> None:
    corpus, out = write(tmp_path / "a.jsonl", texts(4)), tmp_path / "scores.jsonl"
    with serving(judge_folder) as served:
        told = mixwright(
            "score", str(corpus), "--judge", served.url, "--server-model", "tiny", "--out", str(out), "--json"
        )
    assert json.loads(told)["documents"] == 4
    assert len(served.requests) == 4 and "reason" in served.requests[0]["prompt"]
    assert len(out.read_text().splitlines()) == 4


def test_an_edited_text_under_its_old_id_is_scored_again(tmp_path: Path, judge_folder: Path) -> None:
    corpus, out = tmp_path / "a.jsonl", tmp_path / "scores.parquet"
    with serving(judge_folder) as served:

        def scores(*found: str) -> dict[str, float]:
            write(corpus, [{"id": f"n{i}", "text": text} for i, text in enumerate(found)])
            mixwright(
                "score", str(corpus), "--judge", served.url, "--server-model", "tiny", "--out", str(out)
            )
            return dict(pl.read_parquet(out).select("id", "p1").rows())

        first, second = scores("even", "sum"), scores("even", "click buy cookie")
        assert len(served.requests) == 3, "the text that is the same is not asked about again"
    assert first["n0"] == second["n0"] and first["n1"] != second["n1"]
    write(corpus, [{"id": "x", "text": "one"}, {"id": "x", "text": "two"}])
    with pytest.raises(DataError, match="Two documents have the id x"), serving(judge_folder) as served:
        mixwright("score", str(corpus), "--judge", served.url, "--server-model", "tiny", "--out", str(out))


def test_what_would_stop_a_run_is_said_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    server = "{server: {url: 'http://127.0.0.1:9/v1', model: big, key_variable: NO_KEY}}"
    for judge, words in (
        (server, "NO_KEY holds no API key"),
        ("{model: ./nowhere}", "no model at ./nowhere"),
    ):
        run = open_run(recipe(tmp_path, judge), tmp_path / "run")
        with pytest.raises(RecipeError, match=words):
            run_recipe(run, "representative", print)
        assert not (tmp_path / "run" / "documents").exists()


def test_models_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine" / "judge").mkdir(parents=True)
    run = open_run(recipe(tmp_path, "{model: mine/judge}"), tmp_path / "run")
    assert run.recipe.curation.judge.model == str((tmp_path / "mine" / "judge").resolve())
    assert run.recipe.curation.educational.model.startswith("HuggingFaceFW/")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "{corpus}", "--out", "{out}"], "Nothing says who scores"),
        (["score", "{corpus}", "--model", "a", "--judge", "b", "--out", "{out}"], "Give one of"),
        (["score", "{corpus}", "--judge", "http://x/v1", "--out", "{out}"], "--server-model"),
        (["score", "{corpus}", "--model", "a", "--out", "{out}.csv"], "parquet or .jsonl"),
        (["classifier", "train", "{corpus}", "--kind", "regression", "--out", "{out}"], "needs an encoder"),
        (["classifier", "train", "{corpus}", "--label-column", "grade", "--out", "{out}"], "`grade`"),
        (["classifier", "report", "{out}"], "no folder of a classifier"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, arguments: list[str], words: str) -> None:
    corpus = write(tmp_path / "a.jsonl", texts(40))
    filled = [a.format(corpus=corpus, out=tmp_path / "out.parquet") for a in arguments]
    with pytest.raises(MixwrightError, match=words):
        mixwright(*filled)


RECIPE = """mixwright: 1
name: tiny
sources:
  - {{name: wiki, kind: local, path: a.jsonl, capabilities: [knowledge]}}
  - {{name: maths, kind: local, path: a.jsonl, capabilities: [mathematics]}}
curation:
  judge: {judge}
{more}
"""


def recipe(folder: Path, judge: str, more: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(judge=judge, more=more))
    return path


def test_a_recipe_names_a_server_and_says_that_texts_leave(tmp_path: Path) -> None:
    server = "{server: {url: 'https://judges.example/v1', model: big, api: chat, key_variable: BIG_KEY}}"
    run = open_run(recipe(tmp_path, server), tmp_path / "run")
    judge: Any = _judge(run, load_prompt("code-v1"))
    assert (judge.url, judge.api, judge.key_variable) == ("https://judges.example/v1", "chat", "BIG_KEY")
    assert judge.max_document_characters == 4096
    assert "sent to https://judges.example/v1" in _notes(run.recipe)[0]


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("{}", "either `model` or `server`"),
        ("{model: a, server: {url: 'http://x/v1', model: b}}", "not both"),
        ("{server: {url: 'file:///x', model: b}}", "http://"),
        ("{server: {url: 'http://me:secret@x/v1', model: b}}", "password"),
    ],
)
def test_other_judges_are_refused(tmp_path: Path, judge: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        open_run(recipe(tmp_path, judge), tmp_path / "run")


def test_prompts_of_the_users_own_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Good?\n<document>\n{document}\n</document>\nAnswer:")
    run = open_run(
        recipe(tmp_path, "{model: some/judge, prompts: {mathematics: mine.txt}}"), tmp_path / "run"
    )
    names = prompt_names(run.recipe)
    assert names == {
        "reasoning": "reasoning-v1",
        "knowledge": "knowledge-v1",
        "mathematics": str((tmp_path / "mine.txt").resolve()),
    }


def test_languages_of_a_recipe(tmp_path: Path) -> None:
    more = "  language: {model: lid.bin, languages: [en], per_source: {maths: []}}"
    run = open_run(recipe(tmp_path, "{model: some/judge}", more), tmp_path / "run")
    assert run.recipe.curation.language is not None
    assert run.recipe.curation.language.model == str(tmp_path.resolve() / "lid.bin")
    with pytest.raises(RecipeError, match=r"language\.per_source"):
        open_run(recipe(tmp_path, "{model: some/judge}", more.replace("maths", "moths")), tmp_path / "run")
