"""A bfloat16 judge keeps what the float32 judge keeps, and the user hears of cut and bounded documents."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from curation.ask_llm import AskLLM
from curation.documents import Document, document_id
from curation.judge_prompt import parse_prompt
from curation.judge_scores import Score, judge_notes, judge_scores
from curation.score_tables import score_source, top_share
from curation.scorer import Scorer

PROMPT = parse_prompt("short", "Is this good?\n<document>\n{document}\n</document>\nAnswer:")


def documents(count: int) -> list[Document]:
    chance = random.Random(1)
    words = ["even", "number", "return", "first", "because", "sum", "twice", "add", "the", "is"]
    texts = [" ".join(chance.choices(words, k=chance.randint(3, 20))) for _ in range(count)]
    return [Document(document_id("s", text), text, "s") for text in dict.fromkeys(texts)]


def ids(found: list[Document]) -> pl.DataFrame:
    return pl.DataFrame({"id": [d.id for d in found]})


def scoring(found: list[Document], folder: Path) -> Score:
    def score(judge: Scorer, wanted: pl.DataFrame) -> pl.DataFrame:
        return score_source([d for d in found if d.id in set(wanted["id"])], judge, folder)

    return score


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_bfloat16_judge_keeps_what_float32_keeps(judge_folder: Path, tmp_path: Path, share: float) -> None:
    found = documents(600)
    full = AskLLM(str(judge_folder), PROMPT)
    half = replace(full, precision="bfloat16")
    kept = top_share(score_source(found, full, tmp_path / "full"), "margin", share)["id"].to_list()
    raw = top_share(score_source(found, half, tmp_path / "half"), "margin", share)["id"].to_list()
    mended = judge_scores(half, ids(found), share, scoring(found, tmp_path / "half"))
    assert set(raw) != set(kept), "the test shows nothing when bfloat16 alone gets it right"
    assert set(top_share(mended, "margin", share)["id"]) == set(kept)
    assert mended["id"].to_list() == sorted(d.id for d in found)
    again = pl.read_parquet(tmp_path / "half" / "ask_llm-short-float32.parquet")
    assert again.height < 0.6 * len(found)


def test_float32_judges_are_asked_once(judge_folder: Path, tmp_path: Path) -> None:
    found = documents(20)
    judge = AskLLM(str(judge_folder), PROMPT)
    judge_scores(judge, ids(found), 0.1, scoring(found, tmp_path))
    assert [p.name for p in tmp_path.glob("*.parquet")] == ["ask_llm-short.parquet"]


def test_notes_count_cut_and_bounded_documents() -> None:
    judge = AskLLM("none", PROMPT)
    flags = [True, True] + [False] * 8
    table = pl.DataFrame({"id": list("abcdefghij"), "truncated": flags, "bounded": flags[::-1]})
    notes = judge_notes("wiki", table, judge)
    assert "head of 2 of the 10 documents of wiki" in notes[0]
    assert notes[1].startswith("For 2 of the 10")
    assert judge_notes("wiki", table.with_columns(truncated=False, bounded=False), judge) == []
