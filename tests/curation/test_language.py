"""Language identification: any fastText model whose labels are languages, the table first, the decision after."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curation.atomic import read_json
from curation.cascade import CascadeSettings, Scorers, select_representative
from curation.classifiers import LanguageRule, LanguageScorer, language_scores, passing_language
from curation.classifiers.fasttext_training import _zeroed_memory
from curation.classifiers.language import check_languages, none_passed
from curation.documents import Document, document_id
from curation.educational import parse_rule
from curation.errors import DataError, RecipeError

WORDS = {
    "en": ["the", "house", "and", "water", "of", "people", "with", "time", "that", "which", "think", "night"],
    "de": [
        "das",
        "haus",
        "und",
        "wasser",
        "der",
        "leute",
        "mit",
        "zeit",
        "welche",
        "denken",
        "nacht",
        "straße",
    ],
    "fr": ["la", "maison", "et", "eau", "des", "gens", "avec", "temps", "qui", "penser", "nuit", "être"],
}


def sentence(language: str, chance: random.Random, count: int = 20) -> str:
    return " ".join(chance.choices(WORDS[language], k=count))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small lid.176: character n-grams, one label per language."""
    import fasttext

    folder, chance = tmp_path_factory.mktemp("language"), random.Random(0)
    lines = [f"__label__{name} {sentence(name, chance)}\n" for _ in range(200) for name in WORDS]
    (folder / "train.txt").write_text("".join(lines), encoding="utf-8")
    with _zeroed_memory():
        trained = fasttext.train_supervised(
            str(folder / "train.txt"), dim=16, minn=2, maxn=3, bucket=2000, epoch=10, thread=1, verbose=0
        )
    trained.save_model(str(folder / "lid.bin"))
    return folder / "lid.bin"


def documents(texts: list[str]) -> list[Document]:
    return [Document(document_id("s", text), text, "s") for text in texts]


def test_languages_are_told_apart_whatever_the_line_breaks(model: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    truth = [name for name in WORDS for _ in range(10)]
    found = documents([sentence(name, chance).replace(" ", "\n", 3) for name in truth])
    table = language_scores(found, str(model), tmp_path)
    named = dict(zip(table["id"], table["language"], strict=True))
    assert [named[d.id] for d in found] == truth
    assert 0.9 < table["language_probability"].min() <= table["language_probability"].max() <= 1
    english = passing_language(table, LanguageRule(("en",)))
    assert set(english["id"]) == {d.id for d, name in zip(found, truth, strict=True) if name == "en"}
    both = passing_language(table, LanguageRule(("en", "fr"), 0.0))
    assert both.height == 20
    again = language_scores(found, str(model), tmp_path)
    assert again.equals(table)


def test_texts_without_words_are_in_no_language(model: Path) -> None:
    scores = LanguageScorer(str(model)).score(documents(["", " \n ", "the water"]))
    assert scores["language_probability"][2] > 0.9
    assert (scores["language_probability"][:2] < 0.65).all()


def test_rules_that_cannot_pass_are_sentences(model: Path, tmp_path: Path) -> None:
    check_languages(str(model), LanguageRule(("en",)))
    with pytest.raises(RecipeError, match=r"no language `english`.*Choose of de, en, fr"):
        check_languages(str(model), LanguageRule(("english",)))
    with pytest.raises(DataError, match="cannot be read"):
        language_scores(documents(["a"]), str(tmp_path / "lid.176.bin"), tmp_path)
    table = language_scores(documents(["das haus und", "die nacht welche"]), str(model), tmp_path)
    assert "the most frequent are de" in str(none_passed("wiki", table, LanguageRule(("en",))))


@dataclass(frozen=True)
class Flat:
    """Gives every document the same score."""

    name: str
    columns: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def score(self, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        return dict.fromkeys(self.columns, np.ones(len(documents), dtype=np.float32))


def test_the_cascade_cuts_by_language_before_it_scores(model: Path, tmp_path: Path) -> None:
    chance = random.Random(2)
    texts = {s: [sentence(n, chance) for n in WORDS for _ in range(8)] for s in ("web", "code")}
    corpora = {s: [Document(document_id(s, t), t, s) for t in found] for s, found in texts.items()}
    judge = Flat("judge", ("margin", "p1_calibrated"))

    def embed(found: Sequence[str]) -> np.ndarray:
        angles = np.array([int(document_id("s", text)[:8], 16) for text in found])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    scorers = Scorers(
        Flat("educational", ("educational_score",)),
        {"reasoning": judge, "combined": judge},
        embed,
        LanguageScorer(str(model)),
    )
    settings = CascadeSettings(
        parse_rule("all"),
        language_of={"web": LanguageRule(("en",))},
        reasoning_share=1.0,
        domain_share=1.0,
        threshold=1.0,
    )
    select_representative(corpora, {}, scorers, settings, scores=tmp_path / "s", out=tmp_path / "o")
    funnel = {(r["source"], r["stage"]): r["documents"] for r in read_json(tmp_path / "o" / "funnel.json")}
    assert funnel["web", "read"] == 24 and funnel["web", "language"] == funnel["web", "educational"] == 8
    assert funnel["code", "language"] == 24
    assert pl.read_parquet(tmp_path / "s" / "web" / "educational.parquet").height == 8
    verdicts = pl.read_parquet(tmp_path / "o" / "verdicts.parquet").filter(source="web", verdict="language")
    assert verdicts.height == 16
    assert all(
        reason.startswith(("language de, probability", "language fr")) for reason in verdicts["reason"]
    )
    with pytest.raises(DataError, match="No document of web passes"):
        none = {"web": LanguageRule(("en",), 1.0)}
        select_representative(
            corpora,
            {},
            scorers,
            replace(settings, language_of=none),
            scores=tmp_path / "s",
            out=tmp_path / "o",
        )
