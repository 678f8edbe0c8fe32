"""Token files of datatrove: written by its own DocumentTokenizer, read here."""

import os

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from curation.errors import DataError
from tests.training.test_tokens import many
from training.datatrove_tokens import open_datatrove
from training.order import DataOrder, MixtureSchedule, Phase
from training.text_encoding import text_encoder
from training.tokenizer import train_tokenizer

DOCUMENTS = many(120)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([text for _, text in DOCUMENTS], 300, folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    """A folder of two files by datatrove, in the order of the documents."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    folder = tmp_path_factory.mktemp("datatrove")
    path = folder / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    step = DocumentTokenizer(
        str(folder / "out"), str(path), eos_token="<|eos|>", shuffle_documents=False, batch_size=50
    )
    for rank in range(2):
        part = DOCUMENTS[60 * rank : 60 * rank + 60]
        step.run((Document(text=text, id=name) for name, text in part), rank=rank, world_size=2)
    return folder / "out"


def copy(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_their_documents_are_read_as_they_wrote_them(theirs, tokenizer):
    source = open_datatrove(theirs, tokenizer, "web", verify=True)
    expected = text_encoder(tokenizer)([text for _, text in DOCUMENTS])
    assert len(source.ids) == 120 and source.tokens.dtype == np.uint16
    for index, ids in enumerate(expected):
        assert source.document(index).tolist() == [*ids, tokenizer.eos_token_id]
    assert source.ids[0] == "00000_unshuffled.ds:0" and source.ids[61] == "00001_unshuffled.ds:1"
    one = open_datatrove(theirs / "00001_unshuffled.ds", tokenizer, "web")
    assert one.document(0).tolist() == source.document(60).tolist() and one.hash != source.hash
    order = DataOrder(MixtureSchedule((Phase("p", 6, {"web": 1.0}),)), {"web": source}, 16)
    assert order.batch(0, 6).input_ids.max() < 300
    assert order.describe(0)["documents"][0]["id"].startswith("0000")


def test_four_byte_tokens_and_empty_documents(tmp_path, tokenizer):
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(
        str(tmp_path), "big.ds", tokenizer_name_or_path="mine", save_final_metadata=True, token_size=4
    )
    for tokens in ([5, 6, 1], [], [7, 1]):
        file.write(tokens, None)
    file.close()
    source = open_datatrove(tmp_path, tokenizer, "web", tokenizer_name="mine")
    assert source.tokens.dtype == np.uint32
    assert [source.document(i).tolist() for i in range(2)] == [[5, 6, 1], [7, 1]]
    assert list(source.ids) == ["big.ds:0", "big.ds:2"]


def test_another_tokenizer_is_refused(theirs, tokenizer, tmp_path):
    other = train_tokenizer(["entirely different words"] * 3, 290, tmp_path / "other")
    with pytest.raises(DataError, match=r"of the tokenizer '.*tokenizer\.json', not of the one given"):
        open_datatrove(theirs, other, "web")
    with pytest.raises(DataError, match="not of the one given, 'gpt2'"):
        open_datatrove(theirs, tokenizer, "web", tokenizer_name="gpt2")
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(other.backend_tokenizer.to_str()), eos_token="<|eos|>"
    )
    name = str(theirs.parent / "tokenizer.json")
    file = copy(theirs, tmp_path / "copy") / "00000_unshuffled.ds"
    tokens = np.fromfile(file, "<u2")
    tokens[3] = 299
    tokens.tofile(file)
    assert len(small) < 299
    with pytest.raises(DataError, match="has the token 299"):
        open_datatrove(file, small, "web", tokenizer_name=name)
    (file.with_name(file.name + ".metadata")).write_text("gpt2|1\n5\n5 T")
    with pytest.raises(DataError, match="1 bytes"):
        open_datatrove(file, tokenizer, "web")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no index", "index of a token file cannot be read"),
        ("cut", "its index is for"),
        ("no metadata", "metadata of a token file"),
        ("index falls", "its index is for"),
        ("nothing", "no .ds files"),
    ],
)
def test_damaged_files_are_data_errors(theirs, tokenizer, tmp_path, damage, sentence):
    folder = copy(theirs, tmp_path / "copy")
    file = folder / "00000_unshuffled.ds"
    match damage:
        case "no index":
            (folder / f"{file.name}.index").unlink()
        case "cut":
            os.truncate(file, 10)
        case "no metadata":
            (folder / f"{file.name}.metadata").unlink()
        case "index falls":
            ends = np.fromfile(folder / f"{file.name}.index", "<u8")
            ends[0], ends[1] = ends[1], ends[0]
            ends[0] += 1
            ends.tofile(folder / f"{file.name}.index")
        case "nothing":
            folder = tmp_path
    with pytest.raises(DataError, match=sentence):
        open_datatrove(folder, tokenizer, "web")
