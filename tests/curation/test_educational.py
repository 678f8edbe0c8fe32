"""The educational score: the published class's own outputs, and the three rules at their edges."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from transformers import BertForSequenceClassification as Bert

from curation.documents import Document, document_id
from curation.educational import (
    EducationalClassifier,
    few_passed,
    int_score,
    parse_rule,
    passing,
)
from curation.errors import DataError, RecipeError


def documents(texts: list[str]) -> list[Document]:
    return [Document(document_id("s", text), text, "s") for text in texts]


def texts() -> list[str]:
    words = ["even", "number", "return", "first", "because", "sum"]
    chance = random.Random(0)
    return [" ".join(chance.choices(words, k=length)) for length in (1, 3, 200, 7, 40, 1000, 2, 64)] + [""]


def test_scores_are_those_of_the_published_recipe(classifier_folder: Path) -> None:
    """tokenizer(text, truncation) -> logits.squeeze(-1), one text at a time, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    expected = []
    for text in texts():
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            expected.append(model(**inputs).logits.squeeze(-1).item())
    scores = EducationalClassifier(str(classifier_folder)).score(documents(texts()))["educational_score"]
    assert scores.dtype == np.float32
    assert np.ptp(scores) > 0.1
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(classifier_folder: Path) -> None:
    found = documents(texts())
    scorer = EducationalClassifier(str(classifier_folder))
    together = dict(
        zip([d.id for d in found], scorer.score(found)["educational_score"].tolist(), strict=True)
    )
    random.Random(1).shuffle(found)
    alone = EducationalClassifier(str(classifier_folder), batch_tokens=1).score(found)["educational_score"]
    np.testing.assert_allclose([together[d.id] for d in found], alone, atol=1e-5)


def test_only_the_head_of_a_document_is_seen(classifier_folder: Path) -> None:
    scorer = EducationalClassifier(str(classifier_folder), max_tokens=32)
    head = "even number because " * 40
    first, second = scorer.score(documents([head + "first", head + "second " * 500]))["educational_score"]
    assert first == pytest.approx(second, abs=1e-6)


def test_a_score_that_the_dataset_carries_is_kept(classifier_folder: Path) -> None:
    found = [
        Document("a", "sum", "s", meta={"score": 4.25}),
        Document("b", "sum", "s", meta={"score": "good"}),
        Document("c", "sum", "s"),
    ]
    scores = EducationalClassifier(str(classifier_folder), reuse="score").score(found)["educational_score"]
    assert scores[0] == 4.25
    assert scores[1] == scores[2] != 4.25


def test_int_score_rounds_halves_to_even() -> None:
    raw = np.array([2.5, 3.5, 4.5, 3.4999, 5.7, -1.0], dtype=np.float32)
    assert int_score(raw).tolist() == [2, 4, 4, 3, 5, 0]
    assert int_score(raw).tolist() == [round(max(0.0, min(float(x), 5.0))) for x in raw]


def test_rules_at_their_edges() -> None:
    table = pl.DataFrame(
        {
            "id": ["a", "b", "c", "d", "e"],
            "educational_score": pl.Series([4.0, 4.0001, 3.5, 3.4999, 1.0], dtype=pl.Float32),
        }
    )

    def kept(rule: str) -> list[str]:
        return passing(table, parse_rule(rule))["id"].to_list()

    assert kept("raw > 4") == ["b"]
    assert kept("int_score >= 4") == ["a", "b", "c"]
    assert kept("top 0.4") == ["a", "b"]
    assert kept("all") == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("text", ["raw >= 4", "score > 4", "top 0", "top 1.5", "raw > four", ""])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_rule(text)


def test_a_source_that_hardly_passes_gets_a_sentence() -> None:
    rule = parse_rule("raw > 4")
    assert few_passed("code", 1, 100, rule) is None
    assert few_passed("code", 0, 0, rule) is None
    sentence = few_passed("code", 1, 101, rule)
    assert sentence is not None and "1 of the 101 documents of code" in sentence and "`raw > 4`" in sentence


def test_a_model_with_several_outputs_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    Bert(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="one output, but this model has 2"):
        EducationalClassifier(str(tmp_path)).score(documents(["text"]))


def test_pickled_weights_are_not_loaded(classifier_folder: Path, tmp_path: Path) -> None:
    """A .bin file can run code of whoever made it; only the user can allow it."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    model.config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        EducationalClassifier(str(tmp_path)).score(documents(["text"]))


def test_folders_that_are_no_whole_classifier_are_sentences(classifier_folder: Path, tmp_path: Path) -> None:
    """transformers would make up a head, at random, or a tokenizer without words."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    model.save_pretrained(tmp_path / "wordless")
    with pytest.raises(DataError, match=r"no vocabulary.*tokenizer.json"):
        EducationalClassifier(str(tmp_path / "wordless")).score(documents(["text"]))
    model.base_model.save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(tmp_path / "headless")
    with pytest.raises(DataError, match=r"lacks 2 of its weights, such as `classifier.bias`.*not an encoder"):
        EducationalClassifier(str(tmp_path / "headless")).score(documents(["text"]))
