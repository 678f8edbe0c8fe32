"""Every token once, the same numbers as transformers, and no dependence on batching or order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from curation.documents import Document
from curation.errors import DataError, RecipeError
from probes.likelihood import TokenizedDocument, rolling_windows, score_documents, tokenize_documents
from training.huggingface import load_huggingface
from training.model import Decoder, ModelConfig
from training.tokenizer import train_tokenizer

CONFIG = ModelConfig(97, 32, 2, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=32)


def _documents(lengths: list[int], vocabulary: int = 97) -> list[TokenizedDocument]:
    rng = np.random.default_rng(0)
    return [
        TokenizedDocument(f"d{i}", "s", rng.integers(0, vocabulary, size=n), bytes=3 * n)
        for i, n in enumerate(lengths)
    ]


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_score_each_token_once_with_enough_context(
    tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    windows = list(rolling_windows(tokens, context, stride))
    scored = [i for w in windows for i in range(w.first, w.end)]
    assert scored == list(range(1, tokens))
    for window in windows:
        assert 1 <= window.inputs <= context
        # The token just before the first scored one is always fed, and so is all the context that fits.
        assert window.begin == 0 or (window.inputs == context and window.begin < window.first)
        assert window.first == 1 or window.first - window.begin >= min(window.first, context - stride + 1)


def test_equals_transformers_plain_forward(tmp_path) -> None:
    torch.manual_seed(3)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=32, initializer_range=0.3,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = load_huggingface(tmp_path)
    documents = _documents([2, 9, 33, 30])
    table = score_documents(ours, documents, context=32, stride=32)
    for row, document in zip(table.to_pylist(), documents, strict=True):
        ids = torch.from_numpy(document.ids)[None]
        with torch.no_grad():
            logp = theirs(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
        assert row["nats"] == pytest.approx(-float(logp.double().sum()), rel=1e-5)
        assert row["tokens"] == len(document.ids) - 1
        assert row["bytes"] == document.bytes


def test_long_document_equals_hand_rolled_windows() -> None:
    model = Decoder(CONFIG).init_weights(1)
    document = _documents([50])[0]
    table = score_documents(model, [document], context=16, stride=5)
    expected = 0.0
    with torch.no_grad():
        for position in range(1, 50):
            # Windows end at 17, 22, 27, ...; each feeds the 16 tokens before its last one.
            end = 17 if position < 17 else min(50, 17 + 5 * ((position - 17) // 5 + 1))
            begin = max(0, end - 17)
            hidden = model(torch.from_numpy(document.ids[begin : end - 1])[None])[0]
            logp = model.logits(hidden[position - 1 - begin]).log_softmax(-1)
            expected -= float(logp[document.ids[position]])
    assert table["nats"][0].as_py() == pytest.approx(expected, rel=1e-5)
    assert table["tokens"][0].as_py() == 49


def test_batching_and_order_do_not_matter() -> None:
    model = Decoder(CONFIG).init_weights(1)
    documents = _documents([1, 40, 3, 17, 64])
    one = score_documents(model, documents, context=16, stride=8, batch_tokens=1)
    many = score_documents(model, documents[::-1], context=16, stride=8, batch_tokens=10_000)
    assert many["id"].to_pylist() == one["id"].to_pylist()[::-1]
    np.testing.assert_allclose(one["nats"].to_numpy(), many["nats"].to_numpy()[::-1], rtol=1e-5)
    assert one["nats"][0].as_py() == 0.0 and one["tokens"][0].as_py() == 0  # bos alone


def test_bytes_do_not_depend_on_the_tokenizer_and_control_tokens_in_text_stay_text(tmp_path) -> None:
    texts = ["naïve café 😀 <|eos|> end", "the cat sat on the mat " * 4]
    documents = [Document(f"d{i}", text, "s") for i, text in enumerate(texts)]
    small = tokenize_documents(documents, train_tokenizer(texts, 264, tmp_path / "small"))
    large = tokenize_documents(documents, train_tokenizer(texts * 9, 300, tmp_path / "large"))
    assert [d.bytes for d in small] == [d.bytes for d in large] == [len(t.encode()) for t in texts]
    assert len(small[1].ids) > len(large[1].ids)
    assert small[0].ids[0] == 0 and 0 not in small[0].ids[1:] and 1 not in small[0].ids


def test_impossible_requests_are_sentences() -> None:
    model = Decoder(CONFIG).init_weights(1)
    with pytest.raises(RecipeError, match="32 positions"):
        score_documents(model, _documents([4]), context=33, stride=1)
    with pytest.raises(RecipeError, match="stride"):
        score_documents(model, _documents([4]), context=16, stride=17)
    with pytest.raises(DataError, match="tokenizer"):
        score_documents(model, _documents([40], vocabulary=200), context=16, stride=16)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="no finite loss"):
        score_documents(model, _documents([4]), context=16, stride=16)


def test_packed_equals_unpacked_equals_one_at_a_time() -> None:
    """Documents in one row, kept apart as training packs them, beside a batch, beside each alone."""
    model = Decoder(CONFIG).init_weights(0)
    documents = _documents([2, 9, 17, 3])
    batched = score_documents(model, documents, context=32, stride=32)["nats"].to_pylist()
    alone = [score_documents(model, [d], context=32, stride=32)["nats"][0].as_py() for d in documents]
    fed = torch.from_numpy(np.concatenate([d.ids[:-1] for d in documents]))[None]
    owner = np.concatenate([[n] * (len(d.ids) - 1) for n, d in enumerate(documents)])
    places = np.concatenate([np.arange(len(d.ids) - 1) for d in documents])
    labels = torch.from_numpy(np.concatenate([d.ids[1:] for d in documents]))
    with torch.no_grad():
        hidden = model(fed, torch.from_numpy(places)[None], torch.from_numpy(owner)[None])
        logp = model.logits(hidden)[0].double().log_softmax(-1)
    packed = np.zeros(len(documents))
    np.add.at(packed, owner, -logp[torch.arange(len(labels)), labels].numpy())
    assert batched == pytest.approx(packed.tolist(), rel=1e-5)
    assert alone == pytest.approx(packed.tolist(), rel=1e-5)
