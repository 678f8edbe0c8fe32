"""A fused layer makes the numbers of the plain one, and steps aside where its inside is wanted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import training.model
from training.model import Decoder, ModelConfig

STYLES: dict[str, dict[str, Any]] = {
    "mobilellm": {},
    "no norm": {"qk_norm": "none"},
    "llama": {"rope_style": "half", "qk_norm": "none", "family": "llama"},
}


def decoder(seed: int = 0, **changes: object) -> Decoder:
    """Weights large enough for attention to be far from uniform, and gains that are not 1."""
    config = ModelConfig(40, 16, 2, 4, 2, 8, 24, rope_theta=1e4, initializer_range=0.3, **changes)  # type: ignore[arg-type]
    model = Decoder(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0, 0.3, generator=generator)
    return model


def packed(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions and document ids of two rows with documents of 60 tokens."""
    ids = torch.randint(0, 40, (2, tokens), generator=torch.Generator().manual_seed(2))
    steps = torch.arange(tokens).expand(2, tokens)
    return ids, steps % 60, steps // 60


def outcome(model: Decoder, attention: str, batch: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Hidden states, and the gradient of a function of them for every parameter."""
    model.attention = attention  # type: ignore[assignment]
    model.zero_grad()
    hidden = model(*batch)
    hidden.sin().sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def count_fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every fused layer that runs."""
    calls: list[int] = []
    plain = training.model.FusedLayer.apply

    def counted(*arguments: object) -> Tensor:
        calls.append(1)
        return plain(*arguments)

    monkeypatch.setattr(training.model.FusedLayer, "apply", counted)
    return calls


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("tokens", [5, 128, 150, 300])
def test_equal_to_the_plain_layer_in_float64(
    style: str, documents: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_fused(monkeypatch)
    model = decoder(**STYLES[style]).double()
    ids, positions, document_ids = packed(tokens)
    batch = (ids, positions, document_ids) if documents else (ids, None, None)
    fused, plain = outcome(model, "auto", batch), outcome(model, "eager", batch)
    assert len(calls) == 2 and len(fused) == 1 + len(list(model.parameters()))
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_bfloat16_is_as_near_to_float64_as_the_plain_layer() -> None:
    errors = {"auto": 0.0, "eager": 0.0}
    batch = packed(150)
    for seed in range(6):  # the error of one draw varies by a third
        exact = outcome(decoder(seed).double(), "eager", batch)
        for attention in errors:
            with torch.autocast("cpu", torch.bfloat16):
                found = outcome(decoder(seed), attention, batch)
            assert {x.dtype for x in found} == {torch.float32}
            errors[attention] += sum(
                float((x - right).norm() / right.norm()) for x, right in zip(found, exact, strict=True)
            ) / (6 * len(exact))
    assert errors["auto"] < 1.15 * errors["eager"] < 0.05


@pytest.mark.parametrize(
    "reason", ["hook", "attention", "transform", "learned query norm", "cache", "module"]
)
def test_steps_aside(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_fused(monkeypatch)
    qwen3: dict[str, Any] = {"rope_style": "half", "qk_norm": "rms_before_rope", "family": "qwen3"}
    model = decoder(**(qwen3 if reason == "learned query norm" else {}))
    seen: list[int] = []
    if reason == "hook":
        model.get_submodule("layers.0.mlp.down_proj").register_forward_hook(lambda *_: seen.append(1))
    if reason == "attention":
        model.attention = "sdpa"
    if reason == "module":
        layer = model.get_submodule("layers.1")
        layer.mlp = torch.nn.Sequential(layer.get_submodule("mlp"))
    ids = packed(20)[0]
    if reason == "transform":
        weights: dict[str, Tensor] = dict(model.named_parameters())
        torch.func.vmap(lambda row: torch.func.functional_call(model, weights, (row[None],)))(ids)
    elif reason == "cache":
        with torch.no_grad():
            model(ids, cache=model.new_cache(2, 20))
    else:
        model(ids)
    assert not calls and (reason != "hook" or seen)


def test_frozen_weights_stay_without_gradient() -> None:
    model = decoder()
    model.layers[0].requires_grad_(False)
    model(packed(20)[0]).sum().backward()
    assert all(p.grad is None for p in model.layers[0].parameters())
    assert all(p.grad is not None for p in model.layers[1].parameters())
