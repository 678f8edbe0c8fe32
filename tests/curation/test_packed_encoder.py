"""The packed encoder gives transformers' own states, in any company; int8 shares its rounding as its module says."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from curation.int8 import Int8Product, calibrated, fast_int8, to_int8
from curation.packed_encoder import PackedEncoder, Site, can_pack, equal_spans, pack
from curation.precision import to_bfloat16

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"vocab_size": 90, "max_position_embeddings": 40, "initializer_range": 0.2}  # type: ignore[dict-item]
LENGTHS = (30, 7, 7, 1, 18)


def body(kind: str = "bert") -> BertModel | RobertaModel:
    torch.manual_seed(0)
    made = BertModel(BertConfig(**SHAPE)) if kind == "bert" else RobertaModel(RobertaConfig(**SHAPE))  # type: ignore[arg-type]
    for norm in (module for module in made.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight, 1, 0.3)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    return made.eval()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, 90, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": torch.where(mask, ids, 1), "attention_mask": mask.long()}


def exact(site: Site) -> object:
    """Products in float32, so that nothing but the layers' order can differ."""
    return lambda rows: F.linear(rows.float(), site.weight, site.bias)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_with_exact_products_it_is_transformers_own(kind: str) -> None:
    own, packed = body(kind), body(kind)
    assert can_pack(packed)
    pack(packed, exact)  # type: ignore[arg-type]
    with torch.inference_mode():
        truth, found = own(**batch()), packed(**batch())
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(
                found.last_hidden_state[row, :length],
                truth.last_hidden_state[row, :length],
                atol=2e-5,
                rtol=0,
            )
        torch.testing.assert_close(found.pooler_output, truth.pooler_output, atol=2e-5, rtol=0)
        assert not found.last_hidden_state[3, 1:].any()  # nothing is computed where there is only padding
        whole = {"input_ids": batch()["input_ids"][:1]}
        torch.testing.assert_close(
            packed(**whole).last_hidden_state, own(**whole).last_hidden_state, atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("narrow", [to_bfloat16, to_int8])
def test_a_rough_pass_is_near_and_a_document_does_not_see_its_company(narrow: object) -> None:
    if narrow is to_int8 and not fast_int8():
        pytest.skip("this processor has no instructions for products of 8-bit numbers")
    own, rough = body(), narrow(body())  # type: ignore[operator]
    assert isinstance(rough.encoder, PackedEncoder)
    with torch.inference_mode():
        truth, found = own(**batch()).last_hidden_state, rough(**batch()).last_hidden_state
        alone = rough(input_ids=batch()["input_ids"][1:2, :7]).last_hidden_state[0]
        error = (found[0] - truth[0]).norm() / truth[0].norm()
        assert 1e-4 < error < 0.05
        # Other sums of bfloat16 products may round otherwise, but whole companions would change far more.
        assert (alone - found[1, :7]).norm() < 0.02 * alone.norm()


def test_decoders_and_other_models_keep_their_layers() -> None:
    decoder = BertModel(BertConfig(**SHAPE, is_decoder=True))  # type: ignore[arg-type]
    assert not can_pack(decoder) and not can_pack(torch.nn.Linear(2, 2))
    to_bfloat16(decoder)
    assert not isinstance(decoder.encoder, PackedEncoder) and decoder.dtype == torch.bfloat16


def test_spans_cover_every_row_once() -> None:
    for heads in (1, 12):
        lengths = [512] * 9 + [3, 3, 0, 4]
        spans = list(equal_spans(lengths, heads))
        rows = [row for start, count, tokens in spans for row in range(start, start + count * tokens)]
        assert rows == list(range(sum(lengths)))
    assert next(equal_spans([512] * 9, 1)) == (0, 4, 512)


@pytest.mark.skipif(not fast_int8(), reason="no instructions for products of 8-bit numbers")
def test_shared_rounding_errs_less_where_few_channels_are_large() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 64), torch.randn(24)
    x = torch.randn(50, 64)
    x[:, :3] = x[:, :3] * 40 + 30
    exact_ = x @ weight.T + bias
    centre, spread = x.mean(0), (x - x.mean(0)).abs().amax(0)
    shared = Int8Product(weight, bias, centre, (spread / weight.abs().amax(0)).sqrt())
    plain = Int8Product(weight, bias)
    with torch.inference_mode():
        errors = [float((product(x).float() - exact_).square().mean().sqrt()) for product in (shared, plain)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.skipif(not fast_int8(), reason="no instructions for products of 8-bit numbers")
def test_the_rounded_model_is_a_function_of_the_model_alone() -> None:
    made = body()
    first, second = (to_int8(copy.deepcopy(made)) for _ in range(2))
    inputs = calibrated(made)
    assert len(inputs) == 8 and inputs[1, "down"].shape[1] == 48
    assert not any(module._forward_pre_hooks for module in made.modules())
    with torch.inference_mode():
        assert torch.equal(first(**batch()).last_hidden_state, second(**batch()).last_hidden_state)
