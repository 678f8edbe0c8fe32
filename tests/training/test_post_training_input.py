"""Rubbish given to fine-tuning and reinforcement, and real templates and answers."""

import copy
import gzip
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from curation.errors import DataError, RecipeError
from tests.training.post_training_models import tiny_folder, tiny_tokenizer, write_rows
from tests.training.test_grpo import SETTINGS, says_seven
from tests.training.test_sft import SETTINGS as SFT
from training.chat import read_chats, render_chat, render_chat_rows
from training.grpo import grpo
from training.prompts import read_questions
from training.rewards import named_reward
from training.rollout import Ending, RolloutSettings
from training.sft import sft
from training.tokenizer import train_tokenizer

CORPORA = Path(os.environ.get("MIXWRIGHT_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))
ASKED = {"role": "user", "content": "What is 1 + 1?"}
ONE = [ASKED, {"role": "assistant", "content": "It is 2."}]
TWO = [*ONE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes"}]
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>")  # fmt: skip
# These write an earlier turn otherwise than the last one: each of their turns needs a row of its own.
THOUGHTS_DROPPED = ("gptoss", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["What is 12 + 30? Let me think: it is 42. user assistant system"] * 3
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer") / "t")


def test_masks_of_published_templates_without_markers(tokenizer):
    """TRL ships templates of published models, and copies with markers: our mask of the former is what was said."""
    trl = pytest.importorskip("trl", reason="trl is an optional oracle; it is not installed here")
    folder, compared = Path(trl.__file__).parent / "chat_templates", 0
    for marked in sorted(folder.glob("*_training.jinja")):
        name = marked.name.removesuffix("_training.jinja")
        bare = (folder / f"{name}.jinja").read_text()
        end = next((e for e in ENDS if e in bare), None)
        if end is None or name == "llava_next":
            continue
        plain, known = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
        for one, template in ((plain, bare), (known, marked.read_text())):
            one.chat_template = template
            one.add_special_tokens({"eos_token": end})
        for chat in (ONE, TWO):
            if chat is TWO and name in THOUGHTS_DROPPED:
                rows = render_chat_rows(plain, chat, method="prefixes").rows
                for row, until, text in zip(rows, (2, 4), ("It is 2.", "Yes"), strict=True):
                    rendered = plain.apply_chat_template(chat[:until], tokenize=False)
                    assert plain.decode(row.ids) == rendered, name
                    said = plain.decode([i for i, flag in zip(row.ids, row.assistant, strict=True) if flag])
                    assert text in said and ("It is" in said) == (until == 2), name
                continue
            ours, theirs = (
                render_chat(plain, chat, method="prefixes"),
                render_chat(known, chat, method="markers"),
            )
            if ours.ids != theirs.ids and name != "phi3":
                continue  # their copy renders something else
            assert all(t for o, t in zip(ours.assistant, theirs.assistant, strict=True) if o), name
            said = plain.decode([i for i, flag in zip(ours.ids, ours.assistant, strict=True) if flag])
            turns = said.split(end if end != "<|end|>" or end in said else "<|return|>")
            wanted = [m["content"] for m in chat if m["role"] == "assistant"]
            assert all(text in turn for turn, text in zip(turns, wanted, strict=False)), (name, said)
            compared += 1
    assert compared >= 25


def test_a_closing_string_that_the_tokenizer_cannot_spell(tokenizer):
    budget = RolloutSettings(thinking_tokens=4, answer_tokens=4)
    ending = Ending.of(tokenizer, replace(budget, closing="</reasoning>"))
    assert len(ending.closing) > 1, "several tokens are fine"
    with pytest.raises(RecipeError, match="cannot spell the closing string '</reasoning>'"):
        Ending.of(tiny_tokenizer(), replace(budget, closing="</reasoning>"))
    Ending.of(tiny_tokenizer(), RolloutSettings(closing="</reasoning>"))  # nobody is going to force it


def test_a_model_without_a_closing_token_is_trained_with_several(tmp_path):
    start = tiny_folder(tmp_path / "start")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(7)])
    budget = RolloutSettings(thinking_tokens=3, answer_tokens=3, closing="is = is")
    result = grpo(start, prompts, says_seven, tmp_path / "out", replace(SETTINGS, steps=1, rollout=budget))
    assert result.steps == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [ASKED]}, "no assistant turn"),
        ({"messages": [{"role": "robot", "content": "1"}]}, "unknown role 'robot'"),
        ({"prompt": "1 ="}, "neither messages nor a prompt"),
    ],
)
def test_files_of_bad_chats_are_named_before_training(tmp_path, row, says):
    start = tiny_folder(tmp_path / "start")
    data = write_rows(tmp_path / "chats.jsonl", [row])
    with pytest.raises(DataError, match=f"chats.jsonl, line 1: .*{says}"):
        sft(start, data, tmp_path / "out", SFT)
    assert not (tmp_path / "out").exists()


def test_a_template_that_fails_is_named(tmp_path):
    start = tiny_folder(tmp_path / "start")
    config = start / "tokenizer_config.json"
    (start / "chat_template.jinja").write_text("{{ raise_exception('no such thing') }}")
    described = json.loads(config.read_text())
    described.pop("chat_template", None)
    config.write_text(json.dumps(described))
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "1 =", "answer": "1"}])
    with pytest.raises(DataError, match="template fails: no such thing"):
        grpo(start, prompts, says_seven, tmp_path / "out", SETTINGS)
    with pytest.raises(DataError, match="template fails"):
        sft(start, write_rows(tmp_path / "c.jsonl", [{"messages": ONE}]), tmp_path / "sft", SFT)


def test_an_answer_that_would_hang_a_checker_costs_no_run(tmp_path):
    check = named_reward("math")
    for bomb in (
        "9**9**9**9",
        "\\boxed{" + "(" * 3000 + "1",
        "\\boxed{10^{10^{10}}}",
        "1" * 10**6,
        "\\boxed{9!!!!!!}",
    ):
        assert not check(bomb, "4").correct


@pytest.mark.skipif(not (CORPORA / "gsm8k_train.jsonl.gz").exists(), reason="the shared corpora are not here")
def test_gsm8k_gives_prompts_answers_masks_and_rewards(tokenizer, tmp_path):
    with gzip.open(CORPORA / "gsm8k_train.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in islice(lines, 200)]
    questions = read_questions(write_rows(tmp_path / "q.jsonl", rows), tokenizer)
    assert len(questions.items) == 200 and not questions.broken
    check = named_reward("math")
    for question in questions.items:
        assert check(f"<think>..</think> #### {question.answer}", question.answer).correct
        assert not check(f"#### {question.answer}1", question.answer).correct
    worked = [{"prompt": row["prompt"], "response": row["text"].partition("Answer:")[2]} for row in rows]
    data = write_rows(tmp_path / "c.jsonl", [row for row in worked if row["response"].strip()])
    chats = read_chats(data, tokenizer)
    assert len(chats.chats) == 200 and not chats.broken
    for chat, row in zip(chats.chats, worked, strict=True):
        said = tokenizer.decode([i for i, flag in zip(chat.ids, chat.assistant, strict=True) if flag])
        assert said.removesuffix(tokenizer.eos_token) == row["response"]
