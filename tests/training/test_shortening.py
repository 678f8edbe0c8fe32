"""Shortening by data: what is dropped, how chats are labelled, where thoughts are cut and closed."""

import doctest
import json

import pytest

import training.shortening
from curation.errors import DataError, RecipeError
from tests.training.post_training_models import tiny_tokenizer, write_rows
from training.chat import render_chat
from training.shortening import Shortening, shorten, shorten_file, thought_tokens, truncate_thought

TOKENIZER = tiny_tokenizer()


def chat(thought, answer="7"):
    said = f"<think> {thought} </think> {answer}" if thought else answer
    return [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": said}]


CHATS = [chat(" ".join(["1 +"] * n)) for n in (9, 2, 0, 5, 3, 1, 8, 7, 4, 6)]  # thoughts of 2 n tokens


def test_examples_in_docstrings():
    result = doctest.testmod(training.shortening)
    assert result.attempted and not result.failed


def test_the_longest_share_is_dropped():
    kept, report = shorten(CHATS, TOKENIZER, Shortening(drop_longest=0.3))
    lengths = [thought_tokens(messages, TOKENIZER, Shortening()) for messages in kept]
    assert lengths == [4, 0, 10, 6, 2, 8, 12] and report.dropped_tokens == 2 * (9 + 8 + 7)
    assert (report.chats, report.kept, report.tokens_before, report.tokens_after) == (10, 7, 90, 42)
    assert shorten(CHATS, TOKENIZER, Shortening())[0] == CHATS


def test_chats_are_conditioned_by_terciles_or_by_stated_thresholds():
    kept, report = shorten(CHATS, TOKENIZER, Shortening(condition=True))
    assert report.thresholds == (6, 12) and report.levels == {"low": 4, "medium": 3, "high": 3}
    assert kept[0][0] == {"role": "system", "content": "thinking: high"} and kept[0][1:] == CHATS[0]
    assert kept[2][0]["content"] == "thinking: low", "a chat without a thought thinks little"
    own = [[{"role": "system", "content": "Be brief."}, *CHATS[1]]]
    kept, report = shorten(own, TOKENIZER, Shortening(condition=True, thresholds=(3, 4)))
    assert kept[0][0]["content"] == "Be brief.\nthinking: medium" and report.levels["medium"] == 1
    assert (
        render_chat(TOKENIZER, kept[0]).assistant
        == (False,) * (len(render_chat(TOKENIZER, kept[0]).ids) - len(render_chat(TOKENIZER, CHATS[1]).ids))
        + render_chat(TOKENIZER, CHATS[1]).assistant
    ), "the label is no assistant's token"


@pytest.mark.parametrize(
    ("said", "cut"),
    [
        ("<think> 1 + 2 + 3 </think> 6", "<think> 1 + 2</think> 6"),
        ("<think> 1 + 2 </think> 3", "<think> 1 + 2 </think> 3"),
        ("1 + 2 + 3 </think> 6", "1 + 2</think> 6"),  # the template has opened the thought
        ("<think> 1 + 2 + 3", "<think> 1 + 2</think>"),  # it was never closed
        ("1 + 2 + 3", "1 + 2 + 3"),  # no thought
    ],
)
def test_thoughts_are_cut_and_closed(said, cut):
    how = Shortening(truncate=3)
    assert truncate_thought(said, TOKENIZER, how) == cut
    assert thought_tokens([{"role": "assistant", "content": cut}], TOKENIZER, how) <= 3


def test_a_file_is_shortened_in_all_three_ways(tmp_path):
    rows = [{"messages": messages} for messages in CHATS] * 12 + [
        {"prompt": "1", "answer": "<think> 1 </think> 1"}
    ]
    data = write_rows(tmp_path / "chats.jsonl", [*rows, {"text": "no chat"}])
    how = Shortening(drop_longest=0.2, condition=True, truncate=5)
    report = shorten_file(data, tmp_path / "short.jsonl", TOKENIZER, how)
    kept = [json.loads(line)["messages"] for line in (tmp_path / "short.jsonl").open()]
    assert report.broken == 1 and report.kept == len(kept) == 97 and report.cut == 60
    assert max(thought_tokens(messages, TOKENIZER, how) for messages in kept) == 5
    assert sum(thought_tokens(messages, TOKENIZER, how) for messages in kept) == report.tokens_after
    assert {messages[0]["content"] for messages in kept} == {
        f"thinking: {x}" for x in ("low", "medium", "high")
    }
    with pytest.raises(DataError, match="missing"):
        shorten_file(tmp_path / "none.jsonl", tmp_path / "x.jsonl", TOKENIZER, how)


@pytest.mark.parametrize(
    "wrong", [{"drop_longest": 1.0}, {"truncate": 0}, {"thresholds": (4, 4)}, {"closing": ""}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Shortening(**wrong)
