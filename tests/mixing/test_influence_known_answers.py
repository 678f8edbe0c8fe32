"""What influence must say where the answer is known, and iterating bounded steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from curation.errors import DataError, RecipeError
from mixing.influence import (
    AssemblySettings,
    Round,
    SampleDocument,
    checkpoint_weights,
    densities,
    iterate,
    joint_benefit,
    probe_directions,
    score,
)
from mixing.influence.bootstrap import resampled_weights
from mixing.influence.joint import benefit_matrix, column_factors
from tests.mixing.test_influence_assembly import HAND
from tests.mixing.test_influence_checkpoints import Trained
from training.model import Decoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("known"))


def decoder(trained: Trained) -> Decoder:
    from training.checkpoint import load_checkpoint_model

    return load_checkpoint_model(trained.job(12).checkpoint, averaged=False).double()


def test_a_copy_of_a_probe_document_helps_and_shuffled_text_and_noise_do_not(trained: Trained) -> None:
    model, rng = decoder(trained), np.random.default_rng(0)
    probe = trained.probes["code"]
    copies = [SampleDocument(f"copy {d.id}", "copy", d.ids) for d in probe]
    shuffled = [
        SampleDocument(f"shuffled {d.id}", "shuffled", np.append(d.ids[:1], rng.permutation(d.ids[1:])))
        for d in trained.probes["knowledge"]
    ]
    vocabulary = len(trained.tokenizer)
    noise = [SampleDocument(f"noise {i}", "noise", rng.integers(0, vocabulary, 20)) for i in range(6)]
    table = score(
        model, [*copies, *shuffled, *noise], probe_directions(model, {"code": probe}), engine="forward"
    ).table("code", checkpoint=1)
    benefit = {r["document"]: r["benefit"] for r in table.to_pylist()}
    assert all(benefit[d.id] > 0 for d in copies)
    rho = densities(joint_benefit(table))
    assert rho["copy"] > 0 and rho["copy"] > 5 * max(rho["shuffled"], rho["noise"], 0.0)
    assert rho["noise"] <= 0 or rho["noise"] < 0.1 * rho["copy"]


def probe_loss(model: Decoder, documents: list[SampleDocument]) -> torch.Tensor:
    """Mean nats over all targets, by plain torch."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for document in documents:
        ids = torch.as_tensor(np.asarray(document.ids, dtype=np.int64))
        logits = model.logits(model(ids[None, :-1]))[0]
        total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        count += len(ids) - 1
    return total / count


def test_the_joint_score_of_a_source_is_the_derivative_of_the_probe_loss_by_retraining(
    trained: Trained,
) -> None:
    """Two checkpoints, each followed by one step of SGD on the mixture; the weight of a source is moved a little.

    d/dw_g of sum_t alpha_t L(theta_t - eta sum_h w_h grad L_h(theta_t)) is -eta rho_g at a small eta, with L_h the
    token mean over source h. Retrained at w +- h, with no code of mixing.influence.
    """
    probe = trained.probes["code"]
    sources = {s: [d for d in trained.samples if d.source == s][:4] for s in ("code", "prose")}
    alphas = checkpoint_weights([6, 12], "step")
    eta, small = 1e-5, 0.25

    def retrained(weights: dict[str, float]) -> float:
        total = 0.0
        for step, alpha in alphas.items():
            from training.checkpoint import load_checkpoint_model

            model = load_checkpoint_model(trained.job(step).checkpoint, averaged=False).double()
            loss = sum(w * probe_loss(model, sources[s]) for s, w in weights.items())
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= eta * parameter.grad
                total += alpha * float(probe_loss(model, probe))
        return total

    tables = []
    for step in alphas:
        from training.checkpoint import load_checkpoint_model

        model = load_checkpoint_model(trained.job(step).checkpoint, averaged=False).double()
        documents = [d for its in sources.values() for d in its]
        found = score(
            model, documents, probe_directions(model, {"code": probe}), engine="forward", pilot_documents=0
        )
        tables.append(found.table("code", checkpoint=step))
    import pyarrow as pa

    rho = densities(joint_benefit(pa.concat_tables(tables)))
    for name in sources:
        base = dict.fromkeys(sources, 0.5)
        up, down = base | {name: 0.5 + small}, base | {name: 0.5 - small}
        derivative = -(retrained(up) - retrained(down)) / (2 * small * eta)
        assert derivative == pytest.approx(rho[name], rel=2e-3)


def test_intervals_over_checkpoints_are_wider_than_over_documents_alone() -> None:
    matrix = benefit_matrix(HAND, ["code"])
    factors = column_factors(matrix.columns, "step")
    spans = {}
    for drawn in (True, False):
        found = resampled_weights(
            matrix, factors, AssemblySettings(resample_checkpoints=drawn, resamples=400)
        )
        by = {w.source: w for w in found}
        assert by["a"].rho == pytest.approx((7.0 * 1 + 1.5 * 3) / 4) and by["b"].clipped
        spans[drawn] = by["a"].rho_high - by["a"].rho_low
    assert spans[True] > spans[False] > 0
    # A single document: only the checkpoints vary, between -1 and -1.
    assert by["b"].rho_low == by["b"].rho_high == -1.0


def test_best_checkpoints() -> None:
    columns = [("code", 10), ("code", 30), ("maths", 20), ("maths", 60)]
    losses = dict(zip(columns, (3.0, 2.0, 1.0, 2.0), strict=True))
    assert column_factors(columns, "best", probe_losses=losses) == dict(
        zip(columns, (0, 0.6, 0.4, 0), strict=True)
    )
    with pytest.raises(RecipeError, match="probe loss of code at step 10 is not known"):
        column_factors(columns, "best")


def test_iterating_bounded_steps_reaches_a_known_optimum_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Loss sum_g (w_g - best_g)^2: the density of g is its negative derivative."""
    best = {"a": 0.6, "b": 0.3, "c": 0.1}
    asked: list[int] = []

    def densities_at(number: int, mixture) -> dict[str, float]:
        asked.append(number)
        return {name: best[name] - mixture[name] for name in best}

    uniform = dict.fromkeys(best, 1.0)
    rounds = iterate(uniform, densities_at, step=0.8, rounds=25, shrink=0.85, tolerance=1e-4)
    assert rounds[-1].after == {name: pytest.approx(w, abs=0.02) for name, w in best.items()}
    assert all(r.after[n] / r.before[n] <= np.exp(2 * 0.8) for r in rounds for n in best)
    assert asked == list(range(len(rounds)))
    done = [Round(**r.record()) for r in rounds[:3]]
    asked.clear()
    again = iterate(uniform, densities_at, step=0.8, rounds=25, shrink=0.85, tolerance=1e-4, done=done)
    assert asked[0] == 3 and [r.after for r in again] == [r.after for r in rounds]
    with pytest.raises(DataError, match="'c' has a weight or a density but not both"):
        iterate(uniform, lambda n, m: {"a": 1.0, "b": 0.0})
    with pytest.raises(RecipeError, match="0 rounds"):
        iterate(uniform, densities_at, rounds=0)
