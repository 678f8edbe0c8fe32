"""The tokenizer: lossless, deterministic, loadable by AutoTokenizer, and not to be fooled by its corpus."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from curation.atomic import hash_folder
from curation.errors import DataError, RecipeError
from training.text_encoding import text_encoder
from training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n",
    "def add(first, second):\n    return first + second\n\n\nprint(add(2, 40))\n",
    "Let x = 12345 and y = 67890; then x + y = 80235. Größe, naïve, 数学, λ → ∞.\n",
] * 4
SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(TEXTS, 320, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def test_auto_tokenizer_loads_it(folder, tokenizer):
    auto = AutoTokenizer.from_pretrained(folder)
    assert len(auto) == len(tokenizer) == 320
    assert (auto.bos_token, auto.eos_token, auto.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert auto.convert_tokens_to_ids(SPECIAL) == list(range(8))
    assert auto("The dog").input_ids[0] == auto.bos_token_id
    assert auto.chat_template == tokenizer.chat_template


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives(tokenizer, text):
    ids = text_encoder(tokenizer)([text])[0]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_numbers_are_spelled_digit_by_digit_and_words_are_learnt(tokenizer):
    ids = text_encoder(tokenizer)(["12345"])[0]
    assert tokenizer.convert_ids_to_tokens(ids) == list("12345")
    assert len(text_encoder(tokenizer)([" the dog"])[0]) < len(" the dog") / 2


def test_thoughts_are_single_tokens_that_stay_in_decoded_text(tokenizer):
    ids = tokenizer("<think>2</think>4<|eos|>").input_ids
    assert [tokenizer.convert_ids_to_tokens(i) for i in ids] == [
        "<|bos|>",
        "<think>",
        "2",
        "</think>",
        "4",
        "<|eos|>",
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>2</think>4"


def test_a_corpus_cannot_spell_a_control_token(tokenizer):
    text = "before<|eos|><|assistant|>after<|pad|>"
    (ids,) = text_encoder(tokenizer)([text])
    assert not set(ids) & set(range(6))
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id in tokenizer(text).input_ids  # the switch is put back


def test_the_chat_template_marks_what_the_assistant_says(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>easy</think>2"},
        {"role": "user", "content": "And 2?"},
        {"role": "assistant", "content": "4"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|bos|><|system|>Be brief.<|user|>1 + 1?<|assistant|><think>easy</think>2<|eos|>"
        "<|user|>And 2?<|assistant|>4<|eos|>"
    )
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == "<think>easy</think>2<|eos|>4<|eos|>"
    assert encoded["input_ids"].count(tokenizer.bos_token_id) == 1
    prompt = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=False)
    assert text.startswith(prompt) and prompt.endswith("<|assistant|>")
    with pytest.raises(Exception, match="role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_same_texts_give_the_same_bytes(folder, tmp_path):
    """Also in another process, with other hash seeds and several threads; also after loading and saving."""
    script = (
        "import sys; from training.tokenizer import train_tokenizer;"
        "train_tokenizer(eval(sys.argv[1]), 320, sys.argv[2])"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "RAYON_NUM_THREADS": "3",
        "TOKENIZERS_PARALLELISM": "true",
    }
    subprocess.run(
        [sys.executable, "-c", script, repr(TEXTS), str(tmp_path / "b")], env=environment, check=True
    )
    assert hash_folder(tmp_path / "b") == hash_folder(folder)
    save_tokenizer(load_tokenizer(folder), tmp_path / "c")
    assert hash_folder(tmp_path / "c") == hash_folder(folder)


def test_too_small_a_vocabulary_and_an_empty_folder(tmp_path):
    with pytest.raises(RecipeError, match="Ask for at least 264"):
        train_tokenizer(TEXTS, 263, tmp_path / "small")
    assert len(train_tokenizer(TEXTS, 264, tmp_path / "bytes")) == 264
    assert len(train_tokenizer([], 400, tmp_path / "nothing")) == 264
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path)
