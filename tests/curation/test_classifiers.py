"""Classifiers of one's own: the same bytes for the same table, scores as the libraries', damage noticed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from curation.atomic import hash_folder
from curation.classifiers import (
    FastTextSettings,
    RegressionSettings,
    distilled,
    open_classifier,
    read_annotated,
    read_classifier,
    train_fasttext,
    train_regression,
)
from curation.classifiers.annotated import Annotated, split_annotated
from curation.classifiers.fasttext_model import load_fasttext, one_line, predict
from curation.classifiers.frozen_encoder import Head, encode, load_frozen
from curation.documents import Document, document_id
from curation.educational import EducationalClassifier, parse_rule, passing
from curation.errors import DataError, MixwrightError
from curation.score_tables import score_source

GOOD = ["even", "number", "sum", "twice", "because", "first", "therefore", "proof", "add", "equal"]
BAD = ["click", "buy", "cookie", "login", "menu", "banner", "share", "subscribe", "offer", "price"]
BOTH = ["the", "a", "of", "and", "to", "in", "is", "it", "that", "on"]
SMALL = FastTextSettings(dim=16, epochs=10)


def table(count: int = 300, grades: int = 2, seed: int = 0) -> list[Annotated]:
    """Texts with the share of good words that their grade says."""
    chance = random.Random(seed)
    found = []
    for index in range(count):
        grade = index % grades
        words = [
            chance.choice(GOOD if chance.random() < (grade + 0.3) / (grades - 0.4) else BAD)
            if chance.random() < 0.5
            else chance.choice(BOTH)
            for _ in range(chance.randint(10, 40))
        ]
        text = " ".join(words)
        found.append(Annotated(document_id("t", text), text, float(grade), text))
    return found


def documents(examples: list[Annotated]) -> list[Document]:
    return [Document(e.id, e.text, "t") for e in examples]


def scores_of(folder: Path, found: list[Document]) -> np.ndarray:
    return open_classifier(str(folder)).score(found)["educational_score"]


def test_fasttext_learns_and_reports(tmp_path: Path) -> None:
    examples = table()
    record = train_fasttext(examples, tmp_path / "c", SMALL)
    report = record["held_out"]
    assert report["auc"] > 0.95
    best = report["best_threshold"]["f1"]
    assert best["low"] <= best["value"] <= best["high"] and best["value"] > 0.85
    assert record["table"]["labels"] == {"0": 150, "1": 150}
    assert report["texts"] == record["split"]["held_out"] == len(split_annotated(examples, 0).held_out)
    assert read_classifier(tmp_path / "c") == record
    held = split_annotated(examples, 0).held_out
    kept = scores_of(tmp_path / "c", documents(held)) >= record["threshold"]
    truth = np.array([e.label for e in held]) == 1
    assert 2 * (kept & truth).sum() / (kept.sum() + truth.sum()) == pytest.approx(best["value"], abs=1e-4)


def test_fasttext_training_is_reproducible_in_a_busy_process(tmp_path: Path) -> None:
    """fastText leaves most word vectors as the memory was found; NaN is what is found here."""
    digests = set()
    for index in range(4):
        junk = [np.full(size, np.nan, dtype=np.float32) for size in range(100, 60_000, 1500)]
        del junk
        examples = table()
        random.Random(index).shuffle(examples)
        train_fasttext(examples, tmp_path / f"c{index}", SMALL)
        digests.add(hash_folder(tmp_path / f"c{index}"))
    assert len(digests) == 1
    train_fasttext(table(), tmp_path / "other", FastTextSettings(dim=16, epochs=10, seed=1))
    assert hash_folder(tmp_path / "other") not in digests


def test_fasttext_scores_are_the_librarys(tmp_path: Path) -> None:
    import fasttext

    train_fasttext(table(grades=6, count=360), tmp_path / "c", SMALL)
    texts = [e.text for e in table(20, 6, seed=5)]
    library = fasttext.load_model(str(tmp_path / "c" / "model.bin"))
    labels, shares = library.predict(texts, k=-1)
    expected = [
        sum(float(name[9:]) * p for name, p in zip(*row, strict=True))
        for row in zip(labels, shares, strict=True)
    ]
    found = scores_of(tmp_path / "c", [Document(str(i), text, "t") for i, text in enumerate(texts)])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert found.max() > found.min() + 1


@pytest.mark.parametrize(
    "text", ["a\nb", "even </s> number", "__label__1 __label__1", "", "\0", "\u2028é\r\n"]
)
def test_no_text_breaks_a_line_or_forges_a_label(tmp_path: Path, text: str) -> None:
    examples = [*table(), *(Annotated(f"x{i}", f"{text} {i}", float(i % 2), f"g{i}") for i in range(20))]
    train_fasttext(examples, tmp_path / "c", FastTextSettings(dim=16, epochs=2))
    model = load_fasttext(tmp_path / "c" / "model.bin")
    assert sorted(model.get_labels()) == ["__label__0", "__label__1"]
    score = scores_of(tmp_path / "c", [Document("1", text + "x", "t")])
    assert 0 <= score[0] <= 1
    assert "\n" not in one_line(text)


def test_probabilities_are_in_range_and_sum_to_one(tmp_path: Path) -> None:
    train_fasttext(table(), tmp_path / "c", FastTextSettings(dim=16, epochs=200))
    model = load_fasttext(tmp_path / "c" / "model.bin")
    texts = [" ".join(GOOD * 20), " ".join(BAD * 20), ""]
    assert max(float(p[0]) for p in model.predict(texts, k=1)[1]) > 1
    for _, shares in predict(model, texts):
        assert shares.min() >= 0 and shares.max() <= 1 and shares.sum() == pytest.approx(1, abs=1e-5)


def test_damage_is_noticed(tmp_path: Path) -> None:
    train_fasttext(table(), tmp_path / "c", SMALL)
    model = tmp_path / "c" / "model.bin"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(DataError, match="missing or has changed"):
        open_classifier(str(tmp_path / "c"))
    (tmp_path / "x.bin").write_text("hello, I am no model")
    with pytest.raises(DataError, match="not a fastText model"):
        load_fasttext(tmp_path / "x.bin")
    with pytest.raises(DataError, match="cannot be read"):
        load_fasttext(tmp_path / "none.bin")


def make_encoder(family: str, tokenizer_folder: Path, folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    bert = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "bert":
        model = BertModel(BertConfig(**size, **bert, initializer_range=0.2, max_position_embeddings=64))
    elif family == "roberta":
        model = RobertaModel(RobertaConfig(**size, **bert, initializer_range=0.2, max_position_embeddings=64))
    elif family == "distilbert":
        model = DistilBertModel(DistilBertConfig(**size, dim=32, hidden_dim=48, n_layers=2, n_heads=4))
    else:
        own = {"cls_token_id": 0, "sep_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
        pooling = "mean" if family.endswith("mean") else "cls"
        model = ModernBertModel(ModernBertConfig(**size, **bert, **own, classifier_pooling=pooling))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "modernbert-mean"])
def test_the_head_on_cached_vectors_is_the_whole_model(
    family: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = make_encoder(family, tokenizer_folder, tmp_path / "encoder")
    tokenizer, model = load_frozen(str(folder), 0)
    texts = [e.text for e in table(6)]
    vectors = encode(tokenizer, model, texts, 60)
    with torch.no_grad():
        whole = [float(model(torch.tensor([tokenizer(t)["input_ids"][:60]])).logits) for t in texts]
        with Head(model) as head:
            np.testing.assert_allclose(head(vectors).numpy(), whole, atol=1e-4)
            trained = {id(p) for p in head.parameters()}
    frozen = [p for name, p in model.base_model.named_parameters() if "pooler" not in name]
    assert trained and not trained & {id(p) for p in frozen}


def test_regression_trains_a_folder_that_the_published_code_loads(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    encoder = make_encoder("bert", tokenizer_folder, tmp_path / "encoder")
    examples = table(300)
    settings = RegressionSettings(epochs=20, learning_rate=3e-3)
    record = train_regression(examples, str(encoder), tmp_path / "c", settings)
    assert record["settings"]["max_tokens"] == 64
    assert not list(tmp_path.glob(".c*"))
    before, after = (
        BertModel.from_pretrained(encoder),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "c"),
    )
    for name, weight in before.named_parameters():
        if "pooler" not in name:
            assert torch.equal(weight, dict(after.bert.named_parameters())[name])
    found = documents(table(10, seed=9))
    scorer = open_classifier(str(tmp_path / "c"))
    assert isinstance(scorer, EducationalClassifier)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "c")
    with torch.no_grad():
        plain = [float(after(torch.tensor([tokenizer(d.text)["input_ids"][:64]])).logits) for d in found]
    np.testing.assert_allclose(scorer.score(found)["educational_score"], plain, atol=1e-4)
    again = train_regression(examples[::-1], str(encoder), tmp_path / "d", settings)
    assert again == record
    held = split_annotated(examples, 0).held_out
    truth = np.array([e.label for e in held])
    error = np.square(scores_of(tmp_path / "c", documents(held)) - truth).mean()
    assert error < truth.var(), "worse than always saying the mean"


def test_embeddings_survive_a_kill(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder("bert", tokenizer_folder, tmp_path / "encoder")
    monkeypatch.setattr(
        "curation.classifiers.regression._train", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        train_regression(table(100), str(encoder), tmp_path / "c")
    monkeypatch.undo()
    calls: list[int] = []
    monkeypatch.setattr(
        "curation.classifiers.frozen_encoder.encode",
        lambda tokenizer, model, texts, tokens: (
            calls.append(len(texts)) or encode(tokenizer, model, texts, tokens)
        ),
    )
    monkeypatch.setattr("curation.classifiers.regression.check_head", lambda *a: None)
    train_regression(table(100), str(encoder), tmp_path / "c", RegressionSettings(epochs=1))
    assert calls == []


def test_a_student_learns_what_a_judge_says(tmp_path: Path) -> None:
    examples = table(400)
    found = documents(examples)
    share = [sum(word in GOOD for word in d.text.split()) / len(d.text.split()) for d in found]
    scores = pl.DataFrame({"id": [d.id for d in found], "p1_calibrated": share})
    taught = distilled(found, scores)
    assert [e.label for e in taught] == share
    record = train_fasttext(taught, tmp_path / "c", SMALL, positive_from=0.3)
    assert set(record["values"]) <= {f"bin{i}" for i in range(5)}
    new = documents(table(60, seed=8))
    wanted = [sum(word in GOOD for word in d.text.split()) / len(d.text.split()) for d in new]
    assert np.corrcoef(scores_of(tmp_path / "c", new), wanted)[0, 1] > 0.8
    with pytest.raises(DataError, match="none of the documents"):
        distilled(found, scores.with_columns(id=pl.lit("x")))
    with pytest.raises(DataError, match="no columns"):
        distilled(found, scores, "margin")


def test_the_educational_rules_apply(tmp_path: Path) -> None:
    train_fasttext(table(grades=6, count=360), tmp_path / "c", SMALL)
    found = documents(table(60, 6, seed=4))
    scores = score_source(found, open_classifier(str(tmp_path / "c")), tmp_path / "scores")
    assert passing(scores, parse_rule("top 0.1")).height == 6
    assert 0 < passing(scores, parse_rule("raw > 3")).height < 60


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": f"text {i}", "label": i % 2} for i in range(10)], "too few"),
        ([{"text": f"text {i}", "label": "good"} for i in range(50)], "not a number"),
        ([{"text": f"text {i}", "label": 1} for i in range(50)], "one side"),
        ([{"text": f"text {i}", "score": 1} for i in range(50)], "No record has a label"),
        ([{"text": "same", "id": str(i), "label": i % 2} for i in range(50)], "too few"),
    ],
)
def test_tables_that_teach_nothing_are_refused(
    tmp_path: Path, rows: list[dict[str, object]], words: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MixwrightError, match=words):
        train_fasttext(read_annotated([path]), tmp_path / "c")


def test_tables_are_read_with_their_columns(tmp_path: Path) -> None:
    pl.DataFrame({"body": ["a b", "c d", "e f"], "good": [True, False, None]}).write_parquet(
        tmp_path / "t.parquet"
    )
    examples = read_annotated([tmp_path / "t.parquet"], text_column="body", label_column="good")
    assert [(e.text, e.label) for e in examples] == [("a b", 1.0), ("c d", 0.0)]
