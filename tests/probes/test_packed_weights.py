"""Packed matrices multiply as the integers and scales say, for few rows and for many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from probes.packed_weights import (
    FEW_ROWS,
    Int4Linear,
    Int8Linear,
    PackedEmbedding,
    pack,
    quantised_tokens,
)

WIDTH, GROUP = 128, 32


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(rows: int, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(low, high, (rows, WIDTH), generator=generator).to(torch.int8)


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 70])
@pytest.mark.parametrize("outputs", [48, 37])
def test_eight_bits(rows: int, outputs: int) -> None:
    whole, scales, bias = (
        integers(outputs, -128, 128),
        drawn(outputs, 1, seed=1).abs(),
        drawn(outputs, seed=2),
    )
    x = drawn(rows, WIDTH).to(torch.bfloat16)
    right = x.double() @ (whole * scales.double()).T + bias.double()
    found = Int8Linear(whole, scales, bias)(x[:, None])
    assert found.dtype == torch.bfloat16 and found.shape == (rows, 1, outputs)
    assert distance(found[:, 0], right) < 4e-3  # two roundings to bfloat16


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("outputs", [48, 37])
def test_four_bits_of_quantised_activations(rows: int, outputs: int) -> None:
    whole = integers(outputs, -8, 8)
    scales = drawn(outputs, WIDTH // GROUP, seed=1).abs().to(torch.bfloat16).float()
    x = drawn(rows, WIDTH)
    matrix = whole.double() * scales.double().repeat_interleave(GROUP, 1)
    counts, step = quantised_tokens(x)
    right = (counts.double() * step.double()) @ matrix.T
    assert distance(Int4Linear(whole, scales)(x), right) < 4e-3
    bias = drawn(outputs, seed=2)
    assert distance(Int4Linear(whole, scales, bias)(x), right + bias.double()) < 4e-3
    # and that is near the product of what was not quantised
    assert distance(x.double() @ matrix.T, right) < 2e-2


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20))
def test_tokens_come_back_within_a_step(values: list[float]) -> None:
    x = torch.tensor([values])
    counts, step = quantised_tokens(x)
    assert counts.abs().max() <= 255 and torch.equal(counts, counts.to(torch.bfloat16).float())
    # half a step for the number, half for the zero, which the range's ends may be clipped by
    assert ((counts * step - x).abs() <= 1.01 * step + 1e-30).all()
    assert (counts[x == 0] == 0).all()


def test_embeddings_are_the_numbers_of_their_groups() -> None:
    whole, scales = integers(20, -8, 8), drawn(20, WIDTH // GROUP).abs()
    ids = torch.tensor([[3, 19], [0, 3]])
    right = (whole * scales.repeat_interleave(GROUP, 1))[ids].to(torch.bfloat16)
    assert torch.equal(PackedEmbedding(whole, scales)(ids), right)


def test_what_torchao_did_not_touch_stays() -> None:
    linear = nn.Linear(4, 4)
    assert pack(linear) is linear


@pytest.mark.parametrize("precision", ["int8", "8da4w"])
def test_the_numbers_are_torchao_s(precision: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    linear = nn.Linear(WIDTH, 48).requires_grad_(False)
    x = drawn(5, WIDTH)
    if precision == "int8":
        config = quantization.Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        config = quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            weight_granularity=quantization.PerGroup(GROUP),
        )
    quantization.quantize_(holder := nn.Sequential(linear), config)
    theirs = holder(x).double()
    packed = pack(holder[0])
    assert isinstance(packed, Int8Linear | Int4Linear)
    assert (
        distance(packed(x), theirs) < 8e-3 < distance(nn.functional.linear(x, torch.ones(48, WIDTH)), theirs)
    )
