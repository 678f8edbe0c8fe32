"""The commands that shorten chats and fine-tune in stages, and what a recipe's fine-tuning can be told."""

import json

import pytest
from typer.testing import CliRunner

from curation.errors import RecipeError
from recipes.cli import app, tuning
from recipes.post_training_settings import GeneralSettings, SftSettings, ShortenSettings
from tests.training.post_training_models import tiny_folder, write_rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    thoughts = [" ".join(["1 +"] * n) for n in range(1, 9)]
    rows = [{"prompt": "1 =", "response": f"<think> {thought} </think> 1"} for thought in thoughts]
    return tiny_folder(folder / "start"), write_rows(folder / "chats.jsonl", rows)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_shorten(files, tmp_path):
    start, data = files
    out = tmp_path / "short.jsonl"
    given = ["--drop-longest", 0.25, "--condition", "--thresholds", "4:8", "--truncate", 5, "--json"]
    said = json.loads(run("shorten", data, "--tokenizer", start, "--out", out, *given).stdout)
    assert (said["chats"], said["kept"], said["cut"]) == (8, 6, 4) and said["levels"] == {
        "low": 2,
        "medium": 2,
        "high": 2,
    }
    assert len(out.read_text().splitlines()) == 6
    with pytest.raises(RecipeError, match="no pair"):
        run("shorten", data, "--tokenizer", start, "--out", out, "--thresholds", "4")


def test_grpo_says_when_it_could_learn_nothing(files, tmp_path, monkeypatch):
    start, _ = files
    # No answer of four tokens from random weights is this one, so every group is wrong throughout.
    data = write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": f"{n} =", "answer": "777777"} for n in range(2)]
    )
    given = ["--steps", 1, "--prompts-per-step", 2, "--group", 2, "--max-tokens", 4]
    said: list[str] = []
    monkeypatch.setattr(tuning, "say", said.append)
    shown = run("grpo", start, "--data", data, "--out", tmp_path / "out", *given).output
    assert "updates: 0" in shown and "None" not in shown
    assert said[-1].startswith("No update was made")


def test_stages(files, tmp_path):
    start, data = files
    stages = tmp_path / "stages.yaml"
    small = "sequence_tokens: 32, batch_sequences: 4, epochs: 1, learning_rate: 1e-3"
    stages.write_text(
        f"- {{name: general, data: {data}, preset: mobilellm-r1-general, {small}}}\n"
        f"- {{name: reasoning, data: [{data}, {data}], {small}}}\n"
    )
    said = run("sft", start, "--stages", stages, "--out", tmp_path / "out", "--json")
    assert json.loads(said.stdout)["chats"] == 16 and (tmp_path / "out" / "model" / "config.json").exists()
    first, second = tuning.read_stages(stages)
    assert first.settings.learning_rate == 1e-3 and first.settings.warmup_share == 0.03  # of the preset
    assert second.settings.warmup_share == 0.1
    for text, says in (
        ("- {name: a}", "no name and data"),
        ("- {name: a, data: b, epoch: 1}", "`epoch` is unknown"),
        ("- {name: a, data: b, preset: gpt}", "`gpt` is unknown"),
        ("{", "cannot be read"),
    ):
        stages.write_text(text)
        with pytest.raises(RecipeError, match=says):
            tuning.read_stages(stages)
    with pytest.raises(RecipeError, match="no data, or twice"):
        run("sft", start, "--out", tmp_path / "out")


def test_a_stages_key_names_only_what_is_used():
    assert SftSettings().deciding().keys() == SftSettings().model_dump().keys() - {
        "general",
        "shorten",
        "recompute",
    }
    used = SftSettings(
        general=GeneralSettings(data="x.jsonl"), shorten=ShortenSettings(truncate=9)
    ).deciding()
    assert used["general"]["schedule"] == "in_turn" and used["shorten"]["truncate"] == 9
