"""A chat whose template rewrites earlier turns: each turn is learnt once, in the context that the model meets it in."""

import copy
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import DataError, RecipeError
from curation.progress import set_progress_mode
from tests.training.post_training_models import tiny_folder, tiny_tokenizer, write_rows
from tests.training.test_sft import SETTINGS
from training.chat import Rewritten, read_chats, render_chat, render_chat_rows, render_prompt
from training.sft import sft
from training.tokenizer import train_tokenizer

# As Qwen 3's: thoughts are kept behind the last thing the user said; the last turn gets an empty one if it has none.
QWEN = (
    "{% set ns = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}GENERATION"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = '' if '</think>' not in m.content else "
    "m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% if loop.index0 > ns.asked and (loop.last or thought) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + answer }}{% else %}{{ answer }}{% endif %}<|eos|>END"
    "{% else %}{{ m.content }}<|eos|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
# As DeepSeek R1's: thoughts are dropped from every turn, and the header opens one.
DEEPSEEK = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1] }}<|eos|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}<|eos|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEMPLATES = {
    "qwen": QWEN.replace("GENERATION", "").replace("END", ""),
    "qwen, marked": QWEN.replace("GENERATION", "{% generation %}").replace("END", "{% endgeneration %}"),
    "deepseek": DEEPSEEK,
    "plain": PLAIN,
}


def user(text):
    return {"role": "user", "content": text}


def thinks(thought, answer):
    return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{answer}"}


CHAT = [
    user("2 + 2?"),
    thinks("2, 2", "4"),
    user("Sure?"),
    thinks("yes", "Yes, 4"),
    user("Why?"),
    thinks("?", "So"),
]
TOOLS = [
    user("2 + 2?"), thinks("ask", "sum(2, 2)"), {"role": "tool", "content": "4"}, thinks("now", "4"),
    user("Sure?"), thinks("yes", "Yes"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    texts = ["What is 12 + 30? Let me think: it is 42.", "user assistant system <|im_start|> think"] * 3
    plain = train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer") / "t")
    found = {name: copy.deepcopy(plain) for name in TEMPLATES}
    for name, template in TEMPLATES.items():
        found[name].chat_template = template
    return found


def said(tokenizer, row):
    return tokenizer.decode([i for i, flag in zip(row.ids, row.assistant, strict=True) if flag])


@pytest.mark.parametrize("name", ["qwen", "qwen, marked"])
def test_a_turn_is_learnt_from_the_rendering_that_ends_with_it(tokenizers, name):
    tokenizer = tokenizers[name]
    found = render_chat_rows(tokenizer, CHAT)
    assert len(found.rows) == 3 and found.restored == 0
    for row, at in zip(found.rows, (1, 3, 5), strict=True):
        rendered = tokenizer.apply_chat_template(CHAT[: at + 1], tokenize=False)
        assert tokenizer.decode(row.ids) == rendered
        prompt = render_prompt(tokenizer, CHAT[:at])
        assert row.ids[: len(prompt)] == prompt and row.assistant.index(True) == len(prompt)
        assert said(tokenizer, row) == CHAT[at]["content"] + "<|eos|>"
    assert "2, 2" not in tokenizer.decode(found.rows[1].ids), (
        "the earlier thought is gone, as it will be in use"
    )


@pytest.mark.parametrize("name", ["qwen", "qwen, marked"])
def test_turns_that_the_template_leaves_alone_share_a_row(tokenizers, name):
    """What was thought between a question and the answer to it stays while tools reply."""
    tokenizer = tokenizers[name]
    first, second = render_chat_rows(tokenizer, TOOLS).rows
    assert said(tokenizer, first) == TOOLS[1]["content"] + "<|eos|>" + TOOLS[3]["content"] + "<|eos|>"
    assert said(tokenizer, second) == TOOLS[5]["content"] + "<|eos|>"
    assert tokenizer.decode(first.ids) == tokenizer.apply_chat_template(TOOLS[:4], tokenize=False)


def test_a_thought_that_the_template_drops_everywhere_is_learnt_all_the_same(tokenizers):
    tokenizer = tokenizers["deepseek"]
    found = render_chat_rows(tokenizer, CHAT)
    assert len(found.rows) == 3 and found.restored == 3
    for row, at in zip(found.rows, (1, 3, 5), strict=True):
        prompt = render_prompt(tokenizer, CHAT[:at])  # which ends with the opened thought
        assert row.ids[: len(prompt)] == prompt and row.assistant.index(True) == len(prompt)
        assert said(tokenizer, row) == CHAT[at]["content"].removeprefix("<think>\n") + "<|eos|>"
    sampled = [
        user("2 + 2?"),
        {"role": "assistant", "content": "2, 2</think>4"},
    ]  # as the model itself writes it
    assert said(tokenizer, render_chat(tokenizer, sampled)) == "2, 2</think>4<|eos|>"
    silent = [
        user("2 + 2?"),
        {"role": "assistant", "content": "4"},
        user("?"),
        {"role": "assistant", "content": "5"},
    ]
    assert said(tokenizer, render_chat(tokenizer, silent)) == "4<|eos|>5<|eos|>"
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = DEEPSEEK.replace("m.content.split('</think>')[-1]", "''")
    with pytest.raises(DataError, match="leaves out what the assistant says in message 1"):
        render_chat(tokenizer, silent)


def test_a_template_that_rewrites_nothing_makes_one_row(tokenizers):
    for chat in (CHAT, TOOLS, [*CHAT, user("?")], CHAT[:2]):
        found = render_chat_rows(tokenizers["plain"], chat)
        assert len(found.rows) == 1 and found.restored == 0
        spoken = "".join(m["content"] + "<|eos|>" for m in chat if m["role"] == "assistant")
        assert said(tokenizers["plain"], found.rows[0]) == spoken


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_alone(tokenizers, name):
    (row,) = render_chat_rows(tokenizers[name], TOOLS, turns="last").rows
    assert row.ids == render_chat_rows(tokenizers[name], TOOLS).rows[-1].ids
    wanted = TOOLS[5]["content"].removeprefix("<think>\n" if name == "deepseek" else "")
    assert said(tokenizers[name], row) == wanted + "<|eos|>"


words = st.sampled_from(["4", "it is", "<|user|>", "\n2", "é 漢", ""])
thoughts = st.sampled_from(["", "<think>\n{}\n</think>\n\n", "<think>{}</think>"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "tool", "assistant"]), thoughts, words), min_size=1, max_size=7
    ),
    st.sampled_from(list(TEMPLATES)),
)
def test_every_turn_is_learnt_once(tokenizers, drawn, name):
    """Whatever the chat: the numbers of the turns, put into what they say, come out once each."""
    tokenizer = tokenizers[name]
    chat = [user("?")]
    for at, (role, thought, word) in enumerate(drawn):
        spoken = thought.format(f"t{at}") + f"a{at}" if role == "assistant" else f"q{at}"
        chat.append({"role": role, "content": f"{spoken} {word}"})
    turns = [at for at, (role, _, _) in enumerate(drawn) if role == "assistant"]
    if not turns:
        return
    learnt = [said(tokenizer, row) for row in render_chat_rows(tokenizer, chat).rows]
    assert sorted(int(n) for text in learnt for n in re.findall(r"a(\d)", text)) == turns
    thought_in = [at for at in turns if drawn[at][1]]
    assert sorted(int(n) for text in learnt for n in re.findall(r"t(\d)", text)) == thought_in
    assert not any(re.search(r"q\d", text) for text in learnt)
    assert sum(text.count("<|eos|>") for text in learnt) == len(turns)
    if name == "plain":
        assert len(learnt) == 1


def test_fine_tuning_says_what_happened_and_what_it_costs(tmp_path, capfd):
    start = tiny_folder(tmp_path / "start")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "<bos>{% for m in messages %} <{{ m.role }}> {{ m.content if loop.last or m.role == 'user' else "
        "m.content.split('</think>')[-1] }}{{ ' <eos>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %} <assistant>{% endif %}"
    )
    sums = [user("1 + 1 ="), {"role": "assistant", "content": "<think> 1 + 1 </think> 2"}]
    chats = [sums, [*sums, user("2 + 2 ="), {"role": "assistant", "content": "<think> 2 + 2 </think> 4"}]]
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    read = read_chats(data, tokenizer)
    assert read.rewritten == Rewritten(chats=1, rows=2, tokens=14 + 22, last_tokens=22)
    assert [row.assistant.count(True) for row in read.chats] == [7, 7, 7]
    set_progress_mode("plain")
    result = sft(start, data, tmp_path / "out", replace(SETTINGS, epochs=1), tokenizer=tokenizer)
    told = capfd.readouterr().err
    assert "1 chats have become 2 rows, 36 tokens in place of 22" in told
    assert result.chats == 3 and result.rewritten == read.rewritten
    assert json.loads((tmp_path / "out/sft.json").read_text())["rewritten"]["tokens"] == 36
    last = replace(SETTINGS, epochs=1, turns="last")
    result = sft(start, data, tmp_path / "last", last, tokenizer=tokenizer)
    assert result.chats == 2 and result.rewritten == Rewritten()
    with pytest.raises(RecipeError, match="turns is 'first'"):
        replace(SETTINGS, turns="first")
