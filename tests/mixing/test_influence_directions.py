"""Directions against explicit formulas, and what a benefit means: a real step on a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from curation.atomic import write_json
from curation.errors import DataError, RecipeError
from mixing.influence import (
    AdamMoments,
    SampleDocument,
    adapt,
    load_adam_moments,
    probe_directions,
    probe_gradient,
    score,
)
from mixing.influence.datainf import datainf_directions
from mixing.influence.ekfac import ekfac_directions
from mixing.influence.layer_gradients import DocumentGradients, LayerGradients
from mixing.influence.scorers import UnknownLayerError, norm
from tests.mixing.test_influence_engines import decoder, documents, gpt2, llama


def loss_of(model, docs) -> torch.Tensor:
    """Mean over all targets, written out."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for doc in docs:
        ids = torch.as_tensor(doc.ids)[None]
        logits = model.logits(model(ids[:, :-1]))[0]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        count += len(doc.ids) - 1
    return total / count


def gradient_of(model, docs) -> dict[str, torch.Tensor]:
    own = dict(model.named_parameters())
    return dict(zip(own, torch.autograd.grad(loss_of(model, docs), list(own.values())), strict=True))


def test_probe_gradient_is_of_the_mean_over_targets() -> None:
    model, probe = decoder().double(), documents(6, 1)
    gradient, loss, tokens = probe_gradient(model, probe, batch_tokens=70)
    assert loss == pytest.approx(loss_of(model, probe).item(), rel=1e-12)
    assert tokens == sum(len(d.ids) - 1 for d in probe)
    for name, expected in gradient_of(model, probe).items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-9, atol=1e-12)
    windowed, _, in_windows = probe_gradient(model, probe, context=7)
    assert in_windows == tokens and not torch.equal(windowed["norm.weight"], gradient["norm.weight"])


@pytest.mark.parametrize(
    ("make", "length", "tolerance"),
    # transformers' Llama takes its norms in float32, so a difference of losses needs a longer step.
    [(lambda: decoder(), 1e-5, 1e-6), (lambda: llama(True), 1e-3, 1e-3)],
    ids=["decoder", "llama"],
)
def test_a_step_on_a_document_changes_the_probe_loss_by_its_benefit(make, length, tolerance) -> None:
    """The meaning and the sign: theta - r grad L(x) lowers the probe loss by r times the benefit of x."""
    model = make().double()
    docs, probe = documents(9), documents(6, 1)
    result = score(model, docs, probe_directions(model, {"p": probe}), engine="ghost", pilot_documents=0)
    assert (result.benefit > 0).any()
    for doc, benefit in zip(docs, result.benefit[:, 0], strict=True):
        gradient, _, _ = probe_gradient(model, [doc])
        rate = length / norm(gradient)
        losses = []
        for side in (-rate, rate):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.add_(gradient[name], alpha=side)
            losses.append(probe_gradient(model, probe)[1])
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.sub_(gradient[name], alpha=side)
        lowered = losses[1] - losses[0]  # gradient ascent minus descent
        assert lowered / (2 * rate) == pytest.approx(benefit, rel=tolerance, abs=tolerance)
        assert (losses[0] < losses[1]) == (benefit > 0)


def test_copies_help_and_other_text_does_not() -> None:
    """On a model that has begun to learn: a probe document helps the probe most, noise does not."""
    rng = np.random.default_rng(0)
    # Text that counts up; the probe counts as well, noise does not.
    count = [
        SampleDocument(f"c{i}", "count", np.arange(s, s + 12) % 61) for i, s in enumerate(range(0, 60, 4))
    ]
    noise = [SampleDocument(f"n{i}", "noise", rng.integers(0, 61, 12)) for i in range(10)]
    model = decoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, count[::2]).backward()
        optimizer.step()
    probe = count[1::4]
    result = score(model, [*probe, *noise], probe_directions(model, {"p": probe}))
    copies, others = result.benefit[: len(probe), 0], result.benefit[len(probe) :, 0]
    assert copies.min() > 0 and copies.min() > others.max()


def test_adam_direction() -> None:
    model, probe = decoder().double(), documents(5, 1)
    gradient = gradient_of(model, probe)
    generator = torch.Generator().manual_seed(0)
    second = {n: torch.rand(g.shape, generator=generator, dtype=g.dtype) for n, g in gradient.items()}
    moments = AdamMoments(second, step=3, beta2=0.9, epsilon=0.01)
    found = probe_directions(model, {"p": probe}, "adam", moments=moments)["p"]
    for name, g in gradient.items():
        expected = g / (torch.sqrt(second[name] / (1 - 0.9**3)) + 0.01)
        torch.testing.assert_close(found.vectors[name], expected, rtol=1e-9, atol=1e-13)
    assert found.preconditioner == "adam" and found.probe_documents == 5
    second["embed_tokens.weight"][7] = 0.0  # a token that training has never met
    unseen = moments.precondition(gradient)["embed_tokens.weight"]
    assert not unseen[7].any()
    torch.testing.assert_close(unseen[8], found.vectors["embed_tokens.weight"][8], rtol=1e-9, atol=1e-13)


def test_adam_moments_of_a_checkpoint(tmp_path: Path) -> None:
    """What torch's AdamW would move for a fresh gradient, with the moments that the trainer saves."""
    model, probe = decoder(), documents(5, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(model, documents(3, seed)).backward()
        optimizer.step()
    state = {f"exp_avg_sq.{n}": optimizer.state[p]["exp_avg_sq"].clone() for n, p in model.named_parameters()}
    save_file(state, tmp_path / "optimizer.safetensors")
    write_json(
        tmp_path / "state.json", {"step": 3, "settings": {"training": {"beta2": 0.95, "epsilon": 1e-8}}}
    )
    moments = load_adam_moments(tmp_path)
    assert moments.step == 3 and set(moments.second) == {n for n, _ in model.named_parameters()}
    found = probe_directions(model, {"p": probe}, "adam", moments=moments)["p"].vectors
    name = "layers.0.mlp.up_proj.weight"
    variance = state[f"exp_avg_sq.{name}"] / (1 - 0.95**3)
    expected = gradient_of(model, probe)[name] / (variance.sqrt() + 1e-8)
    torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def test_adam_without_moments_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="choose identity"):
        probe_directions(decoder(), {"p": documents(3)}, "adam")
    with pytest.raises(RecipeError, match=r"optimizer\.safetensors"):
        load_adam_moments(tmp_path)


def test_datainf_equals_the_formula_and_a_dense_inverse() -> None:
    model = decoder().double()
    probe, curvature = documents(4, 1), documents(5, 2)
    chosen = ["norm.weight", "layers.0.input_layernorm.weight", "layers.1.self_attn.k_proj.weight"]
    rows = {n: [] for n in chosen}
    for doc in curvature:
        for name, g in gradient_of(model, [doc]).items():
            if name in rows:
                rows[name].append(g.flatten())
    v = gradient_of(model, probe)
    found = probe_directions(
        model, {"p": probe}, "datainf", curvature=curvature, parameters=lambda name: name in chosen
    )["p"].vectors
    assert set(found) == set(chosen)
    for name in chosen:
        g, flat = torch.stack(rows[name]), v[name].flatten()
        damping = 0.1 * g.square().sum() / (len(g) * flat.numel())
        eye = torch.eye(flat.numel(), dtype=torch.float64)
        dense = sum(torch.linalg.inv(torch.outer(r, r) + damping * eye) for r in g) / len(g)
        torch.testing.assert_close(found[name].flatten(), dense @ flat, rtol=1e-7, atol=1e-9)
        written_out = sum(flat - (flat @ r) / (damping + r @ r) * r for r in g) / (len(g) * damping)
        torch.testing.assert_close(found[name].flatten(), written_out, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [decoder, lambda: decoder(tied=False), lambda: llama(True), gpt2])
def test_datainf_by_factors_equals_the_gradients_of_documents(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied and untied, biases, norms, position embeddings; several documents in a batch, of several lengths."""
    adapter = adapt(make().double())
    curvature = documents(6, 2)
    gradients = {str(i): probe_gradient(adapter, documents(3, 5 + i))[0] for i in range(2)}
    seen = []
    for by_factors in (None, True, False):  # the choice, and either way of a matrix's squares and products
        if by_factors is not None:
            monkeypatch.setattr(DocumentGradients, "_factors_cost_less", lambda *_, by=by_factors: by)
        seen.append(datainf_directions(adapter, gradients, curvature)[0])
    visits = []
    monkeypatch.setattr(LayerGradients, "visit", lambda *_: visits.append(1) or refuse())
    written_out = datainf_directions(adapter, gradients, curvature)[
        0
    ]  # falls back to one gradient a document
    assert visits
    for found in seen:
        for probe, vectors in written_out.items():
            assert found[probe].keys() == vectors.keys()
            for name, v in vectors.items():
                scale = float(v.abs().max())
                torch.testing.assert_close(found[probe][name], v, rtol=1e-9, atol=1e-10 * scale)


def refuse() -> None:
    raise UnknownLayerError("refused")


def test_datainf_with_one_document_is_the_exact_damped_inverse_and_layers_may_be_joined() -> None:
    model = decoder().double()
    probe, curvature = documents(3, 1), documents(1, 2)
    chosen = ["norm.weight", "layers.0.input_layernorm.weight"]
    v = {n: g for n, g in gradient_of(model, probe).items() if n in chosen}
    found, spent = datainf_directions(adapt(model), {"p": v}, curvature, layer=lambda _: "one", damping=0.3)
    g = torch.cat([gradient_of(model, curvature)[n] for n in sorted(chosen)])
    flat = torch.cat([v[n] for n in sorted(chosen)])
    matrix = torch.outer(g, g) + 0.3 * g.square().sum() / len(g) * torch.eye(len(g), dtype=torch.float64)
    torch.testing.assert_close(
        torch.cat([found["p"][n] for n in sorted(chosen)]),
        torch.linalg.solve(matrix, flat),
        rtol=1e-8,
        atol=1e-10,
    )
    assert spent == 6 * (len(curvature[0].ids) - 1)


def test_chosen_parameters() -> None:
    tied, untied = decoder(), decoder(tied=False)
    probe = {"p": documents(4, 1)}
    assert set(probe_directions(tied, probe, parameters="embedding_and_output")["p"].vectors) == {
        "embed_tokens.weight"
    }
    direction = probe_directions(untied, probe, parameters="embedding_and_output")["p"]
    assert set(direction.vectors) == {"embed_tokens.weight", "lm_head.weight"}
    whole = probe_directions(untied, probe)["p"]
    assert torch.equal(whole.vectors["lm_head.weight"], direction.vectors["lm_head.weight"])
    assert direction.norm < whole.norm and direction.hash != whole.hash
    docs = documents(7)
    a = score(untied, docs, {"p": direction}, engine="ghost").benefit
    b = score(untied, docs, {"p": direction}, engine="forward").benefit
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    with pytest.raises(RecipeError, match="leaves none"):
        probe_directions(tied, probe, parameters=lambda name: False)


def test_bad_probes() -> None:
    with pytest.raises(DataError, match="probe set is empty"):
        probe_directions(decoder(), {"p": []})
    with pytest.raises(RecipeError, match="no preconditioner"):
        probe_directions(decoder(), {"p": documents(2)}, "newton")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="needs training documents"):
        probe_directions(decoder(), {"p": documents(2)}, "datainf")


def test_ekfac_equals_the_formula_by_loops_and_a_dense_inverse() -> None:
    model = decoder(tied=False).double()
    probe, curvature = documents(3, 1), documents(4, 2)
    name = "layers.0.self_attn.k_proj.weight"
    chosen = [name, "embed_tokens.weight", "lm_head.weight", "norm.weight"]
    v = probe_gradient(model, probe, parameters=lambda n: n in chosen)[0]
    found, _ = ekfac_directions(adapt(model), {"p": v}, curvature, seed=5)
    assert set(found["p"]) == set(chosen)

    inputs, slopes, heads, outs, tokens, embedded = [], [], [], [], [], []
    gains = torch.zeros(32, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    # Rows are visited from the shortest on.
    for doc in sorted(curvature, key=lambda d: len(d.ids)):
        ids = torch.as_tensor(doc.ids)[None]
        kept: dict = {}

        def keep(layer, args, output, kept=kept) -> None:
            kept[type(layer)] = (args[0], output)

        watched = [model.layers[0].self_attn.k_proj, model.embed_tokens]
        hooks = [layer.register_forward_hook(keep) for layer in watched]
        hidden = model(ids[:, :-1])
        logits = model.logits(hidden)
        labels = torch.multinomial(logits.detach()[0].float().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits[0], labels, reduction="sum")
        wanted = [kept[nn.Linear][1], kept[nn.Embedding][1], logits, model.norm.weight]
        y, e, z, gain = torch.autograd.grad(loss, wanted)
        for hook in hooks:
            hook.remove()
        inputs += list(kept[nn.Linear][0][0].detach())
        slopes, embedded, outs = slopes + list(y[0]), embedded + list(e[0]), outs + list(z[0])
        heads, tokens = heads + list(hidden[0].detach()), tokens + ids[0, :-1].tolist()
        gains += gain.square()
    count = len(inputs)

    def basis(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.linalg.eigh(sum(torch.outer(r, r) for r in rows))[1]

    q_a, q_s = basis(inputs), basis(slopes)
    moments = sum(
        torch.outer((q_s.T @ s) ** 2, (q_a.T @ a) ** 2) for s, a in zip(slopes, inputs, strict=True)
    )
    damped = moments / count + 0.1 * moments.mean() / count
    dense = torch.kron(q_s, q_a) @ torch.diag(damped.flatten()) @ torch.kron(q_s, q_a).T
    expected = torch.linalg.solve(dense, v[name].flatten()).view_as(v[name])
    torch.testing.assert_close(found["p"][name], expected, rtol=1e-6, atol=1e-9)

    one_hot = torch.eye(61, dtype=torch.float64)[tokens]
    for parameter, rows, basis_of in (
        ("lm_head.weight", zip(outs, heads, strict=True), heads),
        ("embed_tokens.weight", zip(one_hot, embedded, strict=True), embedded),
    ):
        q = basis(basis_of)
        moments = sum(torch.outer(left**2, (q.T @ right) ** 2) for left, right in rows) / count
        expected = (v[parameter] @ q / (moments + 0.1 * moments.mean())) @ q.T
        torch.testing.assert_close(found["p"][parameter], expected, rtol=1e-6, atol=1e-9)
    diagonal = gains / count
    expected = v["norm.weight"] / (diagonal + 0.1 * diagonal.mean())
    torch.testing.assert_close(found["p"]["norm.weight"], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "make", [lambda: decoder(), lambda: llama(False), gpt2], ids=["tied", "llama", "gpt2"]
)
def test_ekfac_covers_every_parameter_of_any_model(make) -> None:
    model, curvature = make(), documents(5, 2)
    found = probe_directions(model, {"p": documents(3, 1)}, "ekfac", curvature=curvature)["p"]
    assert set(found.vectors) == {n for n, _ in model.named_parameters()}
    assert np.isfinite(found.norm)
    # The inverse is positive definite: every part stays within a right angle of its gradient.
    gradient = probe_gradient(model, documents(3, 1))[0]
    assert all((gradient[n] * found.vectors[n]).sum() > 0 for n in gradient)
