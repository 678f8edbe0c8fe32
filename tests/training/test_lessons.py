"""Phases with a teacher: exact resume, better students, and caches that fit or are refused."""

import hashlib
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.errors import DataError, RecipeError
from tests.training.distilled_world import (
    SETTINGS,
    STUDENT,
    V,
    held_out_loss,
    make_order,
    trained_teacher,
)
from tests.training.post_training_models import killed
from training import teacher_cache
from training.distillation import linear_distillation
from training.distillation_settings import Distillation
from training.lessons import Lesson, open_lessons
from training.loop import load_checkpoint_model, train
from training.losses import plain_cross_entropy
from training.model import Decoder
from training.run_log import read_rows
from training.settings import deciding_settings
from training.teacher import load_teacher
from training.update import accumulate_gradients

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return str(trained_teacher(tmp_path_factory.mktemp("teacher") / "model"))


def distilled(teacher, **changes):
    return replace(
        SETTINGS,
        distillation={"taught": Distillation(teacher, precision="float32", alpha=0.3, beta=0.7, **changes)},
    )


def digest(out: Path) -> list[str]:
    folder = out / "checkpoints/step-12"
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))]


def lessons_for(settings, order, folder):
    return open_lessons(
        settings.distillation,
        order,
        sequences=settings.steps * settings.batch_sequences,
        vocabulary=V,
        folder=folder,
        device=CPU,
    )


@pytest.mark.parametrize("cache", ["none", "sampled", "multinomial", "top_k"])
def test_gradients_do_not_depend_on_micro_batches(teacher, tmp_path, cache):
    """Nor on where a phase begins inside the batch; and they are those of the losses written out."""
    order = make_order()
    settings = distilled(teacher, cache=cache, entries=6)
    lessons = lessons_for(settings, order, tmp_path)
    if cache == "none":  # in float64 nothing but an error can differ
        taught = lessons._by_phase["taught"].teacher
        taught.model.double()
        object.__setattr__(taught, "weight", taught.weight.double())
    model = Decoder(STUDENT).init_weights(0).double()
    batch = order.batch(20, 8)  # two rows of the plain phase, six of the other
    found = []
    for size in (None, 1, 3, 8):
        model.zero_grad()
        parts = {}
        loss = accumulate_gradients(model, batch, micro_batch_sequences=size, lessons=lessons, parts=parts)
        found.append((loss, parts, [p.grad.clone() for p in model.parameters()]))
    for loss, parts, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(parts, found[0][1])
        torch.testing.assert_close(gradients, found[0][2])
    if cache != "none":
        return
    hidden = model(batch.input_ids, batch.positions, batch.document_ids)
    weight, counted = model.output_weight, (batch.labels >= 0).sum()
    said = taught.hidden(batch.input_ids, batch.positions, batch.document_ids)
    flat = [x[2:].flatten(0, 1) for x in (hidden, batch.labels, said)]
    expected = plain_cross_entropy(hidden[:2], weight, batch.labels[:2])
    expected = (
        expected
        + linear_distillation(flat[0], weight, flat[1], flat[2], taught.weight, alpha=0.3, beta=0.7).total
    )
    torch.testing.assert_close(found[0][0], (expected / counted).detach())


def train_until(step, settings, out):
    """Train, and kill this process in the middle of an update, between two of its micro-batches."""
    real = Lesson.loss

    def loss(self, hidden, weight, batch, z_loss):
        found = real(self, hidden, weight, batch, z_loss)
        if batch.first >= 4 * step + 2:  # the first half of this update has its gradients
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Lesson.loss = loss
    train(STUDENT, make_order(), settings, out)


@pytest.mark.parametrize("cache", ["none", "sampled"])
def test_a_run_that_is_killed_in_a_distilled_phase_ends_with_the_same_bits(
    teacher, tmp_path, monkeypatch, cache
):
    settings = replace(distilled(teacher, cache=cache, entries=4), micro_batch_sequences=2)
    train(STUDENT, make_order(), settings, tmp_path / "undisturbed")
    rows = read_rows(tmp_path / "undisturbed/metrics.jsonl")
    assert [row["divergence"] != 0 for row in rows] == [False] * 5 + [True] * 7
    for row in rows:
        taught = 0 if row["step"] <= 5 else 0.5 if row["step"] == 6 else 1
        if taught != 0.5:
            blend = (1 - 0.7 * taught) * row["cross_entropy"] + 0.7 * taught * row["divergence"]
            assert row["loss"] == pytest.approx(blend, rel=1e-5)
    for step in (5, 7, 10):  # in the update of the border, and twice in the distilled phase
        assert killed(lambda step=step: train_until(step, settings, tmp_path / "stopped")) == -9
    train(STUDENT, make_order(), settings, tmp_path / "stopped")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "undisturbed")
    with pytest.raises(RecipeError, match=r"distillation\.taught\.beta was 0\.7, is 0\.5"):
        train(STUDENT, make_order(), distilled_with(settings, beta=0.5), tmp_path / "stopped")


def distilled_with(settings, **changes):
    return replace(settings, distillation={"taught": replace(settings.distillation["taught"], **changes)})


def test_a_teacher_may_move_but_not_change(teacher, tmp_path):
    settings = distilled(teacher)
    moved = shutil.copytree(teacher, tmp_path / "elsewhere")
    assert deciding_settings(settings) == deciding_settings(distilled_with(settings, teacher=str(moved)))
    (moved / "config.json").write_text((moved / "config.json").read_text().replace("1e-05", "1e-04"))
    assert deciding_settings(settings) != deciding_settings(distilled_with(settings, teacher=str(moved)))
    assert "distillation" not in deciding_settings(SETTINGS)


def test_a_stronger_teacher_lowers_the_held_out_loss_at_equal_steps(teacher, tmp_path):
    """Few tokens of a language with a long tail: what the teacher knows of the tail is worth many tokens."""
    losses = {}
    for name, settings in {
        "labels": SETTINGS,
        "online": distilled_with(distilled(teacher), alpha=0.0, beta=1.0),
        "sampled": distilled_with(distilled(teacher, cache="sampled", entries=8), alpha=0.0, beta=1.0),
        "top_k": distilled_with(distilled(teacher, cache="top_k", entries=8), alpha=0.0, beta=1.0),
    }.items():
        longer = replace(settings, steps=60, learning_rate=2e-2, resume_every=0)
        result = train(STUDENT, make_order(60), longer, tmp_path / name)
        losses[name] = held_out_loss(load_checkpoint_model(result.final))
    print(losses)
    assert all(losses[name] < losses["labels"] - 0.02 for name in ("online", "sampled", "top_k"))
    assert abs(losses["sampled"] - losses["online"]) < 0.05


def test_cached_entries_are_the_teachers_at_every_token_of_the_order(teacher, tmp_path):
    """top_k with an entry for every token is exact: compared with the teacher run on each document alone."""
    order = make_order()
    settings = distilled(teacher, cache="top_k", entries=99, context=16)
    caches = lessons_for(settings, order, tmp_path)._by_phase["taught"].caches
    model = load_teacher(Path(teacher), vocabulary=V, device=CPU, precision="float32")
    assert set(caches) == {"one", "two"}
    checked = 0
    for index in range(22, 48):
        window = order.window(index)
        ids, weights, entropy = caches[window.source].read(window.pieces)
        assert len(ids) == 32
        at = 0
        for document, start, stop in window.pieces:
            tokens = torch.from_numpy(order.sources[window.source].document(document).astype(np.int64))
            said = []
            for begin in range(0, len(tokens), 16):
                piece = tokens[begin : begin + 16][None]
                zero = torch.zeros_like(piece)
                hidden = model.hidden(piece, torch.arange(piece.shape[1])[None], zero)
                said.append((hidden @ model.weight.T).softmax(-1)[0])
            p = torch.cat(said)[start:stop].double()
            here = slice(at, at + stop - start)
            # the bucket, the last entry, is the one token that is not listed
            listed = torch.from_numpy(ids[here, :-1])
            expected = torch.cat((p.gather(1, listed), 1 - p.gather(1, listed).sum(-1, keepdim=True)), 1)
            torch.testing.assert_close(torch.from_numpy(weights[here]).double(), expected, rtol=0, atol=1e-3)
            torch.testing.assert_close(
                torch.from_numpy(entropy[here]).double(), -torch.xlogy(p, p).sum(-1), rtol=2e-3, atol=2e-3
            )
            at += stop - start
            checked += 1
    assert checked > 30


def test_a_cache_is_filled_once_grows_and_survives_a_kill(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "PART_TOKENS", 100)
    order, settings = make_order(), distilled(teacher, cache="sampled", entries=4)
    whole = lessons_for(settings, order, tmp_path / "whole")._by_phase["taught"].caches
    parts = sorted((tmp_path / "whole").rglob("part-*"))
    assert len(parts) > 4
    real, calls = teacher_cache.entries_of_documents, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(teacher_cache, "entries_of_documents", dies)
    with pytest.raises(KeyboardInterrupt):
        lessons_for(settings, order, tmp_path / "killed")
    again = lessons_for(settings, order, tmp_path / "killed")._by_phase["taught"].caches
    assert len(calls) == len(parts) + 1  # nothing that was stored was computed again
    for index in range(22, 48):
        window = order.window(index)
        for one, other in zip(
            whole[window.source].read(window.pieces), again[window.source].read(window.pieces), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(teacher_cache, "entries_of_documents", lambda *a: pytest.fail("computed again"))
    monkeypatch.setattr("training.lessons.load_teacher", lambda *a, **k: pytest.fail("loaded for nothing"))
    lessons_for(settings, order, tmp_path / "killed")


def test_a_shared_cache_serves_another_mixture_and_refuses_another_teacher(teacher, tmp_path):
    order = make_order()
    settings = distilled(teacher, cache="sampled", entries=4, cache_folder=str(tmp_path / "cache"))
    lessons_for(settings, order, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    lessons_for(settings, make_order(seed=1), tmp_path / "other run")
    for change, named in (({"entries": 5}, "entries"), ({"temperature": 2.0}, "temperature")):
        with pytest.raises(DataError, match=f"does not fit this run: other {named}"):
            lessons_for(distilled_with(settings, **change), order, tmp_path / "run")
    lessons_for(
        settings, make_order(documents=31), tmp_path / "run"
    )  # other tokens have a folder of their own
    assert len(list((tmp_path / "cache").glob("one-*"))) == 2
    other = trained_teacher(tmp_path / "other teacher", steps=1)
    with pytest.raises(DataError, match="other teacher"):
        lessons_for(distilled_with(settings, teacher=str(other)), order, tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncated", "missing", "no record", "other rows"])
def test_a_damaged_cache_is_a_sentence_and_deleting_the_part_mends_it(teacher, tmp_path, damage):
    order = make_order()
    settings = distilled(teacher, cache="sampled", entries=4, cache_folder=str(tmp_path))
    lessons_for(settings, order, tmp_path)
    (part,) = tmp_path.glob("one-*/part-000000")
    if damage == "truncated":
        (part / "ids.npy").write_bytes((part / "ids.npy").read_bytes()[:-100])
    elif damage == "missing":
        (part / "weights.npy").unlink()
    elif damage == "no record":
        (part / "part.json").write_text("{")
    else:
        np.save(part / "entropy.npy", np.zeros(3, dtype=np.float16))
    with pytest.raises(DataError, match=r"cache of the teacher .*Delete this folder"):
        lessons_for(settings, order, tmp_path)
    shutil.rmtree(part)
    lessons_for(settings, order, tmp_path)


def test_a_teacher_that_is_not_finite_is_named_before_anything_is_learned(teacher, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(teacher, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.feed_forward.up_proj.weight"][0, 0] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for cache in ("none", "top_k"):
        with pytest.raises(DataError, match=r"logits of the teacher .* are not finite"):
            train(STUDENT, make_order(), distilled(str(broken), cache=cache), tmp_path / cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.0}, "temperature cannot be 0.0"),
        ({"temperature": float("nan")}, "temperature cannot be nan"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0"),
        ({"alpha": -1.0}, "alpha cannot be -1.0"),
        ({"teacher": ""}, "teacher cannot be ''"),
        ({"cache": "all"}, "cache cannot be 'all'"),
        ({"cache": "top_k", "entries": 1}, "entries cannot be 1"),
        ({"cache": "sampled", "direction": "reverse"}, "cached teacher has no reverse"),
        ({"direction": "sideways"}, "direction cannot be"),
        ({"precision": "float8"}, "precision cannot be"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, change, said):
    wrong = distilled_with(distilled("a folder"), **change)
    with pytest.raises(RecipeError, match=said):
        train(STUDENT, make_order(), wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_phases_and_vocabularies_must_fit(teacher, tmp_path):
    elsewhere = replace(SETTINGS, distillation={"late": Distillation(teacher)})
    with pytest.raises(RecipeError, match=r"no phase 'late'.*plain, taught"):
        train(STUDENT, make_order(), elsewhere, tmp_path / "out")
    with pytest.raises(DataError, match="20 tokens, the student's 24"):
        train(replace(STUDENT, vocab_size=24), make_order(), distilled(teacher), tmp_path / "larger")
    order = make_order()
    for source in order.sources.values():
        object.__setattr__(source, "tokenizer", "another")
    with pytest.raises(DataError, match="tokenizer is not, to the byte"):
        train(STUDENT, order, distilled(teacher), tmp_path / "other tokenizer")
