"""Labels from stated rules: first match, damaged copies, patterns that nobody vouches for, fair samples."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.documents import Document, document_id
from curation.errors import RecipeError
from curation.labels import (
    LabelledExample,
    LabelRule,
    balanced,
    corrupted,
    even_shares,
    label_counts,
    label_documents,
)

GOOD = LabelRule("good", 1, "it proves", pattern=r"\b(hence|thus)\b", minimum_matches=2)
BAD = LabelRule("rest", 0, "nothing follows")


def documents(*texts: str, source: str = "s") -> list[Document]:
    return [Document(document_id(source, text), text, source) for text in texts]


def example(name: str, label: float, rule: str = "r") -> LabelledExample:
    return LabelledExample(name, f"text of {name}", label, rule, "s", name)


def test_the_first_rule_that_matches_gives_the_label() -> None:
    found = documents("hence a, thus b", "hence only", "nothing")
    labels = label_documents(found, [GOOD, BAD], task="reasoning", seed=0)
    assert [(e.label, e.rule) for e in labels] == [(1, "good"), (0, "rest"), (0, "rest")]
    assert label_counts(labels, [GOOD, BAD])[0] == {
        "rule": "good",
        "label": 1,
        "why": "it proves",
        "examples": 1,
    }


def test_rules_of_single_sources_and_documents_without_a_label() -> None:
    rules = [LabelRule("a", 1, "", sources=("a",)), LabelRule("b", 0, "", sources=("b",))]
    found = documents("x", source="a") + documents("x", source="b") + documents("x", source="c")
    labels = label_documents(found, rules, task="code", seed=0)
    assert [(e.source, e.label) for e in labels] == [("a", 1), ("b", 0)]


def test_damaged_copies_come_beside_the_original() -> None:
    damage = LabelRule("damaged", 0, "no order", corrupt="shuffle_words")
    keep = LabelRule("all", 1, "")
    text = "one two  three\nfour five six seven eight nine ten"
    labels = label_documents(documents(text), [damage, keep], task="code", seed=0)
    assert [(e.rule, e.label) for e in labels] == [("damaged", 0), ("all", 1)]
    copy = labels[0].text
    assert copy != text and sorted(copy.split()) == sorted(text.split())
    assert [c for c in copy if c.isspace()] == [c for c in text if c.isspace()]
    assert labels[1].text == text and labels[0].group == labels[1].group


def test_what_each_corruption_does() -> None:
    text = "".join(f"line {i} of many\n" for i in range(10))
    lines = corrupted(text, "shuffle_lines", "k")
    assert lines != text and sorted(lines.splitlines()) == sorted(text.splitlines())
    repeated = corrupted(text, "repeat_lines", "k").splitlines()
    assert len(set(repeated)) <= 3 and len(repeated) >= 9 and set(repeated) <= set(text.splitlines())
    assert corrupted("a1 b2\n", "strip_letters", "k") == "1 2\n"
    assert corrupted(text, "shuffle_lines", "k") == lines != corrupted(text, "shuffle_lines", "other")


@given(
    st.text(max_size=60), st.sampled_from(["shuffle_words", "shuffle_lines", "repeat_lines", "strip_letters"])
)
def test_corruptions_take_any_text(text: str, how: str) -> None:
    corrupted(text, how, "key")  # type: ignore[arg-type]


def test_a_pattern_that_backtracks_for_ever_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.labels.PATTERN_SECONDS", 0.2)
    rule = LabelRule("slow", 1, "", pattern=r"(a|aa)+$")
    with pytest.raises(RecipeError, match=r"takes more than 0.2 s .*labels\.code\.slow"):
        label_documents(documents("a" * 5000 + "b"), [rule, BAD], task="code", seed=0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([LabelRule("r", 1, "", pattern="("), BAD], "not a regular expression"),
        ([LabelRule("r", 2, ""), BAD], "not between 0 and 1"),
        ([GOOD, LabelRule("good", 0, "")], "Two rules have the name `good`"),
        ([GOOD], "one label only"),
        ([GOOD, LabelRule("r", 0, "", corrupt="burn")], "`burn` is not a corruption"),  # type: ignore[arg-type]
        ([GOOD, LabelRule("r", 0, "", share=0)], "`share`"),
        ([GOOD, LabelRule("r", 0, "", pattern="x" * 3000)], "longer than"),
    ],
)
def test_unusable_rules(rules: list[LabelRule], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        label_documents(documents("text"), rules, task="code", seed=0)


def test_documents_of_one_label_only_cannot_teach() -> None:
    with pytest.raises(RecipeError, match="fewer than two different labels"):
        label_documents(documents("nothing"), [GOOD, BAD], task="code", seed=0)


def test_a_share_of_a_rule_is_about_that_share_and_stable() -> None:
    rule = LabelRule("some", 1, "", share=0.3)
    found = documents(*(f"text {i}" for i in range(500)))
    labels = label_documents(found, [rule, BAD], task="code", seed=0)
    taken = {e.id for e in labels if e.rule == "some"}
    assert 110 < len(taken) < 190
    assert taken == {
        e.id for e in label_documents(found[::-1], [rule, BAD], task="code", seed=0) if e.rule == "some"
    }


def test_balanced_is_even_over_labels_then_rules_and_blind_to_order() -> None:
    examples = [example(f"a{i}", 1, "many") for i in range(50)] + [
        example(f"b{i}", 1, "few") for i in range(4)
    ]
    examples += [example(f"c{i}", 0, "bad") for i in range(9)]
    chosen = balanced(examples, 24, seed=3)
    counts = {rule: sum(e.rule == rule for e in chosen) for rule in ("many", "few", "bad")}
    assert counts == {"bad": 9, "few": 4, "many": 11}
    mixed = random.Random(0).sample(examples, len(examples))
    assert {e.id for e in balanced(mixed, 24, seed=3)} == {e.id for e in chosen}
    assert {e.id for e in balanced(examples, 24, seed=4)} != {e.id for e in chosen}


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_even_shares(sizes: dict[str, int], limit: int) -> None:
    shares = even_shares(sizes, limit)
    assert sum(shares.values()) == min(limit, sum(sizes.values()))
    assert all(0 <= shares[name] <= sizes[name] for name in sizes)
    unfilled = [shares[name] for name in sizes if shares[name] < sizes[name]]
    assert not unfilled or max(shares.values()) - min(unfilled) <= 1
