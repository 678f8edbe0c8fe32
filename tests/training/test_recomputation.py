"""Recomputed activations keep every bit and hold less; compiled layers compute the same; both from outside."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from curation.errors import MachineError
from tests.training.test_loop import CONFIG, make_order
from training import compilation
from training.compilation import compile_model, compiler_errors
from training.model import Decoder
from training.recomputation import recompute_layers
from training.update import accumulate_gradients

DEEP = replace(CONFIG, layers=4)


def gradients(model: Decoder, precision: str = "float32") -> list[torch.Tensor]:
    model.zero_grad()
    loss = accumulate_gradients(model, make_order().batch(0, 4), precision=precision)
    return [loss, *(p.grad.clone() for p in model.parameters())]


def kept_bytes(model: Decoder) -> int:
    """Bytes that a forward pass leaves for its backward, weights not counted."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = make_order().batch(0, 4)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model(batch.input_ids, batch.positions, batch.document_ids)
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_layers_have_the_same_bits(attention, precision, every):
    """As one function (auto, on a CPU) and as modules."""
    model = Decoder(DEEP).init_weights(0)
    model.attention = attention
    wanted = gradients(model, precision)
    recompute_layers(model, every)
    for ours, other in zip(gradients(model, precision), wanted, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_recomputed_layers_hold_only_their_input(attention):
    model = Decoder(DEEP).init_weights(0)
    model.attention = attention
    everything = kept_bytes(model)
    recompute_layers(model, 2)
    half = kept_bytes(model)
    recompute_layers(model, 1)
    least = kept_bytes(model)
    inputs = DEEP.layers * 4 * 32 * DEEP.dim * 4
    assert least < half < everything
    assert least < inputs + everything / 4


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_have_the_same_gradients():
    model = Decoder(CONFIG).init_weights(0)
    wanted = gradients(model)
    compile_model(model, "layers")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for ours, other in zip(gradients(model), wanted, strict=True):
        assert (ours - other).norm() <= 1e-5 * other.norm()
    # One graph that both layers share; without it, nothing was compiled.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_has_the_same_gradients(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a cache that no killed process has spoilt
    model = Decoder(CONFIG).init_weights(0)
    wanted = gradients(model)
    compile_model(model, "model")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for ours, other in zip(gradients(model), wanted, strict=True):
        assert (ours - other).norm() <= 1e-5 * other.norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1, "one graph, without breaks"


def test_what_the_compiler_cannot_do_is_a_sentence():
    from torch._inductor.exc import CppCompileError

    with (
        pytest.raises(MachineError, match=r"torch.compile has failed.*or set compile to none"),
        compiler_errors(),
    ):
        raise CppCompileError(["g++"], "invalid ELF header")
    with pytest.raises(ZeroDivisionError), compiler_errors():
        1 / 0  # noqa: B018


@pytest.mark.parametrize("what", ["layers", "model"])
def test_what_is_compiled_is_used_where_gradients_are_wanted_only(monkeypatch, what):
    used = []

    def pretend(plain):
        def compiled(*given, **named):
            used.append(plain)
            return plain(*given, **named)

        return compiled

    monkeypatch.setattr(torch, "compile", pretend)
    monkeypatch.setattr(compilation, "_check_compiler", lambda device: None)
    model = Decoder(CONFIG).init_weights(0)
    wanted = gradients(model)
    compile_model(model, what)
    batch = make_order().batch(0, 2)
    with torch.no_grad():
        model(batch.input_ids, batch.positions, batch.document_ids)
    assert used == []
    for ours, other in zip(gradients(model), wanted, strict=True):
        assert (ours - other).norm() <= 1e-5 * other.norm()
    assert len(used) == (CONFIG.layers if what == "layers" else 1)


def test_no_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match=r"needs a C\+\+ compiler on a CPU.*set compile to none"):
        compile_model(Decoder(CONFIG), "layers")
