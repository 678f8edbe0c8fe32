"""Muon moves what it should as torch's does, and a run with it resumes to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curation.errors import DataError, RecipeError
from mixing.influence import load_adam_moments
from tests.training.test_loop import CONFIG, SETTINGS, assert_same_run, make_order
from training.checkpoint import restore_checkpoint
from training.loop import train
from training.model import Decoder
from training.muon import muon_parameters
from training.optimizer import build_optimizer, moments, restore_moments, set_rate

MUON = replace(SETTINGS, optimizer="muon")
OPTIMIZER: dict[str, Any] = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}


def fill_gradients(model: Decoder, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_equals_torchs_muon_and_adamw_on_their_parameters() -> None:
    model, other = Decoder(CONFIG).init_weights(0), Decoder(CONFIG).init_weights(0)
    optimizer = build_optimizer("muon", model, **OPTIMIZER)
    theirs = dict(other.named_parameters())
    matrices = [p for name, p in theirs.items() if ".self_attn." in name or ".mlp." in name]
    gains = [p for name, p in theirs.items() if "norm" in name]
    assert len(matrices) + len(gains) + 1 == len(theirs) and len(matrices) == 7 * CONFIG.layers
    oracles = (
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([other.embed_tokens.weight], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
        torch.optim.AdamW(gains, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
    )
    for step in range(4):
        fill_gradients(model, step)
        fill_gradients(other, step)
        set_rate(optimizer, 0.01 * (step + 1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert all(p.grad is None for p in model.parameters())
        for oracle in oracles:
            set_rate(oracle, 0.01 * (step + 1))
            oracle.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7)
    assert len(muon_parameters(optimizer)) == len(matrices)


def test_a_step_is_about_as_long_as_adamws() -> None:
    lengths = {}
    for name in ("adamw", "muon"):
        model = Decoder(CONFIG).init_weights(0)
        before = model.get_parameter("layers.0.mlp.up_proj.weight").detach().clone()
        optimizer = build_optimizer(name, model, **OPTIMIZER | {"weight_decay": 0.0})  # type: ignore[arg-type]
        fill_gradients(model, 0)
        set_rate(optimizer, 0.01)
        optimizer.step()
        moved = model.get_parameter("layers.0.mlp.up_proj.weight").detach() - before
        lengths[name] = float(moved.square().mean().sqrt()) / 0.01
    assert lengths["adamw"] == pytest.approx(1.0, rel=1e-3)
    # Newton-Schulz leaves singular values between 0.7 and 1.2, so 0.2 sqrt(max) sqrt(min / (rows columns)).
    assert 0.7 * 0.2 < lengths["muon"] < 1.2 * 0.2


def test_what_it_remembers_comes_back() -> None:
    model, other = Decoder(CONFIG).init_weights(0), Decoder(CONFIG).init_weights(0)
    first, second = (build_optimizer("muon", m, **OPTIMIZER) for m in (model, other))
    for step in range(3):
        fill_gradients(model, step)
        set_rate(first, 0.01)
        first.step()
    saved = {name: value.clone() for name, value in moments(model, first).items()}
    matrix, gain = "layers.0.mlp.up_proj.weight", "layers.0.input_layernorm.weight"
    assert f"momentum_buffer.{matrix}" in saved and f"exp_avg_sq.{matrix}" not in saved
    assert f"exp_avg_sq.{gain}" in saved and all(value.any() for value in saved.values())
    other.load_state_dict(model.state_dict())
    restore_moments(other, second, saved, 3)
    for m, optimizer in ((model, first), (other, second)):
        fill_gradients(m, 3)
        set_rate(optimizer, 0.02)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


class Killed(Exception):
    """Stands for a kill."""


def test_exact_resume_and_no_second_moments_for_influence(tmp_path: Path) -> None:
    def evaluate(model: Decoder, step: int) -> dict[str, Any]:
        if step == 8 and killing:
            raise Killed
        return {"weight": float(model.norm.weight.sum())}

    killing = False
    train(CONFIG, make_order(), MUON, tmp_path / "whole", evaluate=evaluate)
    killing = True
    with pytest.raises(Killed):
        train(CONFIG, make_order(), MUON, tmp_path / "killed", evaluate=evaluate)
    assert (tmp_path / "killed" / "resume" / "step-5").is_dir()
    killing = False
    final = train(CONFIG, make_order(), MUON, tmp_path / "killed", evaluate=evaluate).final
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert any(n.startswith("momentum_buffer.") for n in load_file(final / "optimizer.safetensors"))
    with pytest.raises(RecipeError, match="trained with Muon, which keeps no second moments"):
        load_adam_moments(final)
    with pytest.raises(RecipeError, match="optimizer was 'muon'"):
        train(CONFIG, make_order(), SETTINGS, tmp_path / "whole")


def test_the_moments_of_another_optimizer_are_refused(tmp_path: Path) -> None:
    result = train(CONFIG, make_order(), replace(SETTINGS, steps=12, evaluate_steps=()), tmp_path)
    model = Decoder(CONFIG)
    optimizer = build_optimizer("muon", model, **OPTIMIZER)
    from training.checkpoint import read_state

    with pytest.raises(DataError, match=r"has no tensor 'momentum_buffer\."):
        restore_checkpoint(result.final, read_state(result.final).settings, model, optimizer)
    with pytest.raises(RecipeError, match="optimizer cannot be 'adam'"):
        train(CONFIG, make_order(), replace(SETTINGS, optimizer="adam"), tmp_path / "x")  # type: ignore[arg-type]
