"""Known contamination is found, in documents and in token shards, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.decontaminate import decontaminate
from curation.documents import Document
from curation.errors import DataError, RecipeError
from curation.writers import write_file
from probes.split_by_overlap import shard_documents, split_by_overlap
from training.tokenizer import train_tokenizer
from training.tokenizing import write_tokens

WORDS = [f"w{number}" for number in range(400)]
ITEMS = {
    "copied": " ".join(WORDS[0:30]),
    "half": " ".join(WORDS[40:66]),
    "touched": " ".join(WORDS[100:140]),
    "clean": " ".join(WORDS[200:230]),
    "short": "what is 2 + 2",
}
SCORES = {"copied": 1.0, "half": 1.0, "touched": 0.0, "clean": 0.5, "short": 1.0}
DOCUMENTS = [
    Document("a", "Intro. " + ITEMS["copied"].upper() + ", and so on.", "web"),
    Document("b", " ".join(WORDS[40:56]) + " something else", "web"),
    Document("c", "else again " + " ".join(WORDS[50:66]), "web"),
    Document("d", " ".join(WORDS[100:115]) + ".", "web"),
    Document("e", "what is 2 + 2", "web"),
]


def test_sides_and_counts() -> None:
    split = split_by_overlap(ITEMS, SCORES, DOCUMENTS)
    # 26 words have 14 runs: four of b and four of c are 8, more than half, though neither document holds half.
    assert split.shares["half"] == pytest.approx(8 / 14)
    assert split.shares["touched"] == pytest.approx(3 / 28)
    assert split.dirty_ids == ("copied", "half")
    assert split.clean_ids == ("touched", "clean")
    assert split.too_short_ids == ("short",)
    assert (split.touched, split.documents) == (3, 5)
    assert split.summary() == {
        "scores": {"all": 0.7, "clean": 0.25, "dirty": 1.0, "too_short": 1.0},
        "items": {"clean": 2, "dirty": 2, "too_short": 1, "touched": 3},
        "documents": 5,
    }
    assert split_by_overlap(ITEMS, SCORES, []).dirty is None
    assert split_by_overlap(ITEMS, SCORES, DOCUMENTS, least_share=0.1).dirty_ids == (
        "copied",
        "half",
        "touched",
    )


def test_the_counts_are_those_of_decontaminate(tmp_path: Path) -> None:
    write_file(tmp_path / "task.jsonl", [Document(name, text, "task") for name, text in ITEMS.items()])
    write_file(tmp_path / "web.jsonl", DOCUMENTS)
    report = decontaminate(
        [tmp_path / "web.jsonl"], [tmp_path / "task.jsonl"], tmp_path / "clean.jsonl", remove="none"
    )
    split = split_by_overlap(ITEMS, SCORES, DOCUMENTS)
    (found,) = report.benchmarks
    counted = (len(split.shares), len(split.too_short_ids), split.touched, len(split.dirty_ids))
    assert (found.items, found.too_short, found.any_match, found.half_match) == counted


def test_token_shards_give_the_same_split(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([d.text for d in DOCUMENTS], 400, tmp_path / "tokenizer")
    source = write_tokens(((d.id, d.text) for d in DOCUMENTS), tokenizer, tmp_path / "tokens", "web")
    again = list(shard_documents(source, tokenizer))
    assert [(d.id, d.text, d.source) for d in again] == [(d.id, d.text, d.source) for d in DOCUMENTS]
    assert split_by_overlap(ITEMS, SCORES, again) == split_by_overlap(ITEMS, SCORES, DOCUMENTS)
    other = train_tokenizer(["other"] * 3, 300, tmp_path / "other")
    with pytest.raises(DataError, match="another tokenizer"):
        list(shard_documents(source, other))


def test_bad_input() -> None:
    with pytest.raises(DataError, match="not of the same ids"):
        split_by_overlap(ITEMS, {"copied": 1.0}, [])
    with pytest.raises(DataError, match="no items"):
        split_by_overlap({}, {}, [])
    with pytest.raises(RecipeError, match="least share"):
        split_by_overlap(ITEMS, SCORES, [], least_share=0)
