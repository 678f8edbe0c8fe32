"""bfloat16 embeddings of a sentence-transformers folder made here, and the file that a killed pass continues."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertConfig, BertModel

from curation import embedding_file
from curation.documents import Document
from curation.embedding import embed, in_eight_bits, packs, resolve_embedding, token_rows
from curation.embedding_file import embed_to_file
from curation.embedding_recheck import embed_near
from curation.errors import DataError
from curation.int8 import fast_int8
from curation.packed_encoder import Site
from curation.precision import resolve_precision, to_bfloat16
from curation.semantic_duplicates import find_duplicates, semantic_duplicates

WORDS = ["even", "number", "return", "first", "because", "sum", "def", "add", "twice", "so", "is", "each"]


def texts(count: int = 120) -> list[str]:
    chance = random.Random(5)
    found = [" ".join(chance.choices(WORDS, k=chance.randint(5, 80))) for _ in range(count)]
    for i in range(0, count // 3):  # near copies, more or less near
        words = found[i].split()
        for _ in range(i % 7):
            words[chance.randrange(len(words))] = chance.choice(WORDS)
        found[count - 1 - i] = " ".join(words)
    return found


def bert_folder(tokenizer_folder: Path, out: Path, damage: bool = False) -> Path:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(2)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )
    if damage:
        torch.nn.init.constant_(model.embeddings.LayerNorm.weight, float("nan"))
    model.save_pretrained(out / "bert")
    tokenizer.save_pretrained(out / "bert")
    transformer = Transformer(str(out / "bert"))
    modules = [transformer, Pooling(32, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(out / "st"), create_model_card=False)
    return out / "st"


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tokenizer_folder, tmp_path_factory.mktemp("bert"))


def test_bfloat16_is_near_float32_which_is_the_librarys_own(folder: Path) -> None:
    library = SentenceTransformer(str(folder), device="cpu").encode(texts(), show_progress_bar=False)
    exact, half = embed(texts(), folder), embed(texts(), folder, precision="bfloat16")
    np.testing.assert_allclose(exact, library, atol=2e-6)
    assert 0 < np.abs(half @ half.T - exact @ exact.T).max() < 0.01
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)


def test_a_long_text_is_cut_as_the_library_cuts_it(folder: Path) -> None:
    long = ["even number because " * 5000, "x" * 50_000, " " * 30_000 + "sum"]
    library = SentenceTransformer(str(folder), device="cpu").encode(long, show_progress_bar=False)
    np.testing.assert_allclose(embed(long, folder), library, atol=2e-6)


@pytest.mark.parametrize("per_token", [1, 6])
def test_tokens_of_a_packed_encoder_are_the_librarys(
    folder: Path, per_token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of texts whose head is too short to tell, and without reading all of a long one."""
    monkeypatch.setattr("curation.embedding.SHORT_HEAD_CHARACTERS_PER_TOKEN", per_token)
    library = SentenceTransformer(str(folder), device="cpu")
    long = [
        "even number because " * 5000,
        "x" * 50_000,
        " " * 30_000 + "sum",
        "",
        " ",
        "add" * 70 + " sum",
        *texts(),
    ]
    features = library.preprocess(long)
    expected = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]
    assert token_rows(library, long) == expected and token_rows(library, []) == []
    read: list[int] = []
    call = type(library.tokenizer).__call__

    def counting(self: Any, given: list[str], **options: Any) -> Any:
        read.extend(map(len, given))
        return call(self, given, **options)

    monkeypatch.setattr(type(library.tokenizer), "__call__", counting)
    token_rows(library, long[:1])
    assert max(read) <= 16 * library.max_seq_length < len(long[0])


def test_an_encoder_that_adds_a_prompt_is_not_given_tokens(folder: Path) -> None:
    encoder = SentenceTransformer(str(folder), device="cpu")
    assert not packs(encoder)
    to_bfloat16(encoder[0].auto_model)
    assert packs(encoder)
    encoder.prompts["short"] = "sum: "
    encoder.default_prompt_name = "short"
    assert not packs(encoder)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_duplicates_are_those_of_float32(folder: Path, precision: Literal["bfloat16", "int8"]) -> None:
    if precision == "int8" and not fast_int8():
        pytest.skip("this processor has no instructions for products of 8-bit numbers")
    exact, rough = embed(texts(), folder), embed(texts(), folder, precision=precision)
    pairs = np.triu_indices(len(exact), 1)
    cosines, guessed = (exact @ exact.T)[pairs], (rough @ rough.T)[pairs]
    near = cosines >= np.quantile(cosines, 0.97)
    worst = int(np.flatnonzero(near)[np.abs(guessed - cosines)[near].argmax()])
    thresholds = [float(np.quantile(cosines, 0.995)), float(cosines[worst] + guessed[worst]) / 2]
    changed = 0
    for threshold in thresholds:
        vectors, report = embed_near(texts(), folder, threshold, precision=precision, sample=8)
        assert report is not None and report.largest > 0 and f"embedded in {precision}" in report.sentence()
        truth = find_duplicates(exact, threshold)
        found = find_duplicates(vectors, threshold)
        assert [pair[:2] for pair in found] == [pair[:2] for pair in truth]
        np.testing.assert_allclose([p[2] for p in found], [p[2] for p in truth], atol=2e-6)
        changed += [pair[:2] for pair in find_duplicates(rough, threshold)] != [pair[:2] for pair in truth]
    assert changed  # the rough pass alone decides otherwise, or this test would prove nothing


@pytest.mark.skipif(not fast_int8(), reason="no instructions for products of 8-bit numbers")
def test_int8_rounds_a_part_of_the_products(folder: Path) -> None:
    half, eight = (embed(texts(), folder, precision=name) for name in ("bfloat16", "int8"))
    exact = embed(texts(), folder)
    errors = [np.abs(found @ found.T - exact @ exact.T).max() for found in (half, eight)]
    assert not np.array_equal(half, eight) and 0 < max(errors) < 0.05
    chosen = [layer for layer in range(6) if in_eight_bits(Site(layer, "up", *torch.zeros(2, 1, 1)), 6)]
    assert chosen == [2, 3, 4, 5] and not in_eight_bits(Site(5, "down", *torch.zeros(2, 1, 1)), 6)


def test_without_instructions_int8_is_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.embedding.fast_int8", lambda device: False)
    assert resolve_embedding("int8") == resolve_precision("auto")


def test_none_and_one(folder: Path) -> None:
    for count in (0, 1):
        vectors, _ = embed_near(texts()[:count], folder, 0.9, precision="bfloat16")
        assert vectors.shape == (count, 32)
        assert semantic_duplicates(vectors, 0.9).found == []


def test_a_model_that_gives_nan_is_named(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finite vector for text number 1"):
        embed(["even number"], bert_folder(tokenizer_folder, tmp_path, damage=True))


def test_a_killed_pass_goes_on_and_ends_with_equal_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("curation.embedding", "curation.embedding_file"):
        monkeypatch.setattr(f"{module}.CHUNK_TEXTS", 16)
    whole = embed_to_file(texts(), folder, tmp_path / "whole")
    np.testing.assert_array_equal(np.asarray(whole), embed(texts(), folder))
    append, written = embedding_file._append, []

    def dying(*arguments: object) -> None:
        if len(written) == 3:
            with (tmp_path / "killed" / ".vectors.npy.partial").open("ab") as handle:
                handle.write(b"half a row")  # what a kill leaves behind
            raise KeyboardInterrupt
        written.append(arguments[2])
        append(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding_file, "_append", dying)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(texts(), folder, tmp_path / "killed")
    assert not (tmp_path / "killed" / "vectors.npy").exists()
    resumed: list[object] = []
    monkeypatch.setattr(embedding_file, "_append", lambda *a: (resumed.append(a[2]), append(*a)))
    embed_to_file(texts(), folder, tmp_path / "killed")
    assert written == [0, 16, 32] and resumed[0] == 48
    assert (tmp_path / "killed" / "vectors.npy").read_bytes() == (
        tmp_path / "whole" / "vectors.npy"
    ).read_bytes()
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["vectors.json", "vectors.npy"]
    resumed.clear()
    embed_to_file(texts(), folder, tmp_path / "killed")
    assert not resumed
    embed_to_file(texts()[1:], folder, tmp_path / "killed")
    assert resumed[0] == 0


def test_a_file_of_an_earlier_way_to_round_is_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for precision, again in (("bfloat16", True), ("float32", False)):
        out = tmp_path / precision
        monkeypatch.setattr(embedding_file, "ROUNDING", 1)
        embed_to_file(texts()[:4], folder, out, precision=precision)  # type: ignore[arg-type]
        before = (out / "vectors.npy").stat().st_ino
        monkeypatch.setattr(embedding_file, "ROUNDING", 2)
        embed_to_file(texts()[:4], folder, out, precision=precision)  # type: ignore[arg-type]
        assert ((out / "vectors.npy").stat().st_ino != before) == again


def test_deduplication_reads_a_file_as_it_reads_memory(folder: Path, tmp_path: Path) -> None:
    from curation.deduplicate import deduplicate

    documents = [Document(f"{i:03d}", text, "s") for i, text in enumerate(texts())]
    stored = embed_to_file(texts(), folder, tmp_path / "v")
    assert isinstance(stored, np.memmap)
    scores = {d.id: float(i % 5) for i, d in enumerate(documents)}
    assert deduplicate(documents, stored, 0.9, scores=scores) == deduplicate(
        documents, np.array(stored), 0.9, scores=scores
    )
