"""DoReMi's runs: against a loop written by hand in float64, and killed ones against one that was not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import training.loop as loop
from curation.errors import RecipeError
from mixing.doremi_run import DomainWeigher, DoremiSettings, run_doremi
from mixing.fit import fit_mixture
from tests.mixing.worlds import make_settings
from training.losses import IGNORED
from training.model import Decoder
from training.order import DataOrder, MixtureSchedule, Phase
from training.run_log import read_rows
from training.tokens import TokenSource
from training.update import accumulate_gradients

MIXTURE = {"code": 0.5, "wiki": 0.25, "noise": 0.25}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doremi")
    settings = make_settings(folder, resume_every=2, precision="float32")
    return folder, settings, run_doremi(settings, folder / "whole", reference=MIXTURE)


def test_a_weigher_does_what_a_loop_by_hand_does(study) -> None:
    _, settings, _ = study
    sources = {name: TokenSource.open(settings.tokens[name]) for name in MIXTURE}
    order = DataOrder(MixtureSchedule((Phase("p", 24, MIXTURE),), seed=3, block=8), sources, 32)
    proxy, reference, twin = (Decoder(settings.model).double() for _ in range(3))
    proxy.init_weights(1)
    twin.load_state_dict(proxy.state_dict())
    reference.init_weights(2)
    weigher = DomainWeigher(
        order, reference, "", DoremiSettings(eta=5.0, smoothing=0.01), micro_batch_sequences=3
    )
    names = sorted(MIXTURE)

    def losses(model: Decoder, batch) -> torch.Tensor:
        hidden = model(batch.input_ids, positions=batch.positions, document_ids=batch.document_ids)
        logits = (hidden @ model.output_weight.T).log_softmax(-1)
        return -logits.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]

    a, excess, total = np.full(3, 1 / 3), np.zeros(3), np.zeros(3)
    for first in (0, 8, 16):
        batch = order.batch(first, 8)
        weights, columns = weigher.weigh(proxy, batch)
        value = accumulate_gradients(proxy, batch, micro_batch_sequences=5, token_weights=weights)

        own = losses(twin, batch)
        over = (own - losses(reference, batch)).clamp(min=0).detach().numpy()
        groups: dict[str, list[tuple[int, int]]] = {}
        for row in range(8):
            name = order.window(first + row).source
            groups.setdefault(name, []).extend((row, t) for t in range(32) if batch.labels[row, t] != IGNORED)
        for j, name in enumerate(names):
            if name in groups:
                excess[j] = np.mean([over[at] for at in groups[name]])
        a = a * np.exp(5.0 * excess)
        a = 0.99 * a / a.sum() + 0.01 / 3
        total += a
        present = sum(a[names.index(name)] for name in groups)
        loss = sum(
            a[names.index(name)] / present * torch.stack([own[at] for at in places]).mean()
            for name, places in groups.items()
        )
        loss.backward()
        assert float(value) == pytest.approx(float(loss.detach()), abs=1e-12)
        assert [columns["excess"][name] for name in names] == pytest.approx(excess.tolist(), abs=1e-12)
        assert [columns["domain_weights"][name] for name in names] == pytest.approx(a.tolist(), abs=1e-12)
        for mine, theirs in zip(proxy.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-13)
            with torch.no_grad():
                mine -= 0.1 * mine.grad
                theirs -= 0.1 * theirs.grad
            mine.grad = theirs.grad = None
    assert np.ptp(a) > 0.01  # the weights moved
    np.testing.assert_allclose(weigher.weights.average, total / 3, atol=1e-12)


def test_what_the_runs_leave_is_a_mixture_for_fit(study) -> None:
    folder, _, found = study
    written = json.loads((folder / "whole" / "doremi.json").read_text())
    assert written == found
    rows = read_rows(folder / "whole" / "proxy" / "metrics.jsonl")
    mean = {name: np.mean([row["domain_weights"][name] for row in rows]) for name in MIXTURE}
    assert found["weights"] == pytest.approx(mean, abs=1e-12)
    assert sum(found["weights"].values()) == pytest.approx(1.0)
    assert len(rows) == found["updates"] == len(found["trajectory"]["step"]) == 6
    # Both models begin alike: before the first update nothing is in excess of the reference but what it learned.
    assert rows[0]["excess"]["code"] > 0
    mixture = fit_mixture(method="doremi", doremi=folder / "whole" / "doremi.json", maximum={"noise": 0.1})
    assert mixture.weights["noise"] == pytest.approx(0.1)


def test_killed_in_the_middle_it_ends_with_the_same_bytes(study, monkeypatch) -> None:
    folder, settings, _ = study
    killed = folder / "killed"
    update = loop.update

    def dies(run, batch, train_settings):
        if run.weigher is not None and run.step == 3:
            raise KeyboardInterrupt
        return update(run, batch, train_settings)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            run_doremi(settings, killed, reference=MIXTURE)
    assert not (killed / "doremi.json").exists()
    run_doremi(settings, killed, reference=MIXTURE)
    for file in (
        "doremi.json",
        "proxy/checkpoints/step-6/model.safetensors",
        "runs/ratios.csv",
        "runs/metrics.csv",
    ):
        assert (killed / file).read_bytes() == (folder / "whole" / file).read_bytes(), file
    log = killed / "proxy" / "metrics.jsonl"
    before = log.stat().st_mtime_ns
    run_doremi(settings, killed, reference=MIXTURE)
    assert log.stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="other settings"):
        run_doremi(settings, killed, reference=MIXTURE, doremi=DoremiSettings(eta=0.5))


def test_what_cannot_be_is_refused(study) -> None:
    folder, settings, _ = study
    with pytest.raises(RecipeError, match="has one"):
        run_doremi(settings, folder / "no", reference={"code": 1.0})
    with pytest.raises(RecipeError, match="eta 0"):
        run_doremi(settings, folder / "no", reference=MIXTURE, doremi=DoremiSettings(eta=0.0))
    with pytest.raises(RecipeError, match="'books'"):
        run_doremi(settings, folder / "no", reference={"code": 0.5, "books": 0.5})
    with pytest.raises(RecipeError, match="without a teacher"):
        loop._check_weighed(object(), loop.Ranks(0, 2, 0), settings.train)
