"""The Python of docs/curation-judges.md runs as it stands, and its prompts and settings exist."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import yaml

from curation.judge_prompt import PROMPT_FOLDER
from recipes.curation_settings import JudgeSettings, LanguageSettings

PAGE = (Path(__file__).parents[2] / "docs" / "curation-judges.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_five_lines_train_and_use_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    words = [["click", "buy", "cookie", "login"], ["even", "number", "sum", "proof"]]
    rows = [{"text": " ".join(chance.choices(words[i % 2], k=9)), "label": i % 2} for i in range(300)]
    for name in ("labels.jsonl", "corpus.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (program,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(program, "page", "exec"), names)
    assert len(names["scores"]) == 300  # type: ignore[arg-type]
    assert "'value': 1.0" in capsys.readouterr().out


def test_recipes_of_the_page_are_valid() -> None:
    found = [yaml.safe_load(block)["curation"] for block in blocks("yaml")]
    for settings in found:
        if "judge" in settings:
            JudgeSettings.model_validate(settings["judge"])
        if "language" in settings:
            LanguageSettings.model_validate(settings["language"])
    assert sum("judge" in s for s in found) == 2 and sum("language" in s for s in found) == 1


def test_prompts_of_the_page_are_there() -> None:
    for prompt in PROMPT_FOLDER.glob("*.txt"):
        assert f"`{prompt.stem}`" in PAGE
