"""Token folders: what is stored, what is refused, and that a document cannot end itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from curation.errors import DataError, MachineError
from training.text_encoding import hash_tokenizer
from training.tokenizing import write_tokens
from training.tokens import TokenSource

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
    assert source.name == "web" and list(source.ids) == ["a", "b", "c", "d"]
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
    for name in ("tokens-00000.bin", "documents-00000.parquet", "shard.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert write_tokens(DOCUMENTS[::-1], tokenizer, tmp_path / "3", "web").hash != first.hash
    assert write_tokens([("x", t) for _, t in DOCUMENTS], tokenizer, tmp_path / "4", "web").hash != first.hash


def test_truncated_tokens_are_refused_at_once(tokenizer, tmp_path):
    write_tokens(DOCUMENTS, tokenizer, tmp_path, "web")
    os.truncate(tmp_path / "tokens-00000.bin", (tmp_path / "tokens-00000.bin").stat().st_size - 2)
    with pytest.raises(DataError, match="bytes of tokens"):
        TokenSource.open(tmp_path)


def test_an_altered_token_is_refused(tokenizer, tmp_path):
    write_tokens(DOCUMENTS, tokenizer, tmp_path, "web")
    data = bytearray((tmp_path / "tokens-00000.bin").read_bytes())
    data[4] ^= 1
    (tmp_path / "tokens-00000.bin").write_bytes(bytes(data))
    for verify in (False, True):  # a small file is read whole at every opening
        with pytest.raises(DataError, match="content"):
            TokenSource.open(tmp_path, verify=verify)


@pytest.mark.parametrize("damage", ["missing", "not json", "no fields", "no table", "table cut"])
def test_broken_folders_are_data_errors(tokenizer, tmp_path, damage):
    write_tokens(DOCUMENTS, tokenizer, tmp_path, "web")
    record, table = tmp_path / "shard.json", tmp_path / "documents-00000.parquet"
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


def many(count: int, words: int = 6) -> list[tuple[str, str]]:
    """Documents of different lengths, some of them empty."""
    return [(f"d{i}", " ".join(f"hello {i * j % 97}" for j in range(i % words))) for i in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_parts_are_files_and_read_as_one_array(tokenizer, tmp_path):
    whole = write_tokens(many(200), tokenizer, tmp_path / "whole", "web")
    parts = write_tokens(many(200), tokenizer, tmp_path / "parts", "web", part_bytes=700)
    assert len(list((tmp_path / "parts").glob("tokens-*.bin"))) > 5
    assert parts.offsets.tolist() == whole.offsets.tolist() and list(parts.ids) == list(whole.ids)
    assert parts.ids[-1] == "d199" and parts.ids[3:5] == ["d3", "d4"] and len(parts.ids) == 200
    total = whole.total_tokens
    rng = np.random.default_rng(0)
    for start, stop in [(0, total), (5, 5), (total, total), *rng.integers(0, total, (50, 2))]:
        assert np.array_equal(parts.tokens[start:stop], whole.tokens[start:stop])
    assert [parts.tokens[at] for at in (0, total // 2, -1)] == [
        whole.tokens[at] for at in (0, total // 2, -1)
    ]
    with pytest.raises(IndexError):
        parts.tokens[total]


def test_any_number_of_workers_writes_the_same_bytes(tokenizer, tmp_path):
    for workers in (0, 1, 2):
        write_tokens(many(300), tokenizer, tmp_path / str(workers), "web", workers=workers, part_bytes=1500)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


KILLED = """
import os, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from training import tokenizing
from tests.training.test_tokens import many
folder, survive = Path(sys.argv[1]), int(sys.argv[2])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|bos|>", eos_token="<|eos|>"
)
plain, made = tokenizing._tokenize, []
def counted(part, number, plan, encode):
    if len(made) == survive:
        os.kill(os.getpid(), 9)
    made.append(number)
    plain(part, number, plan, encode)
tokenizing._tokenize = counted
tokenizing.write_tokens(many(200), tokenizer, folder / "s", "web", part_bytes=700)
print(len(made))
"""


def test_killed_it_tokenizes_only_what_is_missing(tokenizer, tmp_path):
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    root = Path(__file__).parents[2]

    def attempt(survive: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(survive)],
            capture_output=True,
            text=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            check=False,
        )

    assert attempt(3).returncode == -9 and not (tmp_path / "s").exists()
    last = attempt(1000)
    assert last.returncode == 0, last.stderr
    undisturbed = write_tokens(many(200), tokenizer, tmp_path / "u", "web", part_bytes=700)
    assert contents(tmp_path / "s") == contents(tmp_path / "u")
    parts = len(list((tmp_path / "u").glob("tokens-*.bin")))
    assert int(last.stdout) == parts - 3 and undisturbed.total_tokens > 0


def test_what_was_left_of_other_documents_is_not_used(tokenizer, tmp_path):
    def broken():
        yield from many(150)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(broken(), tokenizer, tmp_path / "s", "web", part_bytes=700)
    assert list((tmp_path / ".s.partial").glob("part-*.json"))
    changed = [(name, text.replace("hello 3", "there 4")) for name, text in many(200)]
    write_tokens(changed, tokenizer, tmp_path / "s", "web", part_bytes=700)
    write_tokens(changed, tokenizer, tmp_path / "u", "web", part_bytes=700)
    assert contents(tmp_path / "s") == contents(tmp_path / "u")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "u"]


def test_two_writers_of_one_folder_are_refused(tokenizer, tmp_path):
    def nested():
        yield "a", "hello"
        write_tokens(many(3), tokenizer, tmp_path / "s", "web")

    with pytest.raises(MachineError, match="Another process is tokenizing"):
        write_tokens(nested(), tokenizer, tmp_path / "s", "web")


MEMORY = """
import sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from curation.memory import peak_memory
from training.tokenizing import write_tokens
backend = Tokenizer(models.WordLevel({"<|eos|>": 0, "<unk>": 1, "word": 2}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>")
text = "word " * 400
def documents(megabytes):
    for i in range(megabytes * 500):
        yield f"{i:020}", text + str(i)
folder = Path(sys.argv[1])
write_tokens(documents(2), tokenizer, folder / "small", "s", part_bytes=1 << 20)
before = peak_memory()
write_tokens(documents(24), tokenizer, folder / "large", "s", part_bytes=1 << 20)
print((peak_memory() - before) / 1e6)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12, "24 MB of text, in parts of 1 MB"


def test_a_large_file_is_sampled_and_wholly_read_on_demand(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("training.tokens.SAMPLED_BLOCKS", 4)
    monkeypatch.setattr("training.tokens.BLOCK_BYTES", 16)
    write_tokens(many(200), tokenizer, tmp_path, "web")
    path = tmp_path / "tokens-00000.bin"
    whole = path.read_bytes()
    assert len(whole) > 1000
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])  # between two blocks
    TokenSource.open(tmp_path)
    with pytest.raises(DataError, match="content"):
        TokenSource.open(tmp_path, verify=True)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"tokens-00000\.bin that its shard\.json is for.*Delete it"):
        TokenSource.open(tmp_path)
    path.write_bytes(whole)
    TokenSource.open(tmp_path, verify=True)
