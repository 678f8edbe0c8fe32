"""The training loop: it learns, resumes with the same bits after any kill, and refuses what it must."""

import hashlib
import json
import multiprocessing
import multiprocessing.process
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from curation.errors import DataError, MachineError, RecipeError
from training import checkpoint, loop, update
from training.checkpoint import list_checkpoints, read_state
from training.huggingface import save_huggingface
from training.loop import TrainSettings, load_checkpoint_model, train
from training.model import Decoder, ModelConfig
from training.order import DataOrder, MixtureSchedule, Phase
from training.run_lock import only_process_in
from training.run_log import read_rows
from training.tokens import TokenSource
from training.update import accumulate_gradients

CONFIG = ModelConfig(
    vocab_size=61, dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=64
)
SETTINGS = TrainSettings(
    sequence_tokens=32,
    batch_sequences=4,
    steps=24,
    learning_rate=1e-2,
    warmup_steps=3,
    checkpoint_steps=(0, 12),
    evaluate_steps=(0, 8, 24),
    average_from=0.5,
    resume_every=5,
    device="cpu",
)


def make_source(name: str, seed: int) -> TokenSource:
    """Documents that count upwards from a random token, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 60, size=20)
    starts = generator.integers(0, 59, size=20)
    documents = [
        [0, *((start + np.arange(n - 2) * (seed + 1)) % 59 + 2), 1]
        for n, start in zip(lengths, starts, strict=True)
    ]
    return TokenSource(
        name=name,
        tokens=np.concatenate(documents).astype(np.uint16),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        ids=[str(i) for i in range(20)],
        text_bytes=lengths,
        hash=f"{name} {seed}",
        tokenizer="",
        vocab_size=61,
    )


def make_order(seed: int = 0) -> DataOrder:
    """Two phases; the border lies inside the update after step 13."""
    phases = (Phase("early", 54, {"up": 0.75, "skip": 0.25}), Phase("late", 42, {"up": 0.2, "skip": 0.8}))
    sources = {"up": make_source("up", 0), "skip": make_source("skip", 1)}
    return DataOrder(MixtureSchedule(phases, seed, block=16), sources, 32)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def evaluate(model: Decoder, step: int) -> dict:
    batch = make_order(seed=7).batch(0, 4)
    with torch.no_grad():
        hidden = model(batch.input_ids, batch.positions, batch.document_ids)
        logits = model.logits(hidden).flatten(0, 1)
    return {"loss": torch.nn.functional.cross_entropy(logits, batch.labels.flatten()).item()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    train(CONFIG, make_order(), SETTINGS, out, evaluate=evaluate)
    return out


def test_it_learns_and_leaves_what_it_says(undisturbed):
    rows = read_rows(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert rows[0]["loss"] == pytest.approx(np.log(61), abs=0.2)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert rows[-1]["tokens"] == 24 * 4 * 32 and rows[2]["learning_rate"] == 1e-2
    evaluations = read_rows(undisturbed / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 8, 24]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 1
    assert list(list_checkpoints(undisturbed / "checkpoints")) == [0, 12, 24]
    assert not list_checkpoints(undisturbed / "resume")
    state = read_state(undisturbed / "checkpoints/step-12")
    assert (state.step, state.sequences, state.averaged) == (12, 48, 0)
    assert read_state(undisturbed / "checkpoints/step-24").averaged == 12


def test_a_finished_run_returns_at_once(undisturbed, monkeypatch):
    monkeypatch.setattr(loop, "_begin", lambda *_: pytest.fail("it began again"))
    result = train(CONFIG, make_order(), SETTINGS, undisturbed)
    assert result.final == undisturbed / "checkpoints/step-24"
    assert result.tokens == 24 * 4 * 32 and result.steps == 24
    assert result.flops == result.tokens * CONFIG.flops_per_token(32) and result.seconds > 0


def test_the_mean_of_the_last_weights_is_what_is_loaded(undisturbed, tmp_path):
    kept = replace(SETTINGS, checkpoint_steps=tuple(range(13, 25)), evaluate_steps=(24,))
    found = train(CONFIG, make_order(), kept, tmp_path / "out", evaluate=evaluate).final.parent
    models = [load_checkpoint_model(found / f"step-{s}", averaged=False) for s in range(13, 25)]
    averaged = load_checkpoint_model(found / "step-24")
    for name, mean in averaged.named_parameters():
        wanted = torch.stack([dict(m.named_parameters())[name].double() for m in models]).mean(0)
        assert torch.allclose(mean.double(), wanted, rtol=1e-5, atol=1e-7)
    assert not torch.equal(averaged.output_weight, models[-1].output_weight)
    assert read_rows(tmp_path / "out/evaluations.jsonl")[0]["loss"] == evaluate(averaged, 24)["loss"]
    # Neither what is kept nor the evaluation in between changes the training.
    assert digest(found / "step-24/model.safetensors") == digest(
        undisturbed / "checkpoints/step-24/model.safetensors"
    )
    with pytest.raises(DataError, match="no mean"):
        load_checkpoint_model(undisturbed / "checkpoints/step-12", averaged=True)


@pytest.mark.parametrize("stops", [(7,), (13, 14, 23)])
def test_a_run_that_fails_and_goes_on_ends_with_the_same_bits(undisturbed, tmp_path, monkeypatch, stops):
    real = loop.update
    for stop in stops:

        def failing(run, batch, settings, stop=stop):
            if run.step == stop:
                raise KeyboardInterrupt
            return real(run, batch, settings)

        monkeypatch.setattr(loop, "update", failing)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, make_order(), SETTINGS, tmp_path / "out", evaluate=evaluate)
    monkeypatch.setattr(loop, "update", real)
    train(CONFIG, make_order(), SETTINGS, tmp_path / "out", evaluate=evaluate)
    assert_same_run(tmp_path / "out", undisturbed)


def train_into(out: Path) -> None:
    """What the process that is killed does."""
    torch.set_num_threads(1)
    train(CONFIG, make_order(), SETTINGS, out, evaluate=evaluate)


def test_kill_minus_nine_at_random_moments_changes_no_bit(undisturbed, tmp_path):
    chance, out, visible = random.Random(11), tmp_path / "out", set()
    # A server that has torch imported, and forks: the time goes into training, not into imports.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.test_loop", "torch._dynamo"])
    for kill in [True] * 5 + [False]:
        child = processes.Process(target=train_into, args=(out,))
        begun = max(visible, default=0)
        child.start()
        if kill:
            # Within an update, an evaluation or a checkpoint, of those that are left.
            wait_for_rows(out / "metrics.jsonl", min(begun + chance.randint(2, 9), 23), child)
            time.sleep(chance.uniform(0, 0.01))
            child.kill()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if kill else 0), "the kill must hit a run that is under way"
        for folder in (out / "checkpoints", out / "resume"):
            for step, path in list_checkpoints(folder).items():
                load_checkpoint_model(path)  # whatever is visible is whole
                visible.add(step)
    assert visible & {5, 10, 15, 20}, "some of the checkpoints that only serve to resume were met"
    assert_same_run(out, undisturbed)


def wait_for_rows(path: Path, rows: int, child: multiprocessing.process.BaseProcess) -> None:
    """Until a log has so many rows; those of an earlier attempt are dropped before the first new one."""
    began = time.monotonic()
    while child.is_alive() and time.monotonic() - began < 60:
        if path.exists() and path.read_bytes().count(b"\n") == rows:
            return
        time.sleep(0.0005)


def assert_same_run(out: Path, wanted: Path) -> None:
    """Equal files but for timings, and nothing left over."""
    files = sorted(p.relative_to(wanted) for p in wanted.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    for file in files:
        if file.name == "result.json":
            continue
        if file.name == "metrics.jsonl":
            a, b = (
                [row | {"tokens_per_second": 0, "data_seconds": 0} for row in read_rows(root / file)]
                for root in (out, wanted)
            )
            assert a == b
        else:
            assert digest(out / file) == digest(wanted / file), file


def test_what_a_kill_left_half_written_is_overwritten(undisturbed, tmp_path):
    out = tmp_path / "out"
    for name in ("checkpoints/.step-12.partial", "checkpoints/.step-24.partial"):
        (out / name).mkdir(parents=True)
        (out / name / "model.safetensors").write_text("half")
    train(CONFIG, make_order(), SETTINGS, out, evaluate=evaluate)
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_gradients_do_not_depend_on_micro_batches(micro):
    batch = make_order().batch(0, 6)
    model = Decoder(CONFIG).init_weights(1).double()
    whole = accumulate_gradients(model, batch)
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = accumulate_gradients(model, batch, micro_batch_sequences=micro)
    assert torch.allclose(whole, parts, rtol=1e-13)
    for gradient, parameter in zip(wanted, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-10, atol=1e-14)


def test_packing_changes_no_gradient_of_whole_documents():
    """A row of two documents gives the sum of the gradients of the two alone."""
    order = make_order()
    index, pieces = next(
        (i, w.pieces) for i in range(90) if len((w := order.window(i)).pieces) == 2 and w.source == "up"
    )
    batch = order.batch(index, 1)
    model = Decoder(CONFIG).init_weights(1).double()
    accumulate_gradients(model, batch)
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    labels = int((batch.labels != -100).sum())
    cut = pieces[0][2] - pieces[0][1]
    for part in (slice(0, cut), slice(cut, None)):
        alone = batch.input_ids[:, part]
        logits = model.logits(model(alone)).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels[:, part].flatten(), reduction="sum")
        (loss / labels).backward()
    for gradient, parameter in zip(wanted, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-13)


def test_clipping_bounds_the_gradient_but_reports_its_norm(tmp_path):
    few = replace(
        SETTINGS, steps=4, checkpoint_steps=(), evaluate_steps=(), warmup_steps=0, average_from=None
    )
    rows = {}
    for clip in (None, 1e-3):
        train(CONFIG, make_order(), replace(few, clip=clip), tmp_path / str(clip))
        rows[clip] = read_rows(tmp_path / str(clip) / "metrics.jsonl")
    assert rows[None][0]["grad_norm"] == rows[1e-3][0]["grad_norm"] > 1e-3
    assert rows[None][3]["loss"] != rows[1e-3][3]["loss"]
    # Adam's first moment after one update is (1 - beta1) times the gradient that it was given.
    one = replace(few, steps=1, clip=1e-3)
    final = train(CONFIG, make_order(), one, tmp_path / "one").final
    saved = load_file(final / "optimizer.safetensors")
    given = torch.cat([t.flatten() for name, t in saved.items() if name.startswith("exp_avg.")]) / 0.1
    assert given.norm() == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_learns_much_the_same(undisturbed, tmp_path):
    narrow = replace(SETTINGS, precision="bfloat16", evaluate_steps=())
    train(CONFIG, make_order(), narrow, tmp_path / "out")
    ours, wide = (read_rows(out / "metrics.jsonl") for out in (tmp_path / "out", undisturbed))
    assert ours[-1]["loss"] == pytest.approx(wide[-1]["loss"], rel=0.05)
    assert ours[-1]["loss"] != wide[-1]["loss"]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    real, seen = update.accumulate_gradients, []

    def broken(model, batch, **options):
        seen.append(model)
        return real(model, batch, **options) * (float("nan") if len(seen) == 4 else 1.0)

    monkeypatch.setattr(update, "accumulate_gradients", broken)
    with pytest.raises(DataError, match=r"loss is nan at step 4 \(learning rate 0.01"):
        train(CONFIG, make_order(), replace(SETTINGS, checkpoint_steps=(3,)), tmp_path / "out")
    before = load_checkpoint_model(tmp_path / "out/checkpoints/step-3")
    for ours, kept in zip(seen[-1].parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, kept)


def test_a_gradient_that_is_not_finite_is_named(tmp_path, monkeypatch):
    real = update.accumulate_gradients

    def broken(model, batch, **options):
        loss = real(model, batch, **options)
        model.norm.weight.grad[0] = float("inf")
        return loss

    monkeypatch.setattr(update, "accumulate_gradients", broken)
    with pytest.raises(DataError, match="norm is inf at step 1"):
        train(CONFIG, make_order(), SETTINGS, tmp_path / "out")


def test_other_settings_are_refused_and_named(undisturbed):
    with pytest.raises(RecipeError, match=r"training.learning_rate was 0.01, is 0.02"):
        train(CONFIG, make_order(), replace(SETTINGS, learning_rate=0.02), undisturbed)
    with pytest.raises(RecipeError, match="order has changed"):
        train(CONFIG, make_order(seed=1), SETTINGS, undisturbed)
    with pytest.raises(RecipeError, match="rope_theta"):
        train(replace(CONFIG, rope_theta=1e4), make_order(), SETTINGS, undisturbed)


def test_a_broken_checkpoint_is_a_sentence(undisturbed, tmp_path):
    for name in ("model.safetensors", "state.json"):
        shutil.copytree(undisturbed / "checkpoints/step-24", tmp_path / name)
        os.truncate(tmp_path / name / name, 100)
        with pytest.raises(DataError, match="checkpoint cannot be read"):
            load_checkpoint_model(tmp_path / name, averaged=False)
    with pytest.raises(DataError):
        load_checkpoint_model(tmp_path / "nothing")


def test_a_full_disk_is_a_sentence_and_the_run_goes_on(undisturbed, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(MachineError, match="The disk is full"):
            train(CONFIG, make_order(), SETTINGS, tmp_path / "out", evaluate=evaluate)
    train(CONFIG, make_order(), SETTINGS, tmp_path / "out", evaluate=evaluate)
    assert_same_run(tmp_path / "out", undisturbed)


def test_a_run_can_start_from_anothers_weights(undisturbed, tmp_path):
    start = undisturbed / "checkpoints/step-12"
    settings = replace(
        SETTINGS, steps=2, warmup_steps=0, checkpoint_steps=(0,), evaluate_steps=(), learning_rate=1e-4
    )
    train(CONFIG, make_order(), settings, tmp_path / "out", init_from=start)
    begun = load_checkpoint_model(tmp_path / "out/checkpoints/step-0")
    assert torch.equal(begun.output_weight, load_checkpoint_model(start).output_weight)
    save_huggingface(load_checkpoint_model(start), tmp_path / "hf")
    train(CONFIG, make_order(), settings, tmp_path / "from hf", init_from=tmp_path / "hf")
    for name in ("step-0", "step-2"):
        weights = f"checkpoints/{name}/model.safetensors"
        assert digest(tmp_path / "from hf" / weights) == digest(tmp_path / "out" / weights)
    with pytest.raises(RecipeError, match="start has changed"):
        train(CONFIG, make_order(), settings, tmp_path / "out")
    with pytest.raises(RecipeError, match="another shape"):
        train(replace(CONFIG, ffn_dim=32), make_order(), settings, tmp_path / "other", init_from=start)


def test_two_processes_cannot_train_into_one_folder(tmp_path):
    with only_process_in(tmp_path), pytest.raises(MachineError, match="Another process"):
        train(CONFIG, make_order(), SETTINGS, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 25},
        {"sequence_tokens": 16},
        {"checkpoint_steps": (25,)},
        {"clip": 0.0},
        {"learning_rate": float("nan")},
        {"precision": "float16"},
        {"average_from": 1.0},
        {"warmup_steps": 24},
        {"schedule": "linear"},
        {"micro_batch_sequences": -1},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, change):
    with pytest.raises(RecipeError):
        train(CONFIG, make_order(), replace(SETTINGS, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_log_row_that_json_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        train(CONFIG, make_order(), SETTINGS, tmp_path / "out", evaluate=lambda *_: {"loss": float("nan")})


def test_a_half_written_row_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_rows(path) == [{"step": 1}]
