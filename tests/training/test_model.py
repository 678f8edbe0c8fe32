"""The decoder: its size, its masks, its cache, its derivatives."""

import itertools

import pytest
import torch
from torch import Tensor

from curation.errors import DataError, RecipeError
from training.attention import attend, document_mask, has_varlen, rotary_frequencies, rotate, rotation
from training.losses import plain_cross_entropy
from training.model import MOBILELLM_R1_140M, PRESETS, Decoder, ModelConfig, preset

SHAPE = {"vocab_size": 61, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_dim": 48}
FAMILIES = {
    "llama4_text": {},
    "llama": {"family": "llama", "rope_style": "half", "qk_norm": "none"},
    "qwen2": {"family": "qwen2", "rope_style": "half", "qk_norm": "none", "qkv_bias": True, "tied": False},
    "qwen3": {"family": "qwen3", "rope_style": "half", "qk_norm": "rms_before_rope"},
}


def small(family: str = "llama4_text", **changes) -> Decoder:
    return Decoder(ModelConfig(**(SHAPE | FAMILIES[family] | changes))).init_weights(3)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilellm-r1-140m", 140_248_512),
        ("mobilellm-r1-360m", 359_431_168),
        ("mobilellm-r1-950m", 949_685_760),
    ],
)
def test_presets_have_the_published_sizes(name, parameters):
    with torch.device("meta"):
        model = Decoder(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters == PRESETS[name].parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_parameters_are_the_models(family):
    model = small(family)
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())


def test_flops_count_every_product_of_training():
    """Against torch's own counter, which sees the whole square of attention, not its causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    for family in ("llama4_text", "qwen3"):
        model, context = small(family, tied=False, vocab_size=128), 16
        with FlopCounterMode(display=False) as counter:
            model.logits(model(tokens(1, context))).sum().backward()
        config = model.config
        causal = 6 * config.layers * config.heads * config.head_dim * context  # half of the square
        vectors = 6 * sum(p.numel() for p in model.parameters() if p.dim() == 1)  # gains are not products
        expected = context * (config.flops_per_token(context) + causal - vectors)
        assert counter.get_total_flops() == expected
    # 0.95 GFLOP a token, half of it the head: the figures of the 140M model at 2k tokens
    assert MOBILELLM_R1_140M.flops_per_token(2048) == pytest.approx(0.95e9, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3},
        {"head_dim": 7},
        {"layers": 0},
        {"family": "gpt2"},
        {"rope_style": "half"},
        {"family": "llama"},
        {"qkv_bias": True},
    ],
)
def test_impossible_shapes_are_refused_in_a_sentence(wrong):
    with pytest.raises(RecipeError):
        ModelConfig(**(SHAPE | wrong))
    with pytest.raises(RecipeError, match="mobilellm-r1-140m"):
        preset("mobilellm-r2")


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = small().state_dict()
    torch.manual_seed(2)
    second = small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Decoder(ModelConfig(**SHAPE)).init_weights(4)
    assert not torch.equal(other.embed_tokens.weight, first["embed_tokens.weight"])
    deviation = (
        Decoder(ModelConfig(**(SHAPE | {"vocab_size": 4000}))).init_weights(0).embed_tokens.weight.std()
    )
    assert deviation.item() == pytest.approx(0.02, rel=0.02)


def test_both_rotations_follow_their_definition():
    positions = torch.tensor([[0, 3]])
    x = torch.randn(1, 1, 2, 6, dtype=torch.double)
    cos, sin = rotation(positions, rotary_frequencies(6, 100.0), x.dtype)
    angles = 3 / 100.0 ** (torch.arange(0, 6, 2) / 6)
    turned = torch.view_as_complex(x.reshape(1, 1, 2, 3, 2))[0, 0, 1] * torch.polar(torch.ones(3), angles).to(
        torch.cdouble
    )
    result = rotate(x, cos, sin, "interleaved")
    assert torch.equal(result[0, 0, 0], x[0, 0, 0])
    torch.testing.assert_close(result[0, 0, 1], torch.view_as_real(turned).flatten(), rtol=1e-6, atol=1e-6)
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    torch.testing.assert_close(rotate(x[..., order], cos, sin, "half"), result[..., order], rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eager_attention_is_torchs(masked, dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8, dtype=dtype) for heads in (6, 2, 2))
    mask = document_mask(torch.arange(18).reshape(2, 9) // 4) if masked else None
    ours = attend(query, key, value, mask, "eager")
    torch.testing.assert_close(ours, attend(query, key, value, mask, "sdpa"))


@pytest.mark.parametrize("tokens", [1, 5])
def test_eager_attention_in_bfloat16_is_that_of_its_numbers(tokens):
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 6, tokens, 8, generator=generator).bfloat16()
    key, value = (torch.randn(2, 3, 40, 8, generator=generator).bfloat16()[:, :, :37] for _ in range(2))
    mask = torch.rand(2, 1, tokens, 37, generator=generator) < 0.7
    exact = attend(query.double(), key.double(), value.double(), mask, "eager")
    found = attend(query, key, value, mask, "eager")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_give_the_hidden_states_they_have_alone(family, attention):
    model = small(family).double()
    model.attention = attention
    documents = [tokens(1, length, seed=length) for length in (5, 1, 7)]
    packed = torch.cat(documents, 1)
    ids = torch.tensor([[0] * 5 + [1] + [2] * 7])
    positions = torch.cat([torch.arange(n) for n in (5, 1, 7)])[None]
    alone = torch.cat([model(d) for d in documents], 1)
    torch.testing.assert_close(model(packed, positions=positions, document_ids=ids), alone)
    # Rotary attention knows distances only, so positions that are not reset change nothing but rounding.
    torch.testing.assert_close(model(packed, document_ids=ids), alone)
    assert (model(packed) - alone).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_decoding_with_a_cache_equals_the_full_forward(family, attention):
    model = small(family).double()
    model.attention = attention
    lengths, answer = torch.tensor([3, 6, 1]), tokens(3, 4, seed=9)
    prompts = tokens(3, 6)
    rows = [torch.cat((prompts[i, :n], answer[i])) for i, n in enumerate(lengths)]
    whole = [model(row[None])[0] for row in rows]

    cache = model.new_cache(3, 10)
    hidden = model(prompts, cache=cache)  # right-padded, here with tokens of no meaning
    cache.truncate(lengths)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(hidden[row, :n], whole[row][:n])
    for step in range(2):
        hidden = model(answer[:, step : step + 1], cache=cache)
        for row, n in enumerate(lengths):
            torch.testing.assert_close(hidden[row, 0], whole[row][n + step])
    hidden = model(answer[:, 2:], cache=cache)  # two tokens at once, in rows of different lengths
    for row, n in enumerate(lengths):
        torch.testing.assert_close(hidden[row], whole[row][n + 2 : n + 4])
    assert cache.lengths.tolist() == [7, 10, 5]


@torch.inference_mode()
def test_rows_of_a_cache_are_expanded_and_dropped():
    model = small().double()
    lengths, prompts = torch.tensor([4, 2]), tokens(2, 4)
    cache = model.new_cache(2, 7)
    model(prompts, cache=cache)
    cache.truncate(lengths)
    group = cache.expand(3)
    assert group.lengths.tolist() == [4, 4, 4, 2, 2, 2]
    first, second = tokens(6, 1, seed=5), tokens(6, 1, seed=6)
    model(first, cache=group)
    kept = torch.tensor([4, 1])
    group = group.select(kept)
    hidden = model(second[kept], cache=group)
    for at, row in enumerate(kept.tolist()):
        prompt = prompts[row // 3, : lengths[row // 3]]
        alone = model(torch.cat((prompt, first[row], second[row]))[None])
        torch.testing.assert_close(hidden[at, 0], alone[0, -1])
    short = group.select(torch.tensor([True, False]))
    assert (short.used, short.lengths.tolist(), group.used) == (4, [4], 6)
    assert cache.lengths.tolist() == [4, 2]  # the prefill is untouched and can be expanded again


def test_a_cache_refuses_what_it_cannot_hold():
    model = small()
    cache = model.new_cache(2, 4)
    with pytest.raises(DataError, match="2 rows with"):
        model(tokens(3, 2), cache=cache)
    with pytest.raises(DataError, match="4 slots"):
        model(tokens(2, 5), cache=cache)
    with pytest.raises(DataError, match="its own positions"):
        model(tokens(2, 2), document_ids=torch.zeros(2, 2), cache=cache)


def test_bfloat16_autocast_keeps_norms_and_residuals_wide():
    model = small()
    ids = tokens(2, 16)
    exact = model(ids)
    for attention in ("eager", "sdpa"):
        model.attention = attention
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(ids)
        assert rough.dtype == torch.float32
        assert 1e-5 < (rough - exact).abs().max() < 0.1
        rough.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def _loss(model: Decoder, ids: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    hidden = torch.func.functional_call(model, parameters, (ids,))
    return plain_cross_entropy(hidden[:, :-1], parameters[model.output_weight_name], ids[:, 1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_derivative_is_the_gradients_product(family):
    model = small(family).double()
    model.attention = "eager"
    ids = tokens(2, 6)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    tangent = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
    _, forward = torch.func.jvp(lambda p: _loss(model, ids, p), (parameters,), (tangent,))
    gradient = torch.func.grad(lambda p: _loss(model, ids, p))(parameters)
    reverse = sum((gradient[n] * tangent[n]).sum() for n in gradient)
    torch.testing.assert_close(forward, reverse)
    step = 1e-5
    moved = [{n: p + sign * step * tangent[n] for n, p in parameters.items()} for sign in (1, -1)]
    numeric = (_loss(model, ids, moved[0]) - _loss(model, ids, moved[1])) / (2 * step)
    torch.testing.assert_close(forward, numeric, rtol=1e-5, atol=1e-6)


def test_vmap_over_documents_and_second_derivatives():
    model = small().double()
    model.attention = "eager"
    ids = tokens(3, 5)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = torch.func.vmap(lambda row: _loss(model, row[None], parameters))(ids)
    torch.testing.assert_close(each, torch.stack([_loss(model, row[None], parameters) for row in ids]))
    gain = model.norm.weight
    hidden = model(ids[:, :-1])
    loss = plain_cross_entropy(hidden, model.output_weight, ids[:, 1:])
    (gradient,) = torch.autograd.grad(loss, gain, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), gain)
    assert second.abs().sum() > 0


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_documents_by_their_bounds_equal_documents_by_a_mask(
    kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel that a GPU has is replaced by its definition; what leads to it is ours."""
    config = ModelConfig(31, 16, 2, 2, kv_heads, 8, 24, initializer_range=0.3)
    model = Decoder(config).init_weights(0).double()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 31, (3, 20), generator=generator)
    documents = torch.rand(3, 20, generator=generator).lt(0.2).cumsum(1)
    documents[1:, 0] = documents[0, -1]  # one id at the end of a row and the start of the next
    documents = documents.sort(1).values
    model.attention = "sdpa"
    wanted = model(ids, document_ids=documents)
    calls: list[int] = []

    def varlen(
        query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, same: Tensor, *longest: int, **how: object
    ) -> Tensor:
        assert how == {"window_size": (-1, 0), "enable_gqa": kv_heads == 1} and bounds.dtype == torch.int32
        assert same is bounds and min(longest) >= int(bounds.diff().max())
        calls.append(1)
        out = torch.empty_like(query)
        for first, last in itertools.pairwise(bounds.tolist()):
            part = (x[None, first:last].transpose(1, 2) for x in (query, key, value))
            each = torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
            out[first:last] = each[0].transpose(0, 1)
        return out

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    monkeypatch.setattr("training.model.has_varlen", lambda device, dtype: True)
    model.attention = "auto"
    torch.testing.assert_close(model(ids, document_ids=documents), wanted, rtol=1e-12, atol=1e-12)
    assert len(calls) == config.layers


def test_the_varlen_kernel_is_only_for_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda = torch.device("cuda")
    assert has_varlen(cuda, torch.bfloat16) and not has_varlen(cuda, torch.float32)
    assert not has_varlen(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not has_varlen(cuda, torch.bfloat16)
