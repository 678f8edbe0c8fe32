"""The generated task of the post-training study: its answers are right, and its traces say what they seem to."""

import doctest
import re

import benchmarks.chain_arithmetic
from benchmarks.chain_arithmetic import MODULUS, WORDS, chats, tokenizer, truncated
from training.chat import render_chat
from training.rewards import named_reward


def test_examples_in_docstrings():
    result = doctest.testmod(benchmarks.chain_arithmetic)
    assert result.attempted and not result.failed


def test_answers_are_right_and_each_step_of_a_trace_is_true():
    rows = list(chats("a", 200, (1, 4), 0.5))
    assert len({row["prompt"] for row in rows}) == 200
    for row in rows:
        said = row["messages"][1]["content"]
        assert row["answer"] == str(eval(row["prompt"].removesuffix("= ?")) % MODULUS)
        assert named_reward("exact")(said, row["answer"]).correct
        steps = re.findall(r"(\d) ([+-]) (\d) = (\d)", said)
        assert len(steps) >= row["prompt"].count(" ") // 2 - 1
        for a, sign, b, result in steps:
            assert (int(a) + int(b) * (1 if sign == "+" else -1) - int(result)) % MODULUS == 0


def test_every_word_is_a_token_and_a_cut_trace_keeps_its_answer():
    words = tokenizer()
    row = next(iter(chats("b", 1, (4, 4), 1.0)))
    whole, cut = (render_chat(words, chat["messages"]) for chat in (row, truncated(row, 10)))
    assert WORDS.index("<pad>") not in whole.ids
    assert sum(cut.assistant) == 10 + len(("</think>", "1", "<eos>")) < sum(whole.assistant)
    assert named_reward("exact")(truncated(row, 10)["messages"][1]["content"], row["answer"]).correct


def test_held_out_questions_are_left_out():
    tests = [row["prompt"] for row in chats("t", 50, (1, 2), None)]
    assert not {row["prompt"] for row in chats("u", 50, (1, 2), None, tests)} & set(tests)
