"""Token folders: what is stored, what is refused, and that a document cannot end itself."""

import json
import os

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from curation.errors import DataError
from training.tokens import TokenSource, hash_tokenizer, write_tokens

DOCUMENTS = [("a", "hello world"), ("b", "naïve café ∑"), ("c", ""), ("d", "stop <|eos|><|bos|> here")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, hello there"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>")


def test_documents_are_stored_whole_between_bos_and_eos(tokenizer, tmp_path):
    source = write_tokens(iter(DOCUMENTS), tokenizer, tmp_path / "s", "web")
    assert source.name == "web" and source.ids == ["a", "b", "c", "d"]
    assert source.tokens.dtype == np.uint16 and source.offsets.dtype == np.int64
    assert source.total_tokens == source.offsets[-1] == len(source.tokens)
    assert source.text_bytes.tolist() == [len(text.encode()) for _, text in DOCUMENTS]
    for index, (_, text) in enumerate(DOCUMENTS):
        ids = source.document(index).tolist()
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:-1]) == text


def test_a_text_cannot_smuggle_in_special_tokens(tokenizer, tmp_path):
    source = write_tokens(DOCUMENTS, tokenizer, tmp_path / "s", "web")
    inside = source.document(3)[1:-1]
    assert not np.isin(inside, [tokenizer.bos_token_id, tokenizer.eos_token_id]).any()


def test_equal_documents_give_equal_bytes_and_any_change_another_hash(tokenizer, tmp_path):
    first = write_tokens(DOCUMENTS, tokenizer, tmp_path / "1", "web")
    write_tokens(DOCUMENTS, tokenizer, tmp_path / "2", "web")
    for name in ("tokens.bin", "documents.parquet", "shard.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert write_tokens(DOCUMENTS[::-1], tokenizer, tmp_path / "3", "web").hash != first.hash
    assert write_tokens([("x", t) for _, t in DOCUMENTS], tokenizer, tmp_path / "4", "web").hash != first.hash


def test_truncated_tokens_are_refused_at_once(tokenizer, tmp_path):
    write_tokens(DOCUMENTS, tokenizer, tmp_path, "web")
    os.truncate(tmp_path / "tokens.bin", (tmp_path / "tokens.bin").stat().st_size - 2)
    with pytest.raises(DataError, match="bytes of tokens"):
        TokenSource.open(tmp_path)


def test_an_altered_token_is_found_by_verification(tokenizer, tmp_path):
    write_tokens(DOCUMENTS, tokenizer, tmp_path, "web")
    data = bytearray((tmp_path / "tokens.bin").read_bytes())
    data[4] ^= 1
    (tmp_path / "tokens.bin").write_bytes(bytes(data))
    TokenSource.open(tmp_path)
    with pytest.raises(DataError, match="content"):
        TokenSource.open(tmp_path, verify=True)


@pytest.mark.parametrize("damage", ["missing", "not json", "no fields", "no table", "table cut"])
def test_broken_folders_are_data_errors(tokenizer, tmp_path, damage):
    write_tokens(DOCUMENTS, tokenizer, tmp_path, "web")
    record, table = tmp_path / "shard.json", tmp_path / "documents.parquet"
    match damage:
        case "missing":
            record.unlink()
        case "not json":
            record.write_text("{")
        case "no fields":
            record.write_text(json.dumps({"schema": 1}))
        case "no table":
            table.unlink()
        case "table cut":
            os.truncate(table, 40)
    with pytest.raises(DataError):
        TokenSource.open(tmp_path)


def test_no_documents_leave_no_folder(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no documents"):
        write_tokens([], tokenizer, tmp_path / "s", "web")
    assert not (tmp_path / "s").exists()


def test_text_that_is_not_unicode_is_named(tokenizer, tmp_path):
    with pytest.raises(DataError, match="'bad'"):
        write_tokens([("bad", "a\ud800b")], tokenizer, tmp_path / "s", "web")


def test_the_tokenizer_hash_ignores_the_last_callers_padding(tokenizer):
    before = hash_tokenizer(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(4)
    assert hash_tokenizer(tokenizer) == before
    tokenizer.backend_tokenizer.no_truncation()
