"""Raters trained from labels: they learn, load as the published ones do, and are the same bytes every
time.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from curation.agreement import area_under_curve
from curation.ask_llm import AskLLM
from curation.atomic import hash_folder, read_json
from curation.documents import Document, document_id
from curation.educational import EducationalClassifier
from curation.errors import DataError
from curation.judge_prompt import parse_prompt
from curation.labels import LabelledExample
from curation.rater_tokenizer import train_rater_tokenizer
from curation.rater_training import RaterSettings, batch_plan, split_examples
from curation.raters import answer_loss, combined_examples, train_classifier, train_judge

SETTINGS = RaterSettings(
    dim=32, layers=1, ffn_dim=32, max_tokens=24, batch_examples=16, epochs=4, learning_rate=8e-3, examples=600
)
WORDS = {
    "code": ["def", "return", "class", "import", "while", "lambda"],
    "mathematics": ["theorem", "proof", "integral", "prime", "matrix", "sum"],
}
PROMPTS = {
    task: parse_prompt(task, f"Judge.\n<document>\n{{document}}\n</document>\nGood {task}? Answer:")
    for task in WORDS
}


def examples(count: int = 300) -> dict[str, list[LabelledExample]]:
    """Texts of one topic or the other; each task includes its own topic and excludes the other."""
    made: dict[str, list[LabelledExample]] = {task: [] for task in WORDS}
    chance = random.Random(0)
    for i in range(count):
        topic = chance.choice(list(WORDS))
        text = f"{i} " + " ".join(chance.choices(WORDS[topic], k=8))
        for task in WORDS:
            label = float(task == topic)
            made[task].append(
                LabelledExample(document_id("s", text), text, label, f"rule {label}", "s", f"file {i}")
            )
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [e.text for e in examples()["code"]] + [p.before + p.after for p in PROMPTS.values()]
    return train_rater_tokenizer(texts, tmp_path_factory.mktemp("t") / "tokenizer", vocabulary=400)


def test_the_classifier_learns_and_is_a_folder_like_the_published_one(
    tokenizer: Path, tmp_path: Path
) -> None:
    labelled = [replace(e, label=4.5 if e.label else 0.5) for e in examples()["mathematics"]]
    record = train_classifier(labelled, tokenizer, tmp_path / "a", SETTINGS)
    agreement = record["tasks"]["educational"]
    assert agreement["auc"] > 0.95 and agreement["correlation"] > 0.8
    assert agreement["trained_on"] + agreement["held_out"] == 300
    assert record == read_json(tmp_path / "a" / "rater.json")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    assert type(model).__name__ == "BertForSequenceClassification" and model.config.num_labels == 1
    good, bad = EducationalClassifier(str(tmp_path / "a")).score(
        [
            Document("g", "901 proof theorem prime sum proof matrix", "s"),
            Document("b", "902 import class def return while lambda", "s"),
        ]
    )["educational_score"]
    assert good > bad + 2


def test_the_judge_learns_each_task_by_its_prompt(tokenizer: Path, tmp_path: Path) -> None:
    record = train_judge(examples(), PROMPTS, tokenizer, tmp_path / "a", SETTINGS)
    for task in WORDS:
        assert record["tasks"][task]["auc"] > 0.9
    for prompt in PROMPTS.values():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / prompt.name)
        assert type(model).__name__ == "LlamaForCausalLM"
    proof = [Document("p", "903 theorem proof integral matrix prime sum", "s")]
    margins = {
        task: float(AskLLM(str(tmp_path / "a"), prompt).score(proof)["margin"][0])
        for task, prompt in PROMPTS.items()
    }
    assert margins["mathematics"] > 0 > margins["code"]
    scores = AskLLM(str(tmp_path / "a"), PROMPTS["mathematics"]).score(proof)
    assert scores["p1"][0] == pytest.approx(scores["p1_calibrated"][0], abs=0.2)  # it says little but 1 and 0


def test_the_same_labels_give_the_same_bytes_whatever_their_order(tokenizer: Path, tmp_path: Path) -> None:
    short = replace(SETTINGS, epochs=1, examples=64)
    given_order = examples(80)
    mixed = {task: random.Random(1).sample(found, len(found)) for task, found in given_order.items()}
    state = torch.get_rng_state()
    train_judge(given_order, PROMPTS, tokenizer, tmp_path / "a", short)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are its own
    torch.manual_seed(99)
    train_judge(mixed, PROMPTS, tokenizer, tmp_path / "b", short)
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    train_classifier(given_order["code"], tokenizer, tmp_path / "c", short)
    train_classifier(mixed["code"], tokenizer, tmp_path / "d", short)
    assert hash_folder(tmp_path / "c") == hash_folder(tmp_path / "d")
    train_classifier(mixed["code"], tokenizer, tmp_path / "e", replace(short, seed=1))
    assert hash_folder(tmp_path / "c") != hash_folder(tmp_path / "e")


def test_a_finished_rater_is_kept_and_a_killed_one_leaves_nothing(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(SETTINGS, epochs=1, examples=64)
    labels = examples(80)["code"]
    out = tmp_path / "rater"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("curation.raters._save", killed)
        train_classifier(labels, tokenizer, out, short)
    assert not out.exists()
    record = train_classifier(labels, tokenizer, out, short)
    with monkeypatch.context() as patch:
        patch.setattr("curation.raters.fit", lambda *_: pytest.fail("trained again"))
        assert train_classifier(labels, tokenizer, out, short) == record
    other = train_classifier(labels[:70], tokenizer, out, short)
    assert other["made_from"] != record["made_from"]


def test_pieces_of_one_file_are_on_one_side() -> None:
    labelled = [LabelledExample(f"{i}", f"text {i}", i % 2, "r", "s", f"file {i // 10}") for i in range(400)]
    train, test = split_examples({"code": labelled, "mathematics": labelled}, SETTINGS)["code"]
    assert train and test
    assert not {e.group for e in train} & {e.group for e in test}


@pytest.mark.parametrize("files", [2, 3, 5])
def test_a_task_of_few_files_has_one_to_measure_on(files: int) -> None:
    for seed in range(20):
        labelled = [
            LabelledExample(f"{i}", f"text {i}", i % 2, "r", "s", f"file {i % files}") for i in range(24)
        ]
        train, test = split_examples({"code": labelled}, replace(SETTINGS, seed=seed))["code"]
        assert train and test and not {e.group for e in train} & {e.group for e in test}


def test_too_few_examples_are_a_sentence() -> None:
    with pytest.raises(DataError, match="too few to train"):
        split_examples({"code": [LabelledExample("a", "t", 1, "r", "s", "g")]}, SETTINGS)


def test_every_row_is_in_one_batch_of_each_epoch() -> None:
    plan = batch_plan([[0] * (i % 7 + 1) for i in range(101)], SETTINGS)
    assert sorted(i for batch in plan for i in batch) == sorted(list(range(101)) * SETTINGS.epochs)
    assert max(map(len, plan)) == SETTINGS.batch_examples


def test_combined_labels_are_the_best_of_the_domains() -> None:
    made = examples(20)
    combined = combined_examples(made)
    assert len(combined) == 20 and all(e.label == 1 for e in combined)
    only = combined_examples({"code": made["code"]})
    assert [e.label for e in only] == [e.label for e in made["code"]]


def test_answer_loss_by_hand() -> None:
    """Logits 2, 1, 0 of "1", "0" and another: the choice costs log(1 + 1/e), answering log(1 + 1/(e^2 +
    e)).
    """
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    choice, answering = np.log(1 + np.exp(-1)), np.log(1 + 1 / (np.e**2 + np.e))
    expected = choice + 0.1 * answering
    assert answer_loss(logits, torch.tensor([1.0]), [0], [1]).item() == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_area_under_curve_is_that_of_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    area = area_under_curve(scores, positive)
    if positive.all() or not positive.any():
        assert area is None
    else:
        assert area == pytest.approx(roc_auc_score(positive, scores))
