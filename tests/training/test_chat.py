"""Chats: the assistant mask is what the assistant said, whichever way it is found."""

import doctest
import gzip
import json
import re

import pytest

import training.chat
from curation.errors import DataError
from training.chat import has_markers, messages_of, read_chats, render_chat, render_prompt
from training.tokenizer import train_tokenizer

TEXTS = ["What is 12 + 30? Let me think: it is 42.", "user assistant system <|im_start|> think"] * 3
SHORT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHATS = [
    [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "<think>1, 2</think>2"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Say\n\nno"},
        {"role": "assistant", "content": "\n no\n"},
        {"role": "user", "content": "assistant"},
        {"role": "assistant", "content": "assistant"},
    ],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    [*SHORT, {"role": "user", "content": "c"}],
    [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": "é 漢字"}],
]  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|eos|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|eos|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The header opens a thought, which the rendered turn shows only if the content has one.
OPENS_THOUGHT = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|eos|>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
DROPS_THOUGHTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, 400, tmp_path_factory.mktemp("tokenizer") / "t")


def with_template(tokenizer, template):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template or tokenizer.chat_template
    return other


def test_examples_in_docstrings():
    result = doctest.testmod(training.chat)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("messages", CHATS)
def test_both_ways_to_the_mask_agree_and_the_mask_is_what_was_said(tokenizer, template, messages):
    marked = with_template(tokenizer, template)
    bare = with_template(tokenizer, re.sub(r"\{%-? *(end)?generation *-?%\}", "", marked.chat_template))
    assert has_markers(marked) and not has_markers(bare)
    chat = render_chat(marked, messages)
    assert chat == render_chat(marked, messages, method="prefixes") == render_chat(bare, messages)
    said = tokenizer.decode([i for i, flag in zip(chat.ids, chat.assistant, strict=True) if flag])
    assert said == "".join(m["content"] + "<|eos|>" for m in messages if m["role"] == "assistant")
    rest = tokenizer.decode([i for i, flag in zip(chat.ids, chat.assistant, strict=True) if not flag])
    last = max(at for at, m in enumerate(messages) if m["role"] == "assistant")
    assert all(m["content"].strip() in rest for m in messages[:last] if m["role"] != "assistant")


def test_a_header_that_opens_a_thought(tokenizer):
    opens = with_template(tokenizer, OPENS_THOUGHT)
    bare = with_template(tokenizer, re.sub(r"\{% (end)?generation %\}", "", OPENS_THOUGHT))
    assert render_chat(opens, SHORT) == render_chat(bare, SHORT)
    # written out, the opening of the thought belongs to the prompt when the header already holds it
    chat = render_chat(bare, CHATS[0])
    said = tokenizer.decode([i for i, flag in zip(chat.ids, chat.assistant, strict=True) if flag])
    assert said == "1, 2</think>2<|eos|>"


def test_a_prompt_is_where_its_answer_begins(tokenizer):
    chat = render_chat(tokenizer, CHATS[0])
    prompt = render_prompt(tokenizer, "What is 1 + 1?")
    assert chat.ids[: len(prompt)] == prompt and chat.assistant.index(True) == len(prompt)
    assert render_prompt(tokenizer, CHATS[0][:1]) == prompt
    assert tokenizer.bos_token_id == prompt[0] and tokenizer.bos_token_id not in prompt[1:]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": "a"}], "no assistant turn"),
        ([{"role": "robot", "content": "a"}], "unknown role 'robot'"),
        ([{"role": "assistant", "content": None}], "no text content"),
        ("hello", "not a list of messages"),
        ([], "no assistant turn"),
    ],
)
def test_bad_chats_are_named(tokenizer, messages, says):
    with pytest.raises(DataError, match=says):
        messages_of({"messages": messages}, "chats.jsonl, line 3")


def test_templates_that_cannot_give_a_mask_are_refused(tokenizer):
    with pytest.raises(DataError, match="template fails"):
        render_chat(with_template(tokenizer, "{{ raise_exception('no') }}"), CHATS[0])
    with pytest.raises(DataError, match="marks no token"):
        render_chat(with_template(tokenizer, "{{ messages[0].content }}"), CHATS[0], method="markers")
    twice = [
        *CHATS[0],
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>y</think>Yes"},
    ]
    with pytest.raises(DataError, match="once more follows"):
        render_chat(with_template(tokenizer, DROPS_THOUGHTS), twice)
    assert render_chat(with_template(tokenizer, DROPS_THOUGHTS), CHATS[0]).assistant.count(True) > 3


def test_files_of_chats(tokenizer, tmp_path):
    rows = [{"messages": CHATS[0]}, {"prompt": "What is 1 + 1?", "answer": "<think>1, 2</think>2"}]
    rows.append({"prompt": CHATS[0][:1], "response": "<think>1, 2</think>2"})
    path = tmp_path / "chats.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n\n".join(json.dumps(row) for row in rows * 50) + "\n{broken\n")
    data = read_chats(path, tokenizer)
    assert len(data.chats) == 150 and len(set(data.chats)) == 1
    assert [b.where.endswith("line 300") for b in data.broken] == [True]
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used.*line 1"):
        read_chats(path, tokenizer)
    path.write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_chats(path, tokenizer)
    with pytest.raises(DataError, match="missing"):
        read_chats(tmp_path / "none.jsonl", tokenizer)
