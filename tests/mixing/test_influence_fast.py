"""The cheap engines (hand-written pass, low rank, bfloat16, packed rows, the decoder in a model's place)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixing.influence import (
    SampleDocument,
    adapt,
    decoder_attention,
    decoder_forward,
    probe_directions,
    score,
)
from mixing.influence import trial as trial_module
from mixing.influence.contraction import Contraction
from mixing.influence.decoder_forward import DecoderLosses
from mixing.influence.decoder_pass import DecoderPass, fits
from mixing.influence.decoder_twin import decoder_twin
from mixing.influence.decoder_weights import group_directions
from mixing.influence.documents import BatchPlan, cut_rows, pack_rows
from mixing.influence.ghost import Ghost
from mixing.influence.low_rank import LowRank, Moments, MomentSums, expected_squares
from mixing.influence.scorers import score_plan
from tests.mixing.test_influence_engines import (
    MODELS,
    decoder,
    documents,
    gpt2,
    llama,
    oracle,
    random_direction,
)


def plan_of(docs, pack: bool = False, batch_tokens: int = 90) -> BatchPlan:
    return BatchPlan(
        docs,
        context=40,
        windows="first",
        reduction="mean",
        batch_tokens=batch_tokens,
        device=torch.device("cpu"),
        pack=pack,
    )


def counting(count: int, seed: int, noise: bool = True) -> list[SampleDocument]:
    """Text that counts up by one or by three, and noise: something that a small model learns."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        kind = i % 3 if noise else i % 2
        length, start = int(rng.integers(20, 34)), int(rng.integers(61))
        ids = (start + (1, 3)[kind] * np.arange(length)) % 61 if kind < 2 else rng.integers(0, 61, length)
        found.append(SampleDocument(f"{seed}-{i}", ("one", "three", "noise")[kind], ids))
    return found


@pytest.fixture(scope="module")
def learned():
    """A decoder that has begun to learn, samples, and directions of three probes."""
    from training.model import Decoder, ModelConfig

    config = ModelConfig(61, 64, 2, heads=4, kv_heads=2, head_dim=16, ffn_dim=96)
    model = Decoder(config).init_weights(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(25):
        batch = next(iter(plan_of(counting(12, 100 + step), batch_tokens=10**6)))
        optimizer.zero_grad()
        adapt(model)(batch).sum().div((batch.labels >= 0).sum()).backward()
        optimizer.step()
    probes = {
        "one": [d for d in counting(18, 7) if d.source == "one"],
        "three": [d for d in counting(18, 8) if d.source == "three"],
        "both": counting(10, 9, noise=False),
    }
    return model, counting(72, 1), probe_directions(model, probes)


@pytest.mark.parametrize("name", ["tied", "untied with biases"])
def test_the_hand_written_pass_equals_gradients_and_hooks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]().double()
    docs, vectors = documents(7), [random_direction(model, 1), random_direction(model, 2)]
    del vectors[1]["norm.weight"], vectors[0]["layers.0.self_attn.q_proj.weight"]
    expected = oracle(model, docs, vectors)
    model.requires_grad_(False)
    hand_written = DecoderPass(adapt(model), vectors, None, torch.float64)
    for scorer in (hand_written, Ghost(adapt(model), vectors)):
        found = score_plan(scorer, plan_of(docs), 2)
        assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()
        assert scorer.forwards == pytest.approx(4.0, abs=0.05)
    monkeypatch.setattr(
        decoder_attention, "BLOCK", 8
    )  # rows of several blocks of attention, the last one short
    for pack in (False, True):
        found = score_plan(hand_written, plan_of(docs, pack), 2)
        assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["tied", "untied with biases"])
def test_bases_beside_the_matrices_and_what_the_pass_shows_are_in_the_models_own_terms(name: str) -> None:
    """The pass multiplies with folded and reordered matrices; directions go in and gradients come out as W has them."""
    model = MODELS[name]().double()
    docs, vectors = documents(7), [random_direction(model, 1), random_direction(model, 2)]
    whole = group_directions(model, vectors)
    bases = {
        n: Contraction(None, torch.eye(v.shape[2]).double(), torch.eye(v.shape[1]).double(), v)
        for n, v in whole.items()
    }
    gradients: dict[str, torch.Tensor] = {}

    def see(group: str, x: torch.Tensor, g: torch.Tensor) -> None:
        gradients[group] = gradients.get(group, 0.0) + g.T @ x

    found = score_plan(DecoderPass(adapt(model), vectors, bases, torch.float64, see), plan_of(docs), 2)
    expected = oracle(model, docs, vectors)
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()
    model.requires_grad_(True)
    sum(adapt(model)(batch).sum() for batch in plan_of(docs)).backward()
    attention = model.layers[1].self_attn
    own = torch.cat([p.weight.grad for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
    torch.testing.assert_close(gradients["layers.1.qkv"], own, rtol=1e-9, atol=1e-9)
    feed = model.layers[0].mlp
    torch.testing.assert_close(gradients["layers.0.down"], feed.down_proj.weight.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["tied", "untied with biases"])
@pytest.mark.parametrize("pack", [False, True])
def test_losses_of_the_forward_pass_equal_plain_cross_entropy(name: str, pack: bool, monkeypatch) -> None:
    """Of rows longer than a block of attention, of padded and of packed ones, whole and a few rows at a time."""
    model = MODELS[name]().double().requires_grad_(False)
    docs = documents(9, seed=4, longest=80) + documents(1, seed=5, longest=4)
    plan = BatchPlan(
        docs,
        context=200,
        windows="first",
        reduction="sum",
        batch_tokens=1000,
        device=torch.device("cpu"),
        pack=pack,
    )
    monkeypatch.setattr(decoder_attention, "BLOCK", 32)
    losses = DecoderLosses(model, dict(model.named_parameters()))
    for at_a_time in (1, decoder_forward.PASS_BYTES):
        monkeypatch.setattr(decoder_forward, "PASS_BYTES", at_a_time)
        found = np.zeros(len(docs))
        for batch in plan:
            assert (batch.segments is not None) == pack
            np.add.at(found, list(batch.documents), batch.by_document(losses(batch)).numpy())
        for value, document in zip(found, docs, strict=True):
            ids = torch.as_tensor(document.ids)[None]
            logits = model.logits(model(ids[:, :-1]))[0]
            expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            assert value == pytest.approx(expected.item(), rel=1e-12)


def test_what_the_hand_written_pass_cannot_do_goes_another_way() -> None:
    assert "gains" in fits(decoder(qk_norm="rms_before_rope", rope_style="half", family="qwen3"))
    model = decoder()
    assert fits(model) == ""
    with torch.no_grad():
        model.norm.weight[3] = 0.0
    assert "norm.weight" in fits(model)
    docs, vectors = documents(5), [random_direction(model, 1)]
    result = score(model, docs, {"v": vectors[0]}, engine="ghost")
    assert result.record["pass"] == "model" and result.record["pilot"]["pearson"] >= 0.999999
    expected = oracle(model, docs, vectors)
    np.testing.assert_allclose(result.benefit, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=25), st.integers(5, 40))
def test_packing_keeps_every_piece_whole_and_within_the_context(lengths: list[int], context: int) -> None:
    docs = [SampleDocument(str(i), "a", np.arange(n + 1)) for i, n in enumerate(lengths)]
    rows = cut_rows(docs, context, "all")
    packed = pack_rows(rows, context)
    assert sorted((r.document, r.start) for row in packed for r in row) == sorted(
        (r.document, r.start) for r in rows
    )
    assert all(sum(r.tokens for r in row) <= context for row in packed)


@pytest.mark.parametrize("engine", ["ghost", "forward", "explicit", "finite_difference"])
def test_packed_documents_have_the_values_of_documents_alone(engine: str) -> None:
    model = decoder().double()
    docs, vectors = documents(11), [random_direction(model, 1), random_direction(model, 2)]
    named = dict(enumerate(vectors))
    packed = score(model, docs, named, engine=engine, pack=True, context=40, pilot_documents=0)
    alone = score(model, docs, named, engine=engine, context=40, pilot_documents=0)
    assert packed.record["packed"] and not alone.record["packed"]
    tolerance = 1e-4 if engine == "finite_difference" else 1e-10
    np.testing.assert_allclose(
        packed.benefit, alone.benefit, rtol=0, atol=tolerance * np.abs(alone.benefit).max()
    )
    # Several documents do stand in one row, and the plan reads fewer rows for it.
    assert any(batch.segments is not None for batch in plan_of(docs, pack=True))
    expected = oracle(model, docs, vectors)
    assert np.abs(packed.benefit - expected).max() <= max(tolerance, 1e-9) * np.abs(expected).max()


def test_a_model_that_cannot_keep_documents_apart_is_not_packed() -> None:
    model, docs = gpt2(), documents(9)
    direction = {"v": random_direction(model, 1)}
    packed = score(model, docs, direction, engine="ghost", pack=True)
    assert not packed.record["packed"] and "nothing is packed" in packed.record["notes"][-1]
    np.testing.assert_array_equal(packed.benefit, score(model, docs, direction, engine="ghost").benefit)


def test_expected_squares_are_those_of_independent_tokens() -> None:
    rng = np.random.default_rng(0)
    x, g, v = (torch.as_tensor(rng.normal(size=s)) for s in ((50, 6), (40, 6), (2, 6, 6)))
    moments = {"m": Moments(x.T @ x / 50, g.T @ g / 40, 1)}
    by_pairs = torch.stack([(g @ w @ x.T).square().mean() for w in v])
    torch.testing.assert_close(expected_squares({"m": v}, moments), by_pairs)


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
@pytest.mark.parametrize("count", [1, 3])
def test_low_rank_is_exact_at_full_rank_and_loses_what_it_says(shape: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(1)
    rows, columns = shape
    scale = torch.as_tensor(10.0 ** -np.arange(columns))
    x = torch.as_tensor(rng.normal(size=(400, columns))) * scale
    g = torch.as_tensor(rng.normal(size=(400, rows)))
    v = torch.as_tensor(rng.normal(size=(count, rows, columns)))
    sums = MomentSums()
    sums.add("m", x, g)
    cut = LowRank({"m": v}, sums.found)
    exact = Contraction(whole=v).pair(x, g)
    weighted = cut.weighted["m"]
    short = min(shape)
    full = weighted.contraction(short, 0.0)
    if full.whole is None:
        torch.testing.assert_close(full.pair(full.inward(x), g), exact, rtol=1e-4, atol=1e-6)
    errors = []
    for lost in (0.5, 0.1, 1e-2):
        part = cut.contractions(lost)["m"]
        values = part.pair(part.inward(x), g)
        errors.append(float((values - exact).square().sum() / exact.square().sum()))
        assert errors[-1] <= 2 * count * lost  # twice: two bases; 400 tokens are not their expectation
    assert errors == sorted(errors, reverse=True)


def test_three_directions_take_low_rank_and_agree_with_gradients(learned) -> None:
    model, docs, directions = learned
    result = score(model, docs, directions, engine="ghost_low_rank")
    assert result.record["engine"] == "ghost_low_rank" and result.record["pass"] == "decoder"
    assert (
        result.record["forwards_per_token"] < 5.0
    )  # the whole products; the model is too narrow for much less
    expected = oracle(model, docs, [d.vectors for d in directions.values()])
    for k in range(3):
        assert np.corrcoef(result.benefit[:, k], expected[:, k])[0, 1] >= 0.9999
        centred = [c[:, k] - _source_means(c[:, k], docs) for c in (result.benefit, expected)]
        assert np.corrcoef(*centred)[0, 1] >= 0.998


def _source_means(values: np.ndarray, docs) -> np.ndarray:
    names = np.array([d.source for d in docs])
    return np.array([values[names == name].mean() for name in names])


def test_the_rank_is_raised_until_the_pilot_agrees(learned, monkeypatch: pytest.MonkeyPatch) -> None:
    model, docs, directions = learned
    monkeypatch.setattr(trial_module, "LOST", (0.6, 1e-6))
    result = score(model, docs, directions, engine="ghost_low_rank")
    assert "ghost_low_rank (0.6) engine did not agree" in result.record["notes"][0]
    assert result.record["pilot"]["within_source"] >= 0.999


def test_products_in_bfloat16_are_judged_by_the_float32_model(learned) -> None:
    model, docs, directions = learned
    result = score(model, docs, directions, precision="bfloat16", engine="ghost")
    assert result.record["dtype"] == "bfloat16" and result.record["pilot"]["reference"] == "forward"
    expected = oracle(model, docs, [d.vectors for d in directions.values()])
    assert 0 < np.abs(result.benefit - expected).max() < 0.1 * np.abs(expected).max()
    assert all(np.corrcoef(result.benefit[:, k], expected[:, k])[0, 1] > 0.9995 for k in range(3))
    assert model.embed_tokens.weight.dtype == torch.float32


def test_llama_runs_through_the_decoder_without_a_copy_of_its_weights() -> None:
    for tied in (True, False):
        model = llama(tied)
        twin = decoder_twin(adapt(model))
        assert twin is not None
        theirs = model.model.layers[1].mlp.up_proj.weight
        assert twin.adapter.model.layers[1].mlp.up_proj.weight.data_ptr() == theirs.data_ptr()
    docs, vectors = documents(6), [random_direction(model, 1), random_direction(model, 2)]
    result = score(model, docs, dict(enumerate(vectors)), engine="ghost", pack=True)
    assert result.record["pass"] == "decoder" and result.record["packed"]
    expected = oracle(model, docs, vectors)
    assert np.abs(result.benefit - expected).max() <= 1e-4 * np.abs(expected).max()
    # Hooks on the model itself give the same.
    model.requires_grad_(False)
    hooks = score_plan(Ghost(adapt(model), vectors), plan_of(docs), 2)
    assert np.abs(hooks - expected).max() <= 1e-4 * np.abs(expected).max()
    assert decoder_twin(adapt(gpt2())) is None
    with torch.no_grad():  # a model that computes something else than its configuration says
        model.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    assert decoder_twin(adapt(model)) is None
