"""Embeddings: a folder made from the corpus loads like a published one, and near copies come out close."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from curation.atomic import hash_folder
from curation.embedding import embed, top_right_vectors, train_lsa_embedder
from curation.errors import DataError

TOPICS = (
    ["even", "number", "sum", "because", "twice"],
    ["return", "first", "second", "def", "add"],
    ["is", "in", "and", "by", "so"],
)


def texts(count: int = 60) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(TOPICS[i % 3], k=30)) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lsa_embedder(texts(), tokenizer_folder, tmp_path_factory.mktemp("e") / "lsa", dim=12)


def test_the_folder_is_an_ordinary_sentence_transformer(folder: Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.get_embedding_dimension() == 12
    own = embed(texts(), folder)
    theirs = model.encode(texts(), normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(own, theirs, atol=1e-6)
    assert own.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, atol=1e-6)


def test_near_copies_are_close_and_other_topics_far(folder: Path) -> None:
    words = texts()[0].split()
    copy = " ".join([*words[:-1], "twice"])
    first, second, other = embed([texts()[0], copy, texts()[1]], folder)
    assert first @ second > 0.95 > 0.5 > first @ other


def test_a_text_without_words_is_a_zero_and_duplicates_nothing(folder: Path) -> None:
    assert not embed([""], folder).any()


def test_pickled_weights_are_not_loaded(classifier_folder: Path, tmp_path: Path) -> None:
    """A .bin file can run code of whoever made it."""
    model = AutoModel.from_pretrained(classifier_folder)
    AutoTokenizer.from_pretrained(classifier_folder).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert embed(["text"], tmp_path).shape == (1, model.config.hidden_size)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"cannot be loaded.*with safetensors weights"):
        embed(["text"], tmp_path)


def test_equal_texts_give_equal_bytes(folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    again = train_lsa_embedder(texts(), tokenizer_folder, tmp_path / "lsa", dim=12)
    assert hash_folder(again) == hash_folder(folder)


def test_singular_vectors_are_those_of_numpy() -> None:
    random_numbers = np.random.default_rng(0)
    scaled = random_numbers.standard_normal((40, 25)) * 0.8 ** np.arange(25)
    dense = scaled * (random_numbers.random((40, 25)) < 0.7)
    ours = top_right_vectors(sparse.csr_matrix(dense), 4, seed=1)
    _, _, right = np.linalg.svd(dense)
    np.testing.assert_allclose(np.abs((ours * right[:4].T).sum(axis=0)), 1, atol=1e-6)
    assert (ours[np.abs(ours).argmax(axis=0), np.arange(4)] > 0).all()


def test_one_text_is_too_few(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two texts"):
        train_lsa_embedder(["alone"], tokenizer_folder, tmp_path / "lsa")
