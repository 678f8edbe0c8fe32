"""Texts in, a table and coloured tokens out; and what is said about input that cannot be scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from curation.errors import DataError, RecipeError
from mixing.influence import SampleDocument, probe_directions, score, token_benefit
from mixing.influence.forward_mode import ForwardMode
from tests.mixing.test_influence_engines import decoder, documents, gpt2, llama, oracle, random_direction
from training.tokenizer import train_tokenizer

TEXTS = [f"number {i} is followed by {i + 1}, and {i} times two is {2 * i}" for i in range(24)]
PROBE = [f"number {i} is followed by {i + 1}" for i in range(30, 36)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("tokenizer"))


def small_llama(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def test_a_model_a_tokenizer_and_texts_are_enough(tokenizer) -> None:
    model = small_llama(len(tokenizer))
    directions = probe_directions(model, {"numbers": PROBE}, preconditioner="ekfac", tokenizer=tokenizer)
    samples = [*TEXTS, {"id": "mine", "source": "own", "text": "two and two"}]
    scores = score(model, samples, directions, tokenizer=tokenizer)
    table = scores.table().to_pydict()
    assert len(table["benefit"]) == 25 and table["capability"] == ["numbers"] * 25
    assert (table["document"][-1], table["source"][-1]) == ("mine", "own") and len(
        set(table["document"])
    ) == 25
    # The same ids by hand: [bos] + tokens + [eos].
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = tokenizer(TEXTS[3], add_special_tokens=False)["input_ids"]
    by_hand = SampleDocument("x", "", np.array([begin, *ids, tokenizer.eos_token_id]))
    expected = oracle(model, [by_hand], [directions["numbers"].vectors])[0, 0]
    assert table["benefit"][3] == pytest.approx(expected, rel=1e-2)
    colours = token_benefit(model, TEXTS[3], directions, tokenizer=tokenizer)
    assert colours.shape == (len(by_hand.ids), 1)
    assert colours.sum() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: decoder(), lambda: llama(False), gpt2], ids=["ours", "llama", "gpt2"]
)
def test_token_benefits_add_up_to_the_document(make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make().double()
    document = max(documents(6), key=lambda d: len(d.ids))
    vectors = {"a": random_direction(model, 1), "b": random_direction(model, 2)}
    found = token_benefit(model, document, vectors)
    whole = oracle(model, [document], list(vectors.values()))[0]
    assert found.shape == (len(document.ids), 2) and not found[0].any()
    np.testing.assert_allclose(found.sum(0), whole, rtol=1e-5)
    # A token's value is the derivative of its own loss.
    prefix = [SampleDocument("p", "a", document.ids[:n]) for n in (4, 5)]
    shorter, longer = oracle(model, prefix, list(vectors.values()), reduction="sum")
    np.testing.assert_allclose(
        token_benefit(model, document, vectors, reduction="sum")[4], longer - shorter, rtol=1e-4, atol=1e-6
    )
    windows = token_benefit(model, document, vectors, context=5, windows="all", reduction="sum")
    by_window = score(
        model, [document], vectors, engine="explicit", context=5, windows="all", reduction="sum"
    )
    np.testing.assert_allclose(windows.sum(0), by_window.benefit[0], rtol=1e-5)

    def refuse(*_) -> None:
        raise NotImplementedError("no forward derivative")

    monkeypatch.setattr(ForwardMode, "token_derivatives", refuse)
    np.testing.assert_allclose(token_benefit(model, document, vectors), found, rtol=1e-4, atol=1e-6)


def test_what_is_said_about_bad_texts(tokenizer) -> None:
    model = small_llama(len(tokenizer))
    with pytest.raises(RecipeError, match="there is no tokenizer"):
        probe_directions(model, {"p": PROBE})
    with pytest.raises(DataError, match=r"tokens and the model .* do not match"):
        probe_directions(small_llama(200), {"p": PROBE}, tokenizer=tokenizer)
    with pytest.raises(DataError, match="probe set is empty") as caught:
        probe_directions(model, {"good": PROBE, "hollow": [""]}, tokenizer=tokenizer)
    assert caught.value.where == "probe hollow"
    directions = probe_directions(model, {"p": PROBE}, tokenizer=tokenizer)
    with pytest.raises(DataError, match="no text") as caught:
        score(model, [*TEXTS, {"body": "?"}], directions, tokenizer=tokenizer)
    assert "record 24" in caught.value.where


def test_a_probe_document_among_the_samples_is_named(tokenizer) -> None:
    model = small_llama(len(tokenizer))
    directions = probe_directions(model, {"p": PROBE, "q": ["something else"]}, tokenizer=tokenizer)
    samples = [*TEXTS[:5], {"id": "copied", "text": PROBE[2]}]
    notes = score(model, samples, directions, tokenizer=tokenizer).record["notes"]
    assert [n for n in notes if "documents of the probe" in n] == [
        "1 samples are documents of the probe p too, among them copied"
    ]


def test_rows_are_never_longer_than_the_model_has_positions() -> None:
    model = gpt2()
    long = [SampleDocument(str(i), "a", np.random.default_rng(i).integers(0, 61, 100)) for i in range(3)]
    directions = probe_directions(model, {"p": long[:1]})
    result = score(model, long[1:], directions, engine="ghost")
    assert result.tokens.tolist() == [64, 64] and result.record["documents_cut"] == 2
    assert any("positions for 64 tokens" in note for note in result.record["notes"])


def test_losses_that_are_not_finite_are_found_by_the_pilot() -> None:
    model = decoder()
    directions = {"v": random_direction(model, 1)}
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        score(model, documents(4), directions)
    with pytest.raises(DataError, match="loss on the probe set is not finite"):
        probe_directions(model, {"p": documents(2)})
