"""Every engine against gradients made one document at a time, over every class of parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from curation.errors import DataError
from mixing.influence import SampleDocument, adapt, probe_directions, score
from mixing.influence.documents import spread_over_sources
from training.model import Decoder, ModelConfig

VOCABULARY = 61


def decoder(tied: bool = True, **changes) -> Decoder:
    config = ModelConfig(VOCABULARY, 32, 2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, tied=tied, **changes)
    model = Decoder(config).init_weights(3)
    with (
        torch.no_grad()
    ):  # gains and biases away from where they start, so that their gradients are of general kind
        generator = torch.Generator().manual_seed(4)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
            else:
                parameter.mul_(6)
    return model


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(6)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.1
    )
    return GPT2LMHeadModel(config).eval()


MODELS = {
    "tied": lambda: decoder(),
    "untied with biases": lambda: decoder(
        tied=False, qkv_bias=True, qk_norm="none", rope_style="half", family="qwen2"
    ),
    "learned qk norm": lambda: decoder(qk_norm="rms_before_rope", rope_style="half", family="qwen3"),
    "llama tied": lambda: llama(True),
    "llama untied": lambda: llama(False),
    "gpt2": gpt2,
}


def documents(count: int, seed: int = 0, longest: int = 30) -> list[SampleDocument]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        length = int(rng.integers(3, longest))
        # Sources differ in their vocabulary, as corpora do.
        ids = rng.integers(20 * (i % 3), 20 * (i % 3) + 21, size=length)
        found.append(SampleDocument(f"doc{seed}-{i}", "abc"[i % 3], ids))
    return found


def oracle(model, docs, vectors, reduction="mean", context=10**6) -> np.ndarray:
    """Plain autograd on one document at a time, with losses written out here."""
    out = np.zeros((len(docs), len(vectors)))
    own = dict(model.named_parameters())
    for i, doc in enumerate(docs):
        ids = torch.as_tensor(doc.ids[: context + 1])[None]
        if isinstance(model, Decoder):
            logits = model.logits(model(ids[:, :-1]))
        else:
            logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction=reduction)
        gradients = torch.autograd.grad(loss, list(own.values()))
        for k, v in enumerate(vectors):
            out[i, k] = sum(
                float((g.double() * v[n].double()).sum())
                for n, g in zip(own, gradients, strict=True)
                if n in v
            )
    return out


def random_direction(model, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}


@pytest.mark.parametrize("engine", ["forward", "ghost", "explicit"])
@pytest.mark.parametrize("name", MODELS)
def test_exact_engines_equal_one_gradient_per_document(name: str, engine: str) -> None:
    model = MODELS[name]().double()
    docs = documents(7)
    vectors = [random_direction(model, 1), random_direction(model, 2)]
    found = score(
        model, docs, dict(enumerate(vectors)), engine=engine, batch_tokens=80, pilot_documents=0
    ).benefit
    expected = oracle(model, docs, vectors)
    # transformers' Llama takes its norms and its eager softmax in float32 whatever the precision of its
    # weights.
    tolerance = 1e-6 if "llama" in name else 1e-9
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ["tied", "untied with biases", "learned qk norm", "gpt2"])
def test_each_parameter_class_alone(name: str) -> None:
    """A direction that moves one kind of parameter only, so that no class hides behind a larger one."""
    model = MODELS[name]().double()
    docs = documents(4)
    whole = random_direction(model, 3)
    classes: dict[str, dict] = {}
    for parameter, vector in whole.items():
        kind = ".".join(part for part in parameter.split(".") if not part.isdigit())
        classes.setdefault(kind, {})[parameter] = vector
    assert len(classes) >= 11
    expected = oracle(model, docs, list(classes.values()))
    for engine in ("forward", "ghost"):
        found = score(model, docs, classes, engine=engine, pilot_documents=0).benefit
        assert (np.abs(found - expected).max(0) <= 1e-9 * np.abs(expected).max(0) + 1e-13).all(), engine


@pytest.mark.parametrize("engine", ["finite_difference", "finite_difference_one_sided"])
@pytest.mark.parametrize("name", ["tied", "llama untied"])
def test_finite_differences_are_close(name: str, engine: str) -> None:
    model = MODELS[name]()
    docs, probe = documents(40), documents(12, seed=9)
    direction = probe_directions(model, {"probe": probe})
    result = score(model, docs, direction, engine=engine)
    expected = oracle(model.double(), docs, [direction["probe"].vectors])
    relative = np.abs(result.benefit - expected).max() / np.sqrt(np.mean(expected**2))
    assert relative < (2e-3 if engine == "finite_difference" else 2e-2)
    pilot = result.record["pilot"]
    assert pilot["documents"] == 32 and pilot["pearson"] > 0.9999 and pilot["within_source"] > 0.999
    in_double = score(model, docs, direction, engine="finite_difference").benefit
    # transformers' Llama keeps float32 inside, and its rounding is divided by the step of float64.
    tolerance = 1e-3 if "llama" in name else 1e-6
    assert np.abs(in_double - expected).max() < tolerance * np.abs(expected).max()


def test_values_do_not_depend_on_batch_padding_or_order() -> None:
    model = decoder().double()
    docs = documents(9)
    vectors = {"v": random_direction(model, 1)}
    for engine in ("forward", "ghost", "explicit"):
        alone = score(model, docs, vectors, engine=engine, batch_tokens=1, pilot_documents=0)
        together = score(model, docs[::-1], vectors, engine=engine, batch_tokens=10**6, pilot_documents=0)
        assert together.documents == alone.documents[::-1]
        np.testing.assert_allclose(together.benefit[::-1], alone.benefit, rtol=1e-11)


def test_reductions_context_and_windows() -> None:
    model = decoder().double()
    docs = documents(6)
    vectors = {"v": random_direction(model, 1)}
    mean = score(model, docs, vectors, engine="forward", pilot_documents=0)
    total = score(model, docs, vectors, engine="forward", reduction="sum", pilot_documents=0)
    assert mean.tokens.tolist() == [len(d.ids) - 1 for d in docs]
    np.testing.assert_allclose(mean.benefit * mean.tokens[:, None], total.benefit, rtol=1e-12)
    first = score(model, docs, vectors, engine="ghost", context=8, pilot_documents=0)
    assert first.tokens.tolist() == [min(8, len(d.ids) - 1) for d in docs]
    expected = oracle(model, docs, list(vectors.values()), context=8)
    np.testing.assert_allclose(first.benefit, expected, rtol=1e-9)
    assert first.record["documents_cut"] == sum(len(d.ids) > 9 for d in docs) > 0
    windows = score(
        model, docs, vectors, engine="ghost", context=8, windows="all", reduction="sum", pilot_documents=0
    )
    pieces = [
        SampleDocument(f"{d.id}/{at}", d.source, d.ids[at : at + 9])
        for d in docs
        for at in range(0, len(d.ids) - 1, 8)
    ]
    by_piece = oracle(model, pieces, list(vectors.values()), reduction="sum")[:, 0]
    for at, doc in enumerate(docs):
        parts = [v for p, v in zip(pieces, by_piece, strict=True) if p.id.startswith(f"{doc.id}/")]
        np.testing.assert_allclose(windows.benefit[at, 0], sum(parts), rtol=1e-9)


def test_engine_is_chosen_by_precision_and_number_of_directions() -> None:
    model = decoder()
    docs = documents(36)
    one = probe_directions(model, {"code": documents(8, 7)})
    three = probe_directions(
        model, {c: documents(8, 7 + i) for i, c in enumerate(("code", "maths", "facts"))}
    )
    single = score(model, docs, one)
    assert single.record["engine"] == "finite_difference" and single.record["forwards_per_token"] == 2
    several = score(model, docs, three)
    # 4 F; whole ghost products would be 5 F, and a random model's directions have no low rank.
    assert several.record["engine"] == "finite_difference_one_sided"
    assert several.record["forwards_per_token"] == 4
    half = score(decoder().bfloat16(), docs, one)
    assert half.record["engine"].startswith("ghost") and half.record["dtype"] == "bfloat16"
    for result in (single, several):
        pilot = result.record["pilot"]
        assert pilot["reference"] == "forward" and pilot["within_source"] >= 0.999
        assert pilot["signs_clear"] == 1.0 and result.record["forward_tokens"] > 0


def test_pilot_rejects_an_engine_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixing.influence.finite_difference import FiniteDifference

    right = FiniteDifference.rows
    monkeypatch.setattr(FiniteDifference, "rows", lambda self, batch: right(self, batch).abs())
    model = decoder()
    docs = documents(36)
    direction = {"code": random_direction(model, 1)}
    result = score(model, docs, direction)
    assert result.record["engine"].startswith("ghost")
    assert any("did not agree" in note for note in result.record["notes"])
    expected = oracle(model, docs, list(direction.values()))
    assert np.abs(result.benefit - expected).max() < 1e-4 * np.abs(expected).max()


def test_unknown_layer_falls_back_to_the_exact_path_and_says_so() -> None:
    class Scaled(torch.nn.Module):
        """A layer that owns a parameter and holds another layer: no hook can tell their parts."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.gain = inner, torch.nn.Parameter(torch.tensor(1.3))

        def forward(self, *args):
            return self.gain * self.inner(*args)

    model = decoder()
    model.layers[0].mlp = Scaled(model.layers[0].mlp)
    model = model.double()
    docs = documents(8)
    vectors = [random_direction(model, 1), random_direction(model, 2)]
    result = score(model, docs, dict(enumerate(vectors)), engine="ghost")
    assert result.record["engine"] == "explicit" and "Scaled" in result.record["notes"][0]
    assert score(model, docs, dict(enumerate(vectors))).record["pilot"]["pearson"] > 0.9999
    expected = oracle(model, docs, vectors)
    assert np.abs(result.benefit - expected).max() <= 1e-9 * np.abs(expected).max()


def test_model_is_left_as_it_was() -> None:
    model = decoder().train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.norm.weight.requires_grad_(False)
    direction = probe_directions(model, {"code": documents(5, 7)})
    score(model, documents(12), direction)
    assert model.training and model.attention == "auto" and not model.norm.weight.requires_grad
    assert all(p.requires_grad for n, p in model.named_parameters() if n != "norm.weight")
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.named_parameters())


def test_documents_that_cannot_be_scored() -> None:
    model = decoder()
    direction = {"v": random_direction(model, 1)}
    with pytest.raises(DataError, match="outside the 61 of the model"):
        score(model, [SampleDocument("x", "a", np.array([1, 61]))], direction)
    result = score(model, [*documents(3), SampleDocument("empty", "a", np.array([1]))], direction)
    assert result.tokens[-1] == 0 and result.benefit[-1, 0] == 0
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        score(model, documents(3), direction, engine="forward", pilot_documents=0)
    with pytest.raises(DataError, match="zero"):
        score(model, documents(3), {"v": {"norm.weight": torch.zeros(32)}})


def test_pilot_documents_are_spread_over_sources() -> None:
    docs = [SampleDocument(str(i), "big" if i < 90 else "small", np.arange(3)) for i in range(100)]
    chosen = spread_over_sources(docs, 32)
    assert len(chosen) == 32 and sum(i >= 90 for i in chosen) == 10
    assert spread_over_sources(docs[:5], 32) == [0, 1, 2, 3, 4]


def test_adapters_name_the_matrices() -> None:
    assert adapt(decoder()).matrix_names() == ("embed_tokens.weight",)
    assert set(adapt(decoder(tied=False)).matrix_names()) == {"embed_tokens.weight", "lm_head.weight"}
    assert adapt(llama(True)).matrix_names() == ("model.embed_tokens.weight",)
    assert set(adapt(llama(False)).matrix_names()) == {"model.embed_tokens.weight", "lm_head.weight"}
